"""With neutral weights and no drop, loss and gradient are those of TRL's GRPOTrainer, whatever else is switched on."""

import pytest
import torch
from support import tiny
from trl import GRPOConfig, GRPOTrainer

from fipo.trainer import FIPOConfig, FIPOTrainer

NEUTRAL = {"fipo_clip_ratio_low": 0.0, "fipo_clip_ratio_high": 0.0, "fipo_max_dual_clipped": 10**6}
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_completion_length": 12,
    "num_generations": 4,
    "steps_per_generation": 4,
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": False,
}
WHOLE = {"fipo_streaming": False}  # what must see whole sequences first
OPTIONS = {
    "plain": {},
    "kl": {"beta": 0.1},
    "kl with bias correction": {"beta": 0.1, "use_bias_correction_kl": True},
    "entropy bonus": {"entropy_coef": 0.01},
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 5.0},
    "adaptive entropy above target": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 0.1},
    "high-entropy tokens": {"top_entropy_quantile": 0.5, **WHOLE},
    "high-entropy tokens with bonus": {"top_entropy_quantile": 0.5, "entropy_coef": 0.01, **WHOLE},
    "off-policy mask": {"off_policy_mask_threshold": 0.1, **WHOLE},
    "vllm": {"vllm_importance_sampling_correction": True},
    "lora": {"peft": True},
    "accumulation": {"gradient_accumulation_steps": 2, "beta": 0.1, "entropy_coef": 0.01},
}


def reward(completions, **_):
    return [0.0] * len(completions)


def make(trainer_class, config_class, tmp_path, peft=False, **options):
    peft_config = None
    if peft:
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    folder = tiny.save(tmp_path / "model") if options.get("beta") else None
    model = tiny.model() if folder is None else tiny.LlamaForCausalLM.from_pretrained(folder)
    config = config_class(str(tmp_path / "run"), **{**COMMON, **options})
    trainer = trainer_class(
        model,
        reward,
        config,
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
        peft_config=peft_config,
    )
    trainer.current_gradient_accumulation_steps = config.gradient_accumulation_steps
    return trainer


def loss_and_gradients(trainer, inputs):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("name", OPTIONS)
def test_neutral_weights_give_grpo(name, loss_type, tmp_path):
    options = {"loss_type": loss_type, "delta": 1.6, "epsilon_high": 0.28, **OPTIONS[name]}
    ours = make(FIPOTrainer, FIPOConfig, tmp_path, **options, **NEUTRAL)
    options.pop("fipo_streaming", None)
    theirs = make(GRPOTrainer, GRPOConfig, tmp_path, **options)
    for trainer in (ours, theirs):
        trainer.use_vllm = name == "vllm"
    for seed in range(2):  # two micro-batches: adaptive entropy has a state
        inputs = tiny.with_old_logps(theirs, tiny.rollout(seed=seed, tool_mask=seed == 0))
        loss, gradients = loss_and_gradients(ours, inputs)
        expected_loss, expected = loss_and_gradients(theirs, inputs)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-7)
        assert_same_gradients(gradients, expected)
    assert ours.entropy_coef == theirs.entropy_coef


def test_metrics_that_both_log_agree(tmp_path):
    ours = make(FIPOTrainer, FIPOConfig, tmp_path, delta=1.6, beta=0.1, **NEUTRAL)
    theirs = make(GRPOTrainer, GRPOConfig, tmp_path, delta=1.6, epsilon_high=0.28, beta=0.1)
    inputs = tiny.with_old_logps(theirs, tiny.rollout())
    for trainer in (ours, theirs):
        loss_and_gradients(trainer, inputs)
    metrics = ours._credit["train"].reduce(ours.accelerator)
    for name in ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        assert metrics[name] == pytest.approx(theirs._metrics["train"][name][0], rel=1e-5), name


def test_credit_changes_the_gradient_and_leaves_masked_rows_alone(tmp_path):
    """The parity above is no accident of a switched-off loss, and a batch without trained tokens is finite."""
    ours = make(FIPOTrainer, FIPOConfig, tmp_path)
    neutral = make(FIPOTrainer, FIPOConfig, tmp_path, **NEUTRAL)
    inputs = tiny.with_old_logps(ours, tiny.rollout())
    assert loss_and_gradients(ours, inputs)[0] != loss_and_gradients(neutral, inputs)[0]
    inputs["tool_mask"] = torch.zeros_like(inputs["completion_mask"])
    inputs["num_items_in_batch"] = torch.tensor(0)
    loss, gradients = loss_and_gradients(ours, inputs)
    assert loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())
