"""With neutral weights and no drop, FIPOTrainer is GRPOTrainer, whatever else is switched on."""

import pytest
import torch
from support import tiny
from support.harness import NEUTRAL, OPTIONS, assert_same_gradients, loss_and_gradients, make
from trl import GRPOConfig, GRPOTrainer

from fipo import FIPOParams, fipo_loss
from fipo.trainer import FIPOConfig, FIPOTrainer


def pair(tmp_path, name, **ours):
    """Trainers of one model with one option: ours, and TRL's."""
    options = {"delta": 1.6, "epsilon_high": 0.28, **OPTIONS[name]}
    trainers = (
        make(FIPOTrainer, FIPOConfig, tmp_path, **options, **ours),
        make(GRPOTrainer, GRPOConfig, tmp_path, **options),
    )
    for trainer in trainers:
        trainer.use_vllm = name == "vllm"
    return trainers


@pytest.mark.parametrize("name", OPTIONS)
def test_neutral_weights_give_grpo(name, tmp_path):
    ours, theirs = pair(tmp_path, name, **NEUTRAL)
    for seed in range(2):  # two micro-batches: adaptive entropy has a state
        inputs = tiny.with_old_logps(theirs, tiny.rollout(seed=seed, tool_mask=seed == 0))
        loss, gradients = loss_and_gradients(ours, inputs)
        expected_loss, expected = loss_and_gradients(theirs, inputs)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-7)
        assert_same_gradients(gradients, expected)
    metrics = theirs._metrics["train"]
    metrics.pop("vespo/phi_seq_mean", None)  # TRL means it over tokens where advantages are per token
    assert metrics == {name: pytest.approx(ours._metrics["train"][name], rel=1e-5) for name in metrics}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_is_trls_own_of_weighed_advantages(name, tmp_path):
    """TRL's trainer, given (B, T) advantages that this test multiplied itself; one sequence is dropped."""
    ours, theirs = pair(tmp_path, name)
    inputs = tiny.rollout()
    inputs["advantages"][0], inputs["drift"][0, :3], inputs["completion_mask"][0, :4] = -1.0, 1.5, 1
    inputs["tool_mask"][0, :3] = 1
    inputs["importance_sampling_ratio"][1, :2] = 0.0  # which vLLM's mask makes of tokens that are too far away
    inputs = tiny.with_old_logps(theirs, inputs)
    seen = []
    ours.observers.append(seen.append)
    loss, gradients = loss_and_gradients(ours, inputs)

    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    rejected = inputs["importance_sampling_ratio"] == 0 if name == "vllm" else None
    known = (seen[0].logps, inputs["old_per_token_logps"], inputs["advantages"], mask, FIPOParams(dual_clip_c=1.6))
    out = fipo_loss(*known, rejected=rejected)
    assert out.dropped[0] and not out.kept[0].any()
    weighed = {**inputs, "advantages": inputs["advantages"][:, None] * out.weight * out.kept}
    expected_loss, expected = loss_and_gradients(theirs, weighed)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-7)
    assert_same_gradients(gradients, expected)


def test_extremes_never_reach_the_loss(tmp_path):
    """Ratios that overflow, and a π_old that an engine could not compute: TRL's loss clamps neither."""
    ours = make(FIPOTrainer, FIPOConfig, tmp_path)
    inputs = tiny.with_old_logps(ours, tiny.rollout())
    inputs["completion_mask"][:], inputs["tool_mask"][:] = 1, 1
    expected = loss_and_gradients(ours, {**inputs, "tool_mask": without(inputs, (2, 3), (4, 5), (5, 0))})[1]
    inputs["old_per_token_logps"][2, 3] -= 200.0
    inputs["old_per_token_logps"][4, 5] = torch.nan
    inputs["old_per_token_logps"][5, 0] = -torch.inf
    loss, gradients = loss_and_gradients(ours, inputs)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert_same_gradients(gradients, expected)


def without(inputs, *places):
    mask = inputs["tool_mask"].clone()
    for place in places:
        mask[place] = 0
    return mask


def test_a_batch_without_trained_tokens_is_finite(tmp_path):
    ours = make(FIPOTrainer, FIPOConfig, tmp_path)
    inputs = tiny.with_old_logps(ours, tiny.rollout())
    inputs["tool_mask"] = torch.zeros_like(inputs["completion_mask"])
    inputs["num_items_in_batch"] = torch.tensor(0)
    loss, gradients = loss_and_gradients(ours, inputs)
    assert loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())
