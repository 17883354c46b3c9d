"""Rollouts of a real (tiny) model: dynamic sampling, failed rewards, noise floor, evaluation."""

import random

import pytest
import torch
from support import tiny

from fipo import DataError, InvalidParameterError
from fipo.run.evaluate import evaluate
from fipo.run.rewards import load_rewards
from fipo.trainer import FIPOConfig, FIPOTrainer

GROUP = 4


def make(tmp_path, rewards, **options):
    settings = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "num_generations": GROUP,
        "per_device_train_batch_size": GROUP,
        "steps_per_generation": 4,
        "max_completion_length": 8,
        "gradient_checkpointing": False,
        **options,
    }
    trainer = FIPOTrainer(
        tiny.model(),
        rewards,
        FIPOConfig(str(tmp_path), **settings),
        train_dataset=tiny.prompts(16),
        processing_class=tiny.tokenizer(),
    )
    trainer.model.train()
    return trainer


def group_batch(trainer, indices):
    return [trainer.train_dataset[index] for index in indices for _ in range(GROUP)]


def even_prompts_are_dead(prompts, completions, **_):
    generator = random.Random(0)
    return [generator.random() if int(prompt.split("+")[0]) % 2 else 1.0 for prompt in prompts]


def prompts_of(trainer, rollout):
    texts = trainer.processing_class.batch_decode(rollout["prompt_ids"][::GROUP], skip_special_tokens=True)
    return [int(text.split("+")[0]) for text in texts]


def test_dynamic_sampling_replaces_groups_of_equal_rewards(tmp_path):
    trainer = make(tmp_path, even_prompts_are_dead, fipo_dynamic_sampling_rounds=20, beta=0.0)
    rollout = trainer._generate_and_score_completions(group_batch(trainer, [2, 3, 4, 6]))
    prompts = prompts_of(trainer, rollout)
    assert prompts[1] == 3, "a group that is alive stays"
    assert all(prompt % 2 for prompt in prompts)
    metrics = trainer._metrics["train"]
    assert metrics["fipo/dynamic_sampling/replaced_groups"] == [3]
    assert metrics["fipo/dynamic_sampling/unfilled_groups"] == [0]
    assert len(metrics["reward"]) == 1, "a rollout reports its own prompts, whatever replaced them"
    advantages = rollout["advantages"].view(-1, GROUP)
    assert (advantages.std(-1) > 0.5).all()
    assert rollout["num_items_in_batch"] == rollout["completion_mask"].sum()
    # What was merged still belongs together: scoring the merged rows again gives the merged log-probs.
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1),
        torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1),
        rollout["completion_ids"].shape[1],
    )
    mask = rollout["completion_mask"].bool()
    torch.testing.assert_close(logps[mask], rollout["old_per_token_logps"][mask], rtol=1e-4, atol=1e-5)


def test_dynamic_sampling_ends_at_its_limit_and_counts(tmp_path):
    trainer = make(tmp_path, lambda completions, **_: [1.0] * len(completions), fipo_dynamic_sampling_rounds=2)
    trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    assert trainer._metrics["train"]["fipo/dynamic_sampling/unfilled_groups"] == [4]
    assert trainer._metrics["train"]["fipo/dynamic_sampling/rounds"] == [2]
    assert trainer._fresh_prompts == 8


def test_groups_spread_over_ranks_are_refused(tmp_path):
    """What two ranks would see: a rank's share of 2 × 2 sequences cannot hold groups of 8."""
    trainer = make(tmp_path, even_prompts_are_dead, num_generations=8, per_device_train_batch_size=4)
    trainer.args.fipo_dynamic_sampling_rounds = 1
    trainer.args.per_device_train_batch_size, trainer.args.steps_per_generation = 2, 2
    with pytest.raises(InvalidParameterError, match=r"is 4, but dynamic sampling needs a multiple of num_generations"):
        trainer._refuse_unfit_data()


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
    trainer = make(tmp_path, rewards)
    rollout = trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    assert trainer._metrics["train"]["rewards/failed"] == [1]
    assert rollout["advantages"][0] == 0
    assert rollout["advantages"][1] != 0
    assert rollout["tool_mask"][0].sum() == 0
    assert rollout["tool_mask"][1:].all()
    assert rollout["num_items_in_batch"] == rollout["completion_mask"][1:].sum()
    assert rewards[0].failures == 1


def test_without_any_score_a_run_ends(tmp_path):
    def nothing(completions, **_):
        return [None] * len(completions)

    nothing.failed = [True] * 4 * GROUP
    trainer = make(tmp_path, nothing)
    for _ in range(2):
        trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    with pytest.raises(DataError, match="raised for every sample of 3 rollouts in a row"):
        trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))


def test_the_noise_floor_is_zero_and_warns_when_it_is_not(tmp_path, monkeypatch):
    trainer = make(tmp_path, even_prompts_are_dead)
    warnings = []
    monkeypatch.setattr("fipo.trainer.trainer.logger.warning", warnings.append)
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(group_batch(trainer, [1, 3, 5, 7]))
    for drift in (0.0, 0.01):
        trainer.compute_loss(trainer.model, {**inputs, "old_per_token_logps": inputs["old_per_token_logps"] - drift})
        metrics = trainer._credit["train"].reduce(trainer.accelerator)
        assert metrics["fipo/noise_floor"] == pytest.approx(drift, abs=1e-6)
        trainer._warn_of_noise(metrics["fipo/noise_weight_shift"])
    (warning,) = warnings
    assert "log-ratios must be 0, but they move the weights by" in warning


def test_evaluation_counts_and_changes_nothing(tmp_path):
    trainer = make(tmp_path, even_prompts_are_dead)
    (reward,) = load_rewards(["regex?pattern=^%5B0-9%5D"], max_completion_length=8)  # begins with a digit
    state = torch.random.get_rng_state()
    first = evaluate(trainer, tiny.prompts(5), reward, k=6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert trainer.model.training
    assert first == evaluate(trainer, tiny.prompts(5), reward, k=6)
    assert 0 < first.avg_at_k <= first.pass_at_k <= 1
    assert first.greedy * 5 == pytest.approx(round(first.greedy * 5))
    assert len(first.completions) == 5
