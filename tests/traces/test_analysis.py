"""The analysis on traces whose answers are known."""

import json

import numpy as np
import pytest

from fipo import DataError, FIPOParams
from fipo.traces import Trace, TraceSet
from fipo.traces.analysis import analyze


def traces(log_ratios, params=None, updates=None, advantage=1.0):
    updates = updates or [1] * len(log_ratios)
    rows = []
    for log_ratio, update in zip(log_ratios, updates, strict=True):
        n = len(log_ratio)
        ids = np.arange(n, dtype="int32")
        columns = {"log_ratio": np.array(log_ratio, dtype="float32"), "trained": np.ones(n, bool)}
        columns |= {"advantages": np.full(n, advantage, "float32"), "flags": np.zeros(n, "uint8")}
        rows.append(Trace(token_ids=ids, token_bytes=[b"x"] * n, update=update, **columns))
    return TraceSet(rows, params)


def test_no_drift_is_almost_grpo():
    found = analyze(traces([[0.0] * 50] * 4))
    assert found["weight"]["mean"] == 1
    assert found["weight"]["std"] == 0
    assert any("almost GRPO" in warning for warning in found["warnings"])


def test_saturation_is_named_with_its_share():
    found = analyze(traces([[0.1] * 1000]))
    share = found["weight"]["at_high"]
    assert share > 0.99  # only the last tokens have less than 0.18 nat ahead
    assert any(warning.startswith(f"{share:.0%} of weights sit at the upper bound") for warning in found["warnings"])
    wide = next(row for row in found["what_if"] if row["decay_rate"] == 4 and row["clip_ratio"] == 0.5)
    assert 0 < wide["at_high"] < share


def test_variance_goes_with_what_made_it():
    rng = np.random.default_rng(1)
    own = traces(0.05 * rng.normal(size=(40, 200)), FIPOParams(decay_rate=0.05))  # a half-life far below one token
    found = analyze(own)["explained"]
    assert found["own_log_ratio"] > 0.95
    assert found["position"] < 0.02
    assert found["chance"] < 0.02
    ramp = traces([np.full(200, 0.0005)] * 40, FIPOParams(decay_rate=float("inf")))
    assert analyze(ramp)["explained"]["position"] > 0.95


def test_the_noise_floor_is_of_update_zero():
    found = analyze(traces([[0.01] * 100, [0.0] * 100], updates=[0, 1]))
    assert found["noise_floor"]["log_ratio"] == pytest.approx(0.01)
    assert any("first update after a rollout" in warning for warning in found["warnings"])
    assert analyze(traces([[0.01] * 100]))["noise_floor"] is None


@pytest.mark.parametrize("huge", [3e38, -3e38])
def test_hostile_numbers_give_strict_json(huge):
    params = FIPOParams(decay_rate=float("inf"), clip_ratio_high=1e308)
    rows = traces([[huge] * 1000, [float("nan"), 0.1]], params, [0, 0])
    for row in rows:
        row.weight = np.full(len(row.token_ids), 3e38, "float32")
    for rows.control in ("none", None):
        found = analyze(rows)
        json.dumps(found, allow_nan=False)
        if rows.control:
            assert "1 tokens have a log-ratio or weight that is not finite" in found["warnings"][0]


def test_traces_without_log_ratios():
    bare = Trace(token_ids=np.zeros(3, "int32"), token_bytes=[b"a"] * 3, trained=np.ones(3, bool))
    with pytest.raises(DataError, match="No trace holds log-ratios"):
        analyze(TraceSet([bare]))


def test_a_control_is_analysed_by_the_weights_it_gave():
    rows = traces([[0.01] * 50])
    rows.control = "none"
    rows[0].weight = np.ones(50, "float32")
    found = analyze(rows)
    assert found["weight"]["mean"] == 1 and found["weight"]["std"] == 0
    assert found["what_if"][0]["std"] > 0
