"""fipo's head inside the model's forward: the model's own logits, and models that it cannot serve are refused."""

import pytest
import torch
import transformers
from support import tiny
from support.harness import SIZES, assert_same, loss_and_gradients, make

from fipo import InvalidParameterError


def test_gradient_checkpointing_and_evaluation(tmp_path):
    trainers = [make(tmp_path, gradient_checkpointing=on, fipo_head_memory=0.0) for on in (True, False)]
    inputs = tiny.with_old_logps(trainers[1], tiny.rollout())
    assert_same(*(loss_and_gradients(trainer, inputs) for trainer in trainers))
    for trainer in trainers:
        trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(*(trainer.compute_loss(trainer.model, inputs) for trainer in trainers))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
        ("Cohere", {"logit_scale": 0.3}),
        ("Granite", {"logits_scaling": 7.0}),
    ],
)
def test_what_lies_between_products_and_logits_is_known(name, options, tmp_path):
    """`check_head`, which runs in the trainer's constructor, compares with the model's own logits."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that the transformation matters
    trainer = make(tmp_path, model)
    loss, _ = loss_and_gradients(trainer, tiny.with_old_logps(trainer, tiny.rollout()))
    assert loss.isfinite()


class Odd(tiny.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output


def test_heads_that_cannot_be_served_are_refused(tmp_path):
    with pytest.raises(InvalidParameterError, match=r"The logits of Odd give other log-probs.*take another model"):
        make(tmp_path, Odd(tiny.model().config))
    model = tiny.model()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(InvalidParameterError, match=r"is a Sequential, but .* leave the head out of adapters"):
        make(tmp_path, model)


def test_generation_copies_no_weight(tmp_path):
    """The slice of each prompt's last token is not contiguous, and torch would copy the head's weight for every row."""
    model, seen = make(tmp_path).model, []
    model.get_output_embeddings().register_forward_hook(lambda _, x, __: seen.append(x[0].is_contiguous()))
    prompts = torch.tensor([[2, 3, 4], [4, 5, 6]])
    model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=2, do_sample=False)
    assert len(seen) == 2 and all(seen)
