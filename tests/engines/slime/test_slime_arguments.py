"""The knobs as slime's namespace holds them: from flags, from YAML, or not at all."""

import argparse
import math
from argparse import Namespace
from itertools import pairwise

import pytest
import torch

from fipo import FIPOParams, InvalidInputError, InvalidParameterError, token_credit
from fipo.engines.slime import arguments, before_train_step, fipo_loss_function
from fipo.engines.slime.arguments import SETTINGS, add_arguments, check_arguments, params_of
from fipo.engines.slime.hooks import UPDATE_HOOK, Warnings, install_hooks, may_be_first_update
from fipo.engines.slime.layout import response_edges, sharded_sequences


def parse(flags):
    return add_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args(flags.split())


def test_no_flags_are_the_defaults_of_pull_request_1801():
    assert params_of(parse("")) == FIPOParams()


def test_every_knob_has_a_flag_that_overrides_a_preset():
    params = params_of(
        parse(
            "--fipo-preset 32b --no-fipo-clip-high-only --fipo-decay-rate inf --fipo-chunk-size 64 "
            "--fipo-distance trained --fipo-clip-ratio-low 0.1 --fipo-clip-ratio-high 0.3 --fipo-safety-thresh 4 "
            "--fipo-dual-clip-c 5 --fipo-max-dual-clipped 2"
        )
    )
    assert params == FIPOParams(
        decay_rate=math.inf,
        clip_ratio_low=0.1,
        clip_ratio_high=0.3,
        clip_high_only=False,
        safety_thresh=4.0,
        dual_clip_c=5.0,
        max_dual_clipped=2,
        distance="trained",
    )
    assert params_of(parse("--fipo-preset 32b")) == FIPOParams.preset("32b")
    assert set(vars(parse(""))) == {f"fipo_{name}" for name in ("chunk_size", *SETTINGS)}


def test_other_losses_of_slime_are_told(caplog, monkeypatch):
    """They get the weighed advantages, but are not the paper's."""
    monkeypatch.setattr(arguments, "_told", set())
    args = Namespace(fipo_decay_rate=32.0, use_tis=False, use_rollout_logprobs=False, advantage_estimator="gspo")
    for _ in range(2):
        assert check_arguments(args) == FIPOParams()
    (record,) = caplog.records
    assert "slime's own gspo loss gets the weighed advantages" in record.message


def test_raw_flags_on_stock_train_py_fail_at_the_first_loss():
    """slime dropped them, so no fipo_… is in the namespace."""
    with pytest.raises(InvalidParameterError, match="fipo_decay_rate is missing") as error:
        fipo_loss_function(Namespace(use_tis=False, use_rollout_logprobs=False), {}, torch.zeros(1), torch.sum)
    assert "python -m fipo.engines.slime" in str(error.value) and "--custom-config-path" in str(error.value)


def test_yaml_numbers():
    given = {"fipo_decay_rate": "1e2", "fipo_safety_thresh": 3, "fipo_clip_high_only": True}
    assert params_of(Namespace(**given)) == FIPOParams(decay_rate=100.0, safety_thresh=3.0, clip_high_only=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"fipo_clip_high": 0.28}, "fipo_clip_high is set, but must be one of"),
        ({"fipo_decay_rate": "fast"}, "fipo_decay_rate is 'fast', but must be a number"),
        ({"fipo_clip_high_only": "false"}, "fipo_clip_high_only is 'false', but must be true or false"),
        ({"fipo_max_dual_clipped": 1.5}, "fipo_max_dual_clipped is 1.5, but must be a whole number"),
        ({"fipo_dual_clip_c": True}, "fipo_dual_clip_c is True"),
        ({"fipo_preset": "14b"}, "preset is '14b'"),
        ({"fipo_clip_ratio_low": 1.5}, "clip_ratio_low is 1.5"),
    ],
)
def test_yaml_mistakes(given, sentence):
    with pytest.raises(InvalidParameterError, match=sentence):
        params_of(Namespace(**{"fipo_decay_rate": 32.0, **given}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_tis": True, "use_rollout_logprobs": True}, "--use-tis and --use-rollout-logprobs"),
        ({"fipo_control": "mean"}, "fipo_control is 'mean', but must be one of none, uniform, shuffle"),
        ({"fipo_rule": "python:nowhere:rule"}, "fipo_rule is 'python:nowhere:rule', which cannot be imported"),
        ({"eps_clip_c": 3.0}, "--eps-clip-c is 3.0"),
        ({"global_batch_size": 512}, "needs at least 2"),
    ],
)
def test_the_loss_refuses_what_the_launcher_refuses(changes, sentence):
    """For --custom-config-path, where no launcher looked."""
    sizes = {"rollout_batch_size": 32, "n_samples_per_prompt": 16, "global_batch_size": 64}
    right = {
        "use_tis": False,
        "use_rollout_logprobs": False,
        "advantage_estimator": "grpo",
        "eps_clip_c": 10.0,
        **sizes,
    }
    args = Namespace(**right, fipo_decay_rate=32.0)
    assert check_arguments(args) == FIPOParams()
    vars(args).update(changes)
    with pytest.raises(InvalidParameterError, match=sentence):
        check_arguments(args)


@pytest.mark.parametrize("use_rollout_logprobs", [False, True])
def test_without_the_old_policy_there_is_no_fipo(use_rollout_logprobs):
    """slime's own loss would take the current policy, and every weight would be 1."""
    args = Namespace(fipo_decay_rate=32.0, use_tis=False, use_rollout_logprobs=use_rollout_logprobs)
    name = "rollout_log_probs" if use_rollout_logprobs else "log_probs"
    with pytest.raises(InvalidInputError, match=rf'batch\["{name}"\] is None'):
        fipo_loss_function(args, {"log_probs": None, "rollout_log_probs": None}, torch.zeros(1), torch.sum)


def test_response_edges_are_where_the_logits_lie():
    """Counted one logit at a time."""
    for total, response, cp_size in [(8, 5, 1), (24, 4, 2), (32, 30, 2), (2, 1, 4), (45, 41, 4), (20, 19, 3)]:
        chunk = math.ceil(total / (2 * cp_size))
        of_chunk = [
            [p for p in range(j * chunk, (j + 1) * chunk) if total - response - 1 <= p < total - 1]
            for j in range(2 * cp_size)
        ]
        edges = response_edges(total, response, cp_size)
        assert [right - left for left, right in pairwise(edges)] == [len(c) for c in of_chunk]


def test_another_layout_than_zigzag_is_refused():
    batch = {"total_lengths": [24], "response_lengths": [20], "loss_masks": [torch.ones(20)]}
    with pytest.raises(InvalidInputError, match="has 20 of a response's 20 tokens, but by slime's zigzag layout"):
        sharded_sequences(batch, "position", [torch.zeros(20)], cp_rank=0, cp_size=2)


def test_the_hook_named_in_yaml_does_not_call_itself():
    args = Namespace(custom_megatron_before_train_step_hook_path=UPDATE_HOOK, fipo_decay_rate=32.0)
    install_hooks(args)
    before_train_step(args, 0, 3)
    assert args.fipo_update_index == 3


def test_an_older_actor_is_no_noise_and_one_update_enough():
    sizes = {"rollout_batch_size": 4, "n_samples_per_prompt": 16, "global_batch_size": 64}
    args = Namespace(use_tis=False, use_rollout_logprobs=False, fipo_decay_rate=32.0, keep_old_actor=True, **sizes)
    check_arguments(args)
    assert not may_be_first_update(args)


def test_the_hook_tells_the_update_and_calls_the_users_own(monkeypatch):
    calls = []
    load_function = {"mine.hook": lambda *given: calls.append(given[1:])}.__getitem__  # slime's, by path
    monkeypatch.setattr("fipo.engines.slime.hooks.slime_function", {"load_function": load_function}.__getitem__)
    args = Namespace(custom_megatron_before_train_step_hook_path="mine.hook", fipo_decay_rate=32.0)
    assert may_be_first_update(args)
    install_hooks(args)
    for step in (0, 1):
        before_train_step(args, 7, step, "model", "optimizer", "scheduler")
        assert may_be_first_update(args) is (step == 0)
    assert calls == [(7, step, "model", "optimizer", "scheduler") for step in (0, 1)]
    assert params_of(args) == FIPOParams()  # what the hook keeps in the namespace is no knob


@pytest.mark.parametrize("use_rollout_logprobs", [False, True])
def test_noise_is_warned_about_once(caplog, use_rollout_logprobs):
    """Log-ratios of 0.02 at four tokens move their weights by 2.0, 4.1, 6.2 and 8.3 %."""
    mask = torch.tensor([[True, True, True, True, False]])
    args, params = Namespace(use_rollout_logprobs=use_rollout_logprobs), FIPOParams(decay_rate=math.inf)
    credit = token_credit(torch.full((1, 5), 0.02), torch.zeros(1, 5), torch.ones(1), mask, params)
    little = token_credit(torch.full((1, 5), 1e-4), torch.zeros(1, 5), torch.ones(1), mask, params)
    Warnings().see(little, mask, args)
    assert caplog.records == []
    warnings = Warnings()
    for trained in (mask & False, mask, mask):  # of nothing trained nothing is seen
        warnings.see(credit, trained, args)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "5.2%" in record.message
    assert ("--use-rollout-logprobs" in record.message) is use_rollout_logprobs
