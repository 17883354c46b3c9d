"""The analysis on traces whose answers are known."""

import numpy as np
import pytest

from fipo import DataError
from fipo.traces import Trace, TraceSet
from fipo.traces.analysis import analyze, lower_share


def traces(log_ratios, updates=None):
    rows = []
    for log_ratio, update in zip(log_ratios, updates or [1] * len(log_ratios), strict=True):
        n = len(log_ratio)
        columns = {"log_ratio": np.array(log_ratio, dtype="float32"), "trained": np.ones(n, bool)}
        columns |= {"advantages": np.ones(n, "float32"), "flags": np.zeros(n, "uint8")}
        rows.append(Trace(token_ids=np.arange(n, dtype="int32"), token_bytes=[b"x"] * n, update=update, **columns))
    return TraceSet(rows)


def test_no_drift_is_almost_grpo_and_a_control_is_analysed_by_the_weights_it_gave():
    rows = traces([[0.01] * 50])
    rows.control, rows[0].weight = "none", np.ones(50, "float32")
    still, control = analyze(traces([[0.0] * 50] * 4)), analyze(rows)
    for found in (still, control):
        assert found["weight"]["mean"] == 1 and found["weight"]["std"] == 0
    assert [any("almost GRPO" in warning for warning in one["warnings"]) for one in (still, control)] == [True, False]
    assert control["what_if"][0]["std"] > 0


def test_saturation_is_named_with_its_share():
    found = analyze(traces([[0.1] * 1000]))
    share = found["weight"]["at_high"]
    assert share > 0.99  # only the last tokens have less than 0.18 nat ahead
    assert any(warning.startswith(f"{share:.0%} of weights sit at the upper bound") for warning in found["warnings"])
    wide = next(row for row in found["what_if"] if row["decay_rate"] == 4 and row["clip_ratio"] == 0.5)
    assert 0 < wide["at_high"] < share


def test_the_noise_floor_is_of_update_zero():
    found = analyze(traces([[0.01] * 100, [0.0] * 100], updates=[0, 1]))
    assert found["noise_floor"]["log_ratio"] == pytest.approx(0.01)
    assert any("first update after a rollout" in warning for warning in found["warnings"])
    assert analyze(traces([[0.01] * 100]))["noise_floor"] is None


def test_rounding_is_told_where_the_forward_is_known():
    still, moved = [0.0] * 100, [0.001, -0.001] * 50
    rows = traces([still, moved, [0.1] * 100], updates=[0, 1, 1])
    assert analyze(rows)["rounding"] is None
    rows.log_ratio_error = 0.044
    found = analyze(rows)
    assert 0.05 < found["rounding"]["weight"] < 0.15 and 0.4 < found["rounding"]["unsure"] < 0.6  # all of `moved`
    assert any(warning.startswith("Rounding: the precision in which") for warning in found["warnings"])
    rows.log_ratio_error = 0.0
    assert analyze(rows)["rounding"] == {"log_ratio": 0.0, "weight": 0.0, "unsure": 0.0}
    assert analyze(traces([still], updates=[0]))["rounding"] is None


def test_every_trained_token_is_in_each_table_once():
    rows = traces([np.linspace(-0.1, 0.1, 12)] * 2)
    rows[0].token_bytes = [b" Wait", b"42", b" *", b"),", b"\n", b"so"] * 2
    rows[1].rollout, rows[1].trained = 8, np.arange(12) > 2
    found = analyze(rows)
    for table in ("parts", "kinds", "rollouts"):
        assert sum(row["tokens"] for row in found[table]) == found["tokens"] == 21
    kinds = {row["kind"]: row["tokens"] for row in found["kinds"]}
    assert kinds == dict.fromkeys(["digits", "operators", "punctuation", "reflection words", "white space"], 2) | {
        "other": 11
    }
    assert {row["rollout"] for row in found["rollouts"]} == {0, 8}
    (often,) = found["amplified"]  # six of them are no token that occurs often
    assert (often["token"], often["tokens"]) == ("x", 9)
    assert lower_share(0.9, 10) == pytest.approx(0.5958, abs=1e-4)  # Wilson, 1927


def test_what_is_not_finite_is_said():
    found = analyze(traces([[float("nan"), 0.1]]))
    assert "1 tokens have a log-ratio or weight that is not finite" in found["warnings"][0]


def test_traces_without_log_ratios():
    bare = Trace(token_ids=np.zeros(3, "int32"), token_bytes=[b"a"] * 3, trained=np.ones(3, bool))
    with pytest.raises(DataError, match="No trace holds log-ratios"):
        analyze(TraceSet([bare]))
