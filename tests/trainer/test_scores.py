"""Rollouts of a real (tiny) model: failed rewards, noise floor, evaluation."""

import pytest
import torch
from support import tiny
from support.harness import GROUP, first_number_odd_is_random, group_batch, rollout_trainer

from fipo import DataError
from fipo.run.evaluate import evaluate
from fipo.run.rewards import load_rewards


def test_a_sample_whose_reward_raised_is_out_of_the_loss(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text(
        "calls = []\n"
        "def f(completions, completion_ids, **_):\n"
        "    calls.append(0)\n"
        "    if len(completions) > 1 or len(calls) == 2: raise RuntimeError('broken judge')\n"
        "    return [float(len(calls))]\n"
    )
    monkeypatch.chdir(tmp_path)
    rewards = load_rewards(["python:half:f", "overlong"], max_completion_length=8)
    trainer = rollout_trainer(tmp_path, rewards)
    rollout = trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    assert trainer._metrics["train"]["rewards/failed"] == [1]
    assert rollout["advantages"][0] == 0 != rollout["advantages"][1]
    assert not rollout["tool_mask"][0].any() and rollout["tool_mask"][1:].all()
    assert rollout["num_items_in_batch"] == rollout["completion_mask"][1:].sum()
    assert rewards[0].failures == 1


@pytest.mark.parametrize(
    ("failed", "sentence"),
    [
        ([True] * 4 * GROUP, "raised for every sample of 3 rollouts in a row"),
        (None, "No reward gave a score to any sample of 3 rollouts in a row"),  # and none applies
    ],
)
def test_without_any_score_a_run_ends(failed, sentence, tmp_path):
    def nothing(completions, **_):
        return [None] * len(completions)

    if failed:
        nothing.failed = failed
    trainer = rollout_trainer(tmp_path, nothing)
    for _ in range(2):
        trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    with pytest.raises(DataError, match=sentence):
        trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))


def test_an_outage_is_counted_by_rollouts_and_not_by_scoring_calls(tmp_path):
    """Dynamic sampling scores up to three times a rollout; an outage during one rollout must not end the run."""
    calls = []

    def broken_for_one_rollout(completions, **_):
        calls.append(len(completions))
        broken_for_one_rollout.failed = [len(calls) <= 3] * len(completions)
        return [None if len(calls) <= 3 else float(i % 2) for i in range(len(completions))]

    trainer = rollout_trainer(tmp_path, broken_for_one_rollout, fipo_dynamic_sampling_rounds=2)
    trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    assert len(calls) == 3
    trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))


def test_the_noise_floor_is_zero_and_warns_when_it_is_not(tmp_path, monkeypatch):
    trainer = rollout_trainer(tmp_path, first_number_odd_is_random)
    warnings = []
    monkeypatch.setattr("fipo.trainer.trainer.logger.warning", warnings.append)
    inputs = trainer._prepare_inputs(group_batch(trainer, [1, 3, 5, 7]))
    for drift in (0.0, 0.01):
        trainer.compute_loss(trainer.model, {**inputs, "old_per_token_logps": inputs["old_per_token_logps"] - drift})
        logs = {}
        trainer.log(logs)
        assert logs["fipo/noise_floor"] == pytest.approx(drift, abs=1e-6)
    assert len(warnings) == 1 and "log-ratios must be 0, but they move the weights by" in warnings[0]


def test_evaluation_counts_and_changes_nothing(tmp_path):
    trainer = rollout_trainer(tmp_path, first_number_odd_is_random)
    (reward,) = load_rewards([{"regex": {"pattern": "^[0-9]"}}], max_completion_length=8)  # begins with a digit
    state = torch.random.get_rng_state()
    first = evaluate(trainer, tiny.prompts(5), reward, k=6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert trainer.model.training
    assert first == evaluate(trainer, tiny.prompts(5), reward, k=6)
    assert 0 < first.shares["avg@6"] <= first.shares["pass@6"] <= 1
    assert first.shares["greedy"] * 5 == pytest.approx(round(first.shares["greedy"] * 5))
    assert len(first.completions) == 5
