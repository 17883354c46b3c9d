"""Defaults are the paper's scaffold; what cannot work is refused with a sentence."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from fipo import FIPOParams, InvalidParameterError
from fipo.params import KNOBS
from fipo.trainer import FIPOConfig


def config(tmp_path, **options):
    return FIPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)


def test_defaults_are_the_papers_scaffold(tmp_path):
    it = config(tmp_path)
    assert it.updates_per_rollout == 8
    assert (it.epsilon, it.epsilon_high, it.beta, it.loss_type) == (0.2, 0.28, 0.0, "dapo")
    assert it.fipo_params == FIPOParams()
    assert it.delta == it.fipo_dual_clip_c == 10.0


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"gradient_accumulation_steps": 4}, {"updates_per_rollout": 8}),
        ({"num_iterations": 3}, {"updates_per_rollout": 3}),
        ({"steps_per_generation": 4}, {"updates_per_rollout": 4}),
        ({"generation_batch_size": 32}, {"updates_per_rollout": 4}),
        ({"fipo_preset": "7b"}, {"fipo_safety_thresh": 3.0}),
        (  # a preset yields to what the user sets
            {"fipo_preset": "32b", "fipo_clip_ratio_high": 0.3},
            {"fipo_params": FIPOParams.preset("32b", clip_ratio_high=0.3)},
        ),
        ({"delta": 4.0}, {"fipo_dual_clip_c": 4.0}),  # one knob
        ({"fipo_dual_clip_c": 5.0}, {"delta": 5.0}),
        ({"fipo_dual_clip_c": 5.0, "delta": 5.0}, {"delta": 5.0}),
    ],
)
def test_what_follows_from_options(tmp_path, options, found):
    it = config(tmp_path, **options)
    assert {name: getattr(it, name) for name in found} == found


REFUSED = [
    ({"steps_per_generation": 1}, r"1 prompts × 8 samples of a rollout feed 1 update .*raise steps_per_generation"),
    ({"gradient_accumulation_steps": 4, "steps_per_generation": 4}, "feed 1 update"),
    ({"gradient_accumulation_steps": 3, "steps_per_generation": 8}, "is 8, but must be a multiple of"),
    ({"fipo_control": "mean"}, "fipo_control is 'mean', but must be one of none, uniform, shuffle"),
    ({"fipo_rule": "mine"}, "fipo_rule is 'mine', which cannot be imported .*write python:package.module:function"),
    ({"fipo_dual_clip_c": 5.0, "delta": 4.0}, r"fipo_dual_clip_c is 5\.0 and delta is 4\.0, but they are one bound"),
    ({"delta": 1.2}, r"fipo_dual_clip_c is 1\.2, but must exceed 1 \+ epsilon_high"),
    ({"fipo_decay_rate": 0.0}, r"decay_rate is 0\.0"),
    ({"fipo_preset": "8b"}, "preset is '8b'"),
    ({"fipo_head_memory": -1.0}, r"fipo_head_memory is -1\.0, but must be a number of at least 0"),
    ({"fipo_dynamic_sampling_rounds": -1}, "fipo_dynamic_sampling_rounds is -1"),
    ({"fipo_dynamic_sampling_rounds": 1, "scale_rewards": "batch"}, "scale_rewards is 'batch' .* set scale_rewards to"),
    ({"sync_ref_model": True}, "sync_ref_model is true, .* set it to false"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_refusals(tmp_path, options, sentence):
    with pytest.raises(InvalidParameterError, match=sentence):
        config(tmp_path, **options)


def test_the_hyper_parameters_are_those_of_the_package():
    """Names, types and help come from FIPOParams' fields."""
    own, hints = {entry.name: entry for entry in fields(FIPOConfig)}, get_type_hints(FIPOConfig)
    for name, knob in KNOBS.items():
        assert own[f"fipo_{name}"].metadata["help"].startswith(knob.help)
        assert isinstance(knob.default, str) or hints[f"fipo_{name}"] == type(knob.default) | None
    assert "fipo_chunk_size" not in own


def test_an_engine_that_accelerate_leaves_out_is_refused(tmp_path, monkeypatch):
    """accelerate runs one process here, and says nothing; no weights are loaded yet."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InvalidParameterError, match="FSDP is asked for, but accelerate runs NO with 1 process"):
        FIPOConfig(str(tmp_path), use_cpu=True)
