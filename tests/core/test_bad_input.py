"""Bad input ends in one sentence that names the value, the expectation and the remedy."""

import json
import math
import re
from dataclasses import asdict, fields
from fractions import Fraction

import numpy as np
import pytest
import torch

from fipo import FIPOParams, InvalidInputError, InvalidParameterError, fipo_loss, future_kl, token_mean
from fipo.params import KNOBS

BAD_KNOBS = {
    "decay_rate": (0.0, -1.0, math.nan, True, "32"),
    "clip_ratio_low": (1.0, -0.1),
    "clip_ratio_high": (-0.1, math.inf),
    "clip_high_only": ("false", 1, np.True_),
    "dual_clip_c": (1.0, math.nan),
    "safety_thresh": (0.9,),
    "max_dual_clipped": (-1, 1.5, True),
    "distance": ("tokens", 0),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_KNOBS.items() for value in values])
def test_knobs_out_of_range(name, value):
    with pytest.raises(InvalidParameterError, match=f"{name} is {value!r}, but must be .*; change {name}"):
        FIPOParams(**{name: value})


def test_numbers_of_any_kind_become_pythons_own():
    """Others fail later, in the loss or in JSON."""
    params = FIPOParams(
        decay_rate=np.float32(8), clip_ratio_low=Fraction(1, 4), safety_thresh=3, max_dual_clipped=np.int64(2)
    )
    assert [type(value) for value in asdict(params).values()] == [float, float, float, bool, float, float, int, str]
    assert FIPOParams(**json.loads(json.dumps(asdict(params)))) == params
    with pytest.raises(InvalidParameterError, match="dual_clip_c is '100000000…', but must be"):
        FIPOParams(dual_clip_c=10**400)


def test_every_knob_is_stated_once():
    assert list(KNOBS) == [field.name for field in fields(FIPOParams)]
    for name, knob in KNOBS.items():
        assert getattr(FIPOParams(), name) == knob.default == knob.checked(name, knob.default)
        assert knob.help.endswith(".")


def test_presets_of_the_paper():
    small, large = FIPOParams.preset("7b"), FIPOParams.preset("32b", decay_rate=64.0)
    assert (small.weight_low, small.weight_high, small.safety_thresh) == (0.8, 1.2, 3.0)
    assert (large.weight_low, large.weight_high, large.decay_rate) == (1.0, 1.2, 64.0)
    for wrong in ("8b", []):
        with pytest.raises(InvalidParameterError, match=re.escape(f"preset is {wrong!r}, but must be one of")):
            FIPOParams.preset(wrong)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"old_logps": torch.zeros(2, 4)}, r"old_logps has shape \(2, 4\), but logps has \(2, 3\)"),
        ({"loss_mask": torch.ones(3)}, r"loss_mask has shape \(3,\), but logps has \(2, 3\)"),
        ({"advantages": torch.ones(3)}, r"advantages have shape \(3,\), but must have \(2,\), \(2, 1\) or \(2, 3\)"),
        ({"logps": torch.zeros(2, 3, dtype=torch.long)}, "logps has dtype torch.int64, but must be floating point"),
        ({"logps": torch.zeros(6)}, r"logps has shape \(6,\), but must be \(B, T\)"),
        ({"carry": torch.zeros(3)}, r"carry has shape \(3,\), but must be \(2,\)"),
        ({"old_logps": torch.zeros(2, 3, device="meta")}, r"old_logps is on meta, but logps is on \S+; move"),
        ({"epsilon_low": 1.5}, r"epsilon_low is 1\.5"),
    ],
)
def test_arguments_that_do_not_fit(changed, sentence):
    arguments = {"logps": torch.zeros(2, 3), "old_logps": torch.zeros(2, 3), "advantages": torch.ones(2)}
    arguments |= {"loss_mask": torch.ones(2, 3), "params": FIPOParams()}
    with pytest.raises((InvalidInputError, InvalidParameterError), match=sentence):
        fipo_loss(**arguments | changed)


@pytest.mark.parametrize("cu_seqlens", [[1, 6], [0, 5], [0, 4, 3, 6], [0.0, 6.0], []])
def test_boundaries_that_do_not_rise_from_zero_to_the_number_of_tokens(cu_seqlens):
    with pytest.raises(InvalidInputError, match=r"cu_seqlens is .*rise from 0 to 6"):
        future_kl(torch.zeros(6), torch.ones(6), FIPOParams(), cu_seqlens=torch.tensor(cu_seqlens))


def test_token_mean_of_mismatched_shapes():
    with pytest.raises(InvalidInputError, match=r"mask has shape \(3,\), but values have \(2,\)"):
        token_mean(torch.zeros(2), torch.ones(3))
