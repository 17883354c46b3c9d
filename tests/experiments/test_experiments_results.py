"""Results are whole or named, a series goes on where it stopped, and the report's figures are right by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rliable import metrics

from experiments import protocol, report, run, statistics
from experiments.protocol import ABLATIONS, ARMS, CONFIRMED, FIPO, SERIES, SETTINGS, SIGNED, SIGNED_SEEDS, Run
from experiments.results import read_result, read_results, write_result
from experiments.train import Batch, policy_loss
from fipo import DataError

pytestmark = pytest.mark.beside

SHORT = SETTINGS["short"]
MEASURED = {
    "rollouts": {"samples": [8.0, 16.0], "reward": [0.25, 0.5]},
    "evaluations": {"samples": [0.0, 8.0, 16.0], "accuracy": [0.2, 0.4, 0.8]},
}


KEPT = protocol.RESULTS


@pytest.fixture(autouse=True)
def results_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "REPETITIONS", 200)
    monkeypatch.setattr(protocol, "RESULTS", tmp_path)
    return tmp_path


def test_the_protocol_names_every_run_once():
    of = {name: series() for name, series in SERIES.items()}
    runs = [run for series in of.values() for run in series]
    assert len({one.name for one in runs}) == len(runs) == len({one.file for one in runs})
    assert len([one for one in of["main"] if one.setting.name == "long" and one.arm is FIPO]) >= 10
    assert all(one.arm.control == "none" for one in of["select"]), "the rate is chosen on GRPO alone"
    assert len({replace(arm, name="", control=None) for arm in ARMS}) == 1, "arms differ in the control alone"
    seeds = {name: {run.seed for run in series} for name, series in of.items()}
    assert not seeds["select"] & seeds["main"] and not seeds["confirm"] & seeds["ablations"]
    assert all(not seeds["signed"] & other for name, other in seeds.items() if name != "signed"), (
        "none looked at before"
    )


def test_kept_results_are_read_though_settings_came_and_went(monkeypatch):
    """Else `make evidence` would run for hours and empty the document."""
    monkeypatch.setattr(protocol, "RESULTS", KEPT)
    runs = [run for series in SERIES.values() for run in series()]
    results, excluded = read_results(runs)
    assert set(excluded) == {run.name for run in runs if not run.file.exists()}
    assert len(results) >= 219


def test_signed_weights_point_up_where_the_log_ratio_agrees_with_the_advantage():
    """Above 1 for what grew likelier in a right response or less so in a wrong one; and the loss is scaled alike."""
    old = torch.zeros(2, 3)
    new, advantages, mask = torch.tensor([[0.1, -0.1, 0.0]] * 2), torch.tensor([1.0, -1.0]), torch.ones(2, 3).bool()
    run = Run(SHORT, SIGNED[1], SIGNED_SEEDS[0])
    loss, out = policy_loss(run, Batch(new, old, advantages, mask), torch.Generator())
    expected = torch.tensor([[0.1, -0.1, 0.0], [-0.1, 0.1, 0.0]]).exp()
    torch.testing.assert_close(out.weight, expected)
    surrogate = -(advantages[:, None] * new.exp() * expected)
    torch.testing.assert_close(loss, surrogate.mean())


def rewrite(change):
    return lambda file: file.write_text(change(file.read_text()))


def replaced(make):
    return lambda file: (file.unlink(), make(file))


ANOTHER_RATE = Run(replace(SHORT, learning_rate=0.5), FIPO, 1)
SPOILS = {
    "text": rewrite(lambda text: text[:-40]),
    "number": rewrite(lambda text: text.replace("0.8", "0.9")),
    "type": rewrite(lambda text: "[1, 2]"),
    "bytes": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "folder": replaced(lambda file: file.mkdir()),
    "knob": replaced(lambda file: write_result(ANOTHER_RATE, MEASURED)),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_spoiled_result_is_left_out_by_name_and_made_again(spoil, results_folder, capsys):
    good, bad, absent = (Run(SHORT, FIPO, seed) for seed in range(3))
    write_result(good, MEASURED)
    assert [file.name for file in results_folder.rglob("*") if file.is_file()] == ["0.json"]
    write_result(bad, MEASURED)
    spoil(bad.file)
    with pytest.raises(DataError, match=bad.name):
        read_result(bad)
    results, excluded = read_results([good, bad, absent])
    assert list(results) == [good] and results[good]["evaluations"] == MEASURED["evaluations"]
    assert list(excluded) == [bad.name, absent.name] and "not run" in excluded[absent.name]
    assert "not run" not in excluded[bad.name]
    listed = report.excluded_list(excluded, 3)
    assert bad.name in listed and absent.name in listed and "1 of 3" in listed
    assert run.missing([good, bad, absent]) == [bad, absent]
    printed = capsys.readouterr().out
    assert "1 of 3 runs are done" in printed and bad.name in printed and absent.name not in printed


def test_interquartile_mean_and_area_by_hand():
    values = (0.9, 0.1, 0.5, 0.4, 0.6, 0.2, 0.8, 0.3)  # the middle half: 0.3 0.4 0.5 0.6
    middle, low, high = statistics.interquartile_mean(values)
    assert middle == pytest.approx(0.45) and 0.1 <= low < 0.45 < high <= 0.9
    for seeds in (1, 3, 5, 8):
        expected = metrics.aggregate_iqm(np.array(values[:seeds])[:, None])
        assert statistics.interquartile_mean(values[:seeds])[0] == pytest.approx(expected)
    assert statistics.area_under_curve(MEASURED) == pytest.approx((0.3 * 8 + 0.6 * 8) / 16)
    assert statistics.final_accuracy(MEASURED) == 0.8


def test_comparisons_by_hand():
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.9, 7: 0.0}, {0: 0.4, 1: 0.6, 2: 0.8, 9: 1.0}
    np.testing.assert_allclose(statistics.paired_difference(ours, theirs), (0.1, 0.1, 0.1))  # of shared seeds only
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.6, 1: 0.8}
    wins = sum(a > b for a in ours.values() for b in theirs.values())  # 0.7 > 0.6, 0.9 > both
    assert statistics.probability_of_improvement(ours, theirs)[0] == pytest.approx(wins / 6) == 0.5
    ours, theirs = {0: 0.3, 1: 0.2, 2: 0.1, 7: 0.0}, {0: 0.0, 1: 0.0, 2: 0.2, 9: 1.0}
    # differences 0.3, 0.2, -0.1: of the 8 sums, ±0.6 and ±0.4 are as far from 0 as theirs
    assert statistics.sign_flip_p(ours, theirs) == pytest.approx(4 / 8)
    assert statistics.sign_flip_p({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0)) == pytest.approx(2 / 8)


def test_ablations_are_compared_with_the_grpo_of_their_own_scaffold():
    found = {
        arm.name: protocol.baseline(arm).name for arms in ABLATIONS.values() for arm in arms if arm.control != "none"
    }
    assert found["updates_16"] == "grpo_updates_16" and found["bf16"] == "grpo_bf16"
    assert found["uniform_rate_0.0001"] == found["fipo_rate_0.0001"] == "grpo_rate_0.0001"
    assert {found[name] for name in ("decay_4", "decay_inf", "clip_0.5", "high_only", "unguarded")} == {"grpo"}


def test_only_seeds_that_chose_nothing_confirm():
    decay_8 = next(arm for arm in CONFIRMED if arm.name == "decay_8")
    ends = {(decay_8, 0): 0.9, (decay_8, 5): 0.5, (decay_8, 6): 0.6, (FIPO, 0): 0.2, (FIPO, 5): 0.25, (FIPO, 6): 0.25}
    results = {
        Run(SHORT, arm, seed): {**MEASURED, "evaluations": {"samples": [0.0, 16.0], "accuracy": [0.2, end]}}
        for (arm, seed), end in ends.items()
    }
    assert report.blocks(results, {}, 0)["confirmation"].splitlines()[2].endswith("| +25.0, +35.0 |")
