"""fipo's head inside the model's forward: the model's own logits, and models that it cannot serve are refused."""

import pytest
import torch
from support import tiny
from support.harness import COMMON, NEUTRAL, assert_same_gradients, loss_and_gradients, make, reward
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from trl import GRPOConfig, GRPOTrainer

from fipo import InvalidParameterError
from fipo.trainer import FIPOConfig, FIPOTrainer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def test_gradient_checkpointing_and_evaluation(tmp_path):
    trainers = [
        make(FIPOTrainer, FIPOConfig, tmp_path, gradient_checkpointing=checkpointing, fipo_head_memory=0.0)
        for checkpointing in (True, False)
    ]
    inputs = tiny.with_old_logps(trainers[1], tiny.rollout())
    (loss, gradients), (expected_loss, expected) = (loss_and_gradients(trainer, inputs) for trainer in trainers)
    torch.testing.assert_close(loss, expected_loss)
    assert_same_gradients(gradients, expected)
    for trainer in trainers:
        trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(*(trainer.compute_loss(trainer.model, inputs) for trainer in trainers))


def trainer_of(model, tmp_path, trainer_class=FIPOTrainer, config_class=FIPOConfig, **options):
    config = config_class(str(tmp_path / "run"), **{**COMMON, **options})
    data = tiny.prompts()
    trainer = trainer_class(model, reward, config, train_dataset=data, processing_class=tiny.tokenizer())
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
        (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.3)),
        (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=7.0)),
    ],
)
def test_what_lies_between_products_and_logits_is_known(model_class, config, tmp_path):
    """`check_head`, which runs in the trainer's constructor, compares with the model's own logits."""
    torch.manual_seed(0)
    model = model_class(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that the transformation matters
    trainer = trainer_of(model, tmp_path)
    inputs = tiny.with_old_logps(trainer, tiny.rollout())
    loss, _ = loss_and_gradients(trainer, inputs)
    assert loss.isfinite()


def test_an_unknown_transformation_is_refused(tmp_path):
    class Odd(tiny.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 3
            return output

    with pytest.raises(InvalidParameterError, match=r"The logits of Odd give other log-probs.*take another model"):
        trainer_of(Odd(tiny.model().config), tmp_path)


def test_a_head_that_is_no_linear_layer_is_refused(tmp_path):
    model = tiny.model()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(InvalidParameterError, match=r"is a Sequential, but .* leave the head out of adapters"):
        trainer_of(model, tmp_path)


def test_a_mixture_of_experts_has_its_auxiliary_loss(tmp_path):
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5)
    model = MixtralForCausalLM(config)
    copy = MixtralForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    options = {"delta": 1.6, "epsilon_high": 0.28}
    ours = trainer_of(model, tmp_path, **options, **NEUTRAL)
    theirs = trainer_of(copy, tmp_path, GRPOTrainer, GRPOConfig, **options)
    assert ours.aux_loss_enabled
    inputs = tiny.with_old_logps(theirs, tiny.rollout())
    loss, gradients = loss_and_gradients(ours, inputs)
    expected_loss, expected = loss_and_gradients(theirs, inputs)
    torch.testing.assert_close(loss, expected_loss)
    assert_same_gradients(gradients, expected)
    assert ours._metrics["train"]["aux_loss"] == pytest.approx(theirs._metrics["train"]["aux_loss"])


def test_generation_copies_no_weight(tmp_path):
    """The slice of each prompt's last token is not contiguous, and torch would copy the head's weight for every row."""
    trainer = make(FIPOTrainer, FIPOConfig, tmp_path)
    head, seen = trainer.model.get_output_embeddings(), []
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    prompts = torch.tensor([[2, 3, 4], [4, 5, 6]])
    trainer.model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=2, do_sample=False)
    assert len(seen) == 2 and all(seen)
