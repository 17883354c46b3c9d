"""With neutral weights and no drop, loss and gradient are those of TRL's GRPOTrainer, whatever else is switched on."""

import pytest
import torch
from support import tiny
from support.harness import NEUTRAL, OPTIONS, assert_same_gradients, loss_and_gradients, make
from trl import GRPOConfig, GRPOTrainer

from fipo.trainer import FIPOConfig, FIPOTrainer


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
    metrics = ours.credit_metrics["train"].reduce(ours.accelerator)
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
