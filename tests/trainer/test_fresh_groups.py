"""Groups of equal rewards are replaced, and what is merged belongs together."""

import pytest
import torch
from support import tiny
from support.harness import GROUP, first_number_odd_is_random, group_batch, reward, rollout_trainer

from fipo import InvalidParameterError
from fipo.trainer.fresh_groups import FreshGroups, merge_groups


def test_dynamic_sampling_replaces_groups_of_equal_rewards(tmp_path):
    trainer = rollout_trainer(tmp_path, first_number_odd_is_random, fipo_dynamic_sampling_rounds=20, beta=0.0)
    rollout = trainer._generate_and_score_completions(group_batch(trainer, [2, 3, 4, 6]))
    texts = trainer.processing_class.batch_decode(rollout["prompt_ids"][::GROUP], skip_special_tokens=True)
    prompts = [int(text.split("+")[0]) for text in texts]
    assert prompts[1] == 3, "a group that is alive stays"
    assert all(prompt % 2 for prompt in prompts)
    metrics = trainer._metrics["train"]
    assert metrics["fipo/dynamic_sampling/replaced_groups"] == [3]
    assert metrics["fipo/dynamic_sampling/unfilled_groups"] == [0]
    assert len(metrics["reward"]) == 1, "a rollout reports its own prompts, whatever replaced them"
    assert (rollout["advantages"].view(-1, GROUP).std(-1) > 0.5).all()
    assert rollout["num_items_in_batch"] == rollout["completion_mask"].sum()
    # What was merged still belongs together: scoring the merged rows again gives the merged log-probs.
    logps = tiny.with_old_logps(trainer, {**rollout, "drift": 0})["old_per_token_logps"]
    mask = rollout["completion_mask"].bool()
    torch.testing.assert_close(logps[mask], rollout["old_per_token_logps"][mask], rtol=1e-4, atol=1e-5)


def test_dynamic_sampling_ends_at_its_limit_and_counts(tmp_path):
    trainer = rollout_trainer(tmp_path, reward, fipo_dynamic_sampling_rounds=2)
    trainer._generate_and_score_completions(group_batch(trainer, [0, 1, 2, 3]))
    assert trainer._metrics["train"]["fipo/dynamic_sampling/unfilled_groups"] == [4]
    assert trainer._metrics["train"]["fipo/dynamic_sampling/rounds"] == [2]
    assert trainer.fresh_groups.drawn == 8


def test_groups_spread_over_ranks_are_refused(tmp_path):
    """What two ranks would see: a rank's share of 2 × 2 sequences cannot hold groups of 8."""
    trainer = rollout_trainer(tmp_path, first_number_odd_is_random, num_generations=8, per_device_train_batch_size=4)
    trainer.args.per_device_train_batch_size, trainer.args.steps_per_generation = 2, 2
    with pytest.raises(InvalidParameterError, match=r"is 4, but dynamic sampling needs a multiple of num_generations"):
        FreshGroups(trainer, trainer._scored_rollout)


def test_widened_completions_end_in_padding():
    """A truncated completion that is masked as a whole is recognised by its padding alone, in traces."""
    rollout = {"completion_ids": torch.tensor([[5, 6, 7, 8]] * 2), "completion_mask": torch.zeros(2, 4, dtype=int)}
    fresh = {"completion_ids": torch.arange(9, 21).view(2, 6), "completion_mask": torch.ones(2, 6, dtype=int)}
    merge_groups(rollout, fresh, [(1, 0)], size=1, pad_token_id=99)
    assert rollout["completion_ids"].tolist() == [[5, 6, 7, 8, 99, 99], [9, 10, 11, 12, 13, 14]]
    assert rollout["completion_mask"].sum(-1).tolist() == [0, 6]
