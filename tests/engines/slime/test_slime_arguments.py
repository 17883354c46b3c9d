"""The knobs as slime's namespace holds them: from flags, from YAML, or not at all."""

import argparse
import math
from argparse import Namespace

import pytest
import torch
from support.knobs import OTHERS

from fipo import FIPOParams, InvalidInputError, InvalidParameterError, token_credit
from fipo.engines.slime import arguments, before_train_step, fipo_loss_function
from fipo.engines.slime.arguments import SETTINGS, add_arguments, check_arguments, params_of
from fipo.engines.slime.hooks import UPDATE_HOOK, Warnings, install_hooks, may_be_first_update
from fipo.engines.slime.layout import sharded_sequences


def parse(flags):
    return add_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args(flags.split())


def namespace(**given):
    return Namespace(**{"fipo_decay_rate": 32.0, "use_tis": False, "use_rollout_logprobs": False, **given})


def test_every_knob_has_a_flag_that_overrides_a_preset():
    flags = [f"--fipo-{name.replace('_', '-')} {value}" for name, value in OTHERS.items() if name != "clip_high_only"]
    found = params_of(parse(f"--fipo-preset 32b --no-fipo-clip-high-only --fipo-chunk-size 64 {' '.join(flags)}"))
    assert found == FIPOParams(**OTHERS | {"clip_high_only": False})
    assert params_of(parse("--fipo-preset 32b")) == FIPOParams.preset("32b")
    assert params_of(parse("")) == FIPOParams()  # the defaults of pull request 1801
    assert set(vars(parse(""))) == {f"fipo_{name}" for name in ("chunk_size", *SETTINGS)}


def test_other_losses_of_slime_are_told(caplog, monkeypatch):
    """They get the weighed advantages, but are not the paper's."""
    monkeypatch.setattr(arguments, "_told", set())
    args = namespace(advantage_estimator="gspo")
    for _ in range(2):
        assert check_arguments(args) == FIPOParams()
    (record,) = caplog.records
    assert "slime's own gspo loss gets the weighed advantages" in record.message


def test_bfloat16_is_told(caplog, monkeypatch):
    monkeypatch.setattr(arguments, "_told", set())
    check_arguments(namespace(fp16=True))
    assert not caplog.records
    for _ in range(2):
        check_arguments(namespace(fp16=False))
    (record,) = caplog.records
    assert "moves the weights by about 14" in record.message and "pass --fp16" in record.message


def test_yaml_numbers():
    given = {"fipo_decay_rate": "1e2", "fipo_safety_thresh": 3, "fipo_clip_high_only": True}
    assert params_of(Namespace(**given)) == FIPOParams(decay_rate=100.0, safety_thresh=3.0, clip_high_only=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"fipo_clip_high": 0.28}, "fipo_clip_high is set, but must be one of"),
        ({"fipo_decay_rate": "fast"}, "fipo_decay_rate is 'fast', but must be a number"),
        ({"fipo_clip_high_only": "false"}, "fipo_clip_high_only is 'false', but must be true or false"),
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
        ({"use_tis": True, "use_rollout_logprobs": True}, "--use-tis and --use-rollout-logprobs are.*drop one"),
        ({"fipo_control": "mean"}, "fipo_control is 'mean', but must be one of none, uniform, shuffle"),
        ({"fipo_rule": "python:nowhere:rule"}, "fipo_rule is 'python:nowhere:rule', but there is no module nowhere"),
        ({"eps_clip_c": 3.0}, "--eps-clip-c is 3.0 and --fipo-dual-clip-c is 10.0"),
        ({"qkv_format": "bshd"}, "--qkv-format is bshd"),
        (
            {"global_batch_size": 512},
            "32 prompts × 16 samples = 512 samples gives 1 update of global batch size 512, .*at least 2, .*at most "
            "256 .*--num-steps-per-rollout to at least 2",
        ),
        ({"global_batch_size": 300}, "1 update of global batch size 300"),  # slime leaves out what fills no batch
    ],
)
def test_the_loss_refuses_what_the_launcher_refuses(changes, sentence):
    """For --custom-config-path, where no launcher looked."""
    sizes = {"rollout_batch_size": 32, "n_samples_per_prompt": 16, "global_batch_size": 64}
    args = namespace(advantage_estimator="grpo", eps_clip_c=10.0, qkv_format="thd", **sizes)
    assert check_arguments(args) == FIPOParams()
    vars(args).update(changes)
    with pytest.raises(InvalidParameterError, match=sentence):
        check_arguments(args)


def test_an_older_actor_is_no_noise_and_one_update_enough():
    args = namespace(rollout_batch_size=4, n_samples_per_prompt=16, global_batch_size=64, keep_old_actor=True)
    assert check_arguments(args) == FIPOParams()
    assert not may_be_first_update(args)


@pytest.mark.parametrize("use_rollout_logprobs", [False, True])
def test_without_the_old_policy_there_is_no_fipo(use_rollout_logprobs):
    """slime's own loss would take the current policy, and every weight would be 1."""
    args = namespace(use_rollout_logprobs=use_rollout_logprobs)
    name = "rollout_log_probs" if use_rollout_logprobs else "log_probs"
    with pytest.raises(InvalidInputError, match=rf'batch\["{name}"\] is None'):
        fipo_loss_function(args, {"log_probs": None, "rollout_log_probs": None}, torch.zeros(1), torch.sum)


def test_another_layout_than_zigzag_is_refused():
    batch = {"total_lengths": [24], "response_lengths": [20], "loss_masks": [torch.ones(20)]}
    with pytest.raises(InvalidInputError, match="has 20 of a response's 20 tokens, but by slime's zigzag layout"):
        sharded_sequences(batch, "position", [torch.zeros(20)], cp_rank=0, cp_size=2)


def test_the_hook_tells_the_update_and_calls_the_users_own(monkeypatch):
    calls = []
    load_function = {"mine.hook": lambda *given: calls.append(given[1:])}.__getitem__  # slime's, by path
    monkeypatch.setattr("fipo.engines.slime.hooks.slime_function", {"load_function": load_function}.__getitem__)
    for own in ("mine.hook", UPDATE_HOOK):  # fipo's, named in YAML, does not call itself
        args = Namespace(custom_megatron_before_train_step_hook_path=own, fipo_decay_rate=32.0)
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
    credit, little = (
        token_credit(torch.full((1, 5), ratio), torch.zeros(1, 5), torch.ones(1), mask, params)
        for ratio in (0.02, 1e-4)
    )
    Warnings().see(little, mask, args)
    assert caplog.records == []
    warnings = Warnings()
    for trained in (mask & False, mask, mask):  # of nothing trained nothing is seen
        warnings.see(credit, trained, args)
    (record,) = caplog.records
    assert "5.2%" in record.message
    assert ("--use-rollout-logprobs" in record.message) is use_rollout_logprobs
