"""slime's own train.py, with Ray and Megatron on gloo: two rollouts of four updates."""

from collections import Counter

import numpy as np
import pytest
from debug_dumps import GROUP_SIZE, GROUPS, ROLLOUTS

from fipo.traces import FLAGS, read_traces

pytestmark = [pytest.mark.slime, pytest.mark.timeout(1800)]
# Two layouts sum the products behind a log-prob in two orders, so that it may differ by its spacing in float32, 4.8e-7
# from 4 to 8. A weight, at most 1.28, is exp of a sum of 1 / (1 − γ) = 47 log-ratios, and differs by 2.9e-5.
WEIGHT_ERROR = 1.28 * 47 * float(np.spacing(np.float32(4)))
TOLERANCE = {"rel": WEIGHT_ERROR, "abs": WEIGHT_ERROR}
RARE = ("fipo/safety_capped", "fipo/dual_clipped", "fipo/dropped_sequences")


def assert_same(found, expected):
    """Loss, gradient norm and every other metric of every update."""
    assert found and found == [pytest.approx(metrics, **TOLERANCE) for metrics in expected]


def test_weights_are_one_at_the_first_update_of_a_rollout_and_no_other(updates):
    """The command line of slime's pull request 1801."""
    run = updates("fipo")
    assert len(run) == ROLLOUTS * GROUPS
    for update, metrics in enumerate(run):
        if update % GROUPS == 0:
            assert metrics["fipo/weight_mean"] == 1 and metrics["fipo/policy_kl"] == 0
            assert metrics["fipo/noise_floor"] == metrics["fipo/noise_weight_shift"] == 0
        else:
            assert 1.01 < metrics["fipo/weight_mean"] <= 1.28 and metrics["fipo/policy_kl"] > 0
            assert "fipo/noise_floor" not in metrics


def test_neutral_weights_are_slimes_own_policy_loss(updates):
    grpo, neutral = updates("grpo"), updates("neutral")
    assert_same([{name: metrics[name] for name in grpo[0]} for metrics in neutral], grpo)
    changed = [abs(ours["grad_norm"] - theirs["grad_norm"]) for ours, theirs in zip(updates("fipo"), grpo, strict=True)]
    assert changed[0] == 0 and min(changed[1:]) > 1e-3  # weights take part


def test_every_update_away_from_the_old_policy_has_what_is_rare(updates):
    for metrics in updates("away"):
        assert all(0 < metrics[name] < 1 for name in RARE)
        assert metrics["fipo/dropped_sequences"] < 0.5  # one of four


@pytest.mark.parametrize(
    ("layout", "one_process"),
    [
        ("away_small_micro_batches", "away"),
        ("away_dp2", "away"),
        ("away_cp2", "away"),
        ("away_tp2", "away"),
        ("away_cp2_tp2", "away"),
        ("away_pp2", "away"),
        ("away_cp2_pp2", "away"),
        ("away_shuffled_cp2_tp2", "away_shuffled"),
        ("cp2", "fipo"),
        ("regularized_cp2", "regularized"),
    ],
)
def test_no_layout_changes_a_number(updates, layout, one_process):
    assert_same(updates(layout), updates(one_process))


def test_shuffled_weights_are_fipos_in_another_order(updates):
    """At the first update, whose policy is the same; that no layout changes the order, the test above says."""
    shuffled, fipo = updates("away_shuffled")[0], updates("away")[0]
    assert abs(shuffled["grad_norm"] - fipo["grad_norm"]) > 1e-3
    for name in ("fipo/weight_mean", "fipo/weight_at_low", "fipo/weight_at_high"):
        assert shuffled[name] == pytest.approx(fipo[name], **TOLERANCE)


def test_a_lost_carry_between_ranks_is_seen(updates):
    """What the test above would find if fipo forgot the credit that lies on other context-parallel ranks."""
    for wrong, right in zip(updates("away_without_carry"), updates("away"), strict=True):
        for name in ("loss", "grad_norm", "fipo/weight_mean", "fipo/future_kl_mean"):
            assert abs(wrong[name] - right[name]) > 1e-3, name


def test_the_configuration_file_and_a_resumed_run_have_the_curve_of_the_launcher(updates):
    assert updates("config") == updates("fipo")
    assert updates("resumed") == updates("fipo")[GROUPS:]


def test_a_whole_loop_learns_from_rollouts_of_its_current_weights(engines, updates):
    """Old weights would give other log-probs than the trainer's, which recomputes them."""
    for metrics in updates("loop"):
        assert metrics["train_rollout_logprob_abs_diff"] < 1e-5
    rewards = [float(reward) for reward in engines.logged("loop", r"'rollout/raw_reward': ([\d.]+)")]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


@pytest.fixture(scope="module")
def imported(engines, updates):
    """What `fipo import` makes of the dumps that slime itself wrote, by update."""
    updates("away")
    dumps, file = engines.folder / "away" / "dumps", engines.folder / "traces.parquet"
    options = ["--current-logprobs", "--preset", "32b", "--tokenizer", engines.model]
    engines.python("-m", "fipo.cli", "import", "--from", "slime", dumps, "-o", file, *options)
    found = sorted(read_traces(file), key=lambda trace: trace.sample)
    return [found[first : first + GROUP_SIZE] for first in range(0, len(found), GROUP_SIZE)]


def test_imported_dumps_have_the_credit_that_slime_logged(updates, imported):
    """Before it becomes weights: the command's safety threshold is not the preset's."""
    for group, metrics in zip(imported, updates("away"), strict=True):
        values = np.concatenate([trace.future_kl[trace.trained] for trace in group])
        assert values.mean(dtype=float) == pytest.approx(metrics["fipo/future_kl_mean"], **TOLERANCE)
        dropped = sum(trace.trained.sum() for trace in group if trace.dropped)
        assert dropped / len(values) == pytest.approx(metrics["fipo/dropped_sequences"], **TOLERANCE)


def test_traces_have_the_credit_of_the_dumps(engines, updates, imported):
    """Whole groups, about half of them, at the updates that trained on them; each token as slime itself dumped it."""
    updates("away")
    found = read_traces(engines.folder / "away" / "traces")
    assert not found.problems
    places = Counter((trace.rollout, trace.group, trace.update) for trace in found)
    assert places == dict.fromkeys([(0, 2, 2), (1, 0, 0), (1, 1, 1)], GROUP_SIZE)
    dumped = {(trace.rollout, trace.sample % (GROUPS * GROUP_SIZE)): trace for group in imported for trace in group}
    for trace in found:
        other = dumped[trace.rollout, trace.sample]
        assert (trace.text, trace.reward) == (other.text, other.reward)
        assert trace.prompt == other.prompt.replace(" ", "")  # the exact bytes of its tokens, words of a toy vocabulary
        assert (trace.trained.tolist(), trace.dropped) == (other.trained.tolist(), other.dropped)
        for name in ("logps", "old_logps", "log_ratio", "advantages"):
            np.testing.assert_allclose(getattr(trace, name), getattr(other, name), atol=1e-6)
        assert trace.entropy.min() > 0
    capped = [trace.flags & FLAGS["safety_capped"] for trace in found]
    assert sum(flags.astype(bool).sum() for flags in capped) > 0
    assert all((trace.weight[flags > 0] == 1).all() for trace, flags in zip(found, capped, strict=True))


@pytest.mark.parametrize("layout", ["away_dp2", "away_cp2_tp2", "away_cp2_pp2"])
def test_no_layout_changes_a_trace(engines, updates, layout):
    for name in ("away", layout):
        updates(name)
    whole, split = (read_traces(engines.folder / name / "traces") for name in ("away", layout))
    for found, expected in zip(split, whole, strict=True):
        place = [(trace.rollout, trace.sample, trace.update, trace.text) for trace in (found, expected)]
        assert place[0] == place[1]
        for name in ("log_ratio", "future_kl", "weight", "entropy", "flags"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=WEIGHT_ERROR)


def test_traces_take_less_than_a_fiftieth_of_a_traced_step(engines, updates):
    """All 16 responses of the rollout, of 400 to 512 tokens; a larger model has longer steps and the same traces."""
    updates("timed")
    traced = [float(seconds) for seconds in engines.logged("timed", r"traced in ([\d.]+) s")]
    (trained,) = engines.logged("timed", r"'perf/actor_train_time': ([\d.]+)")
    print(f"{sum(traced):.3f} s in {len(traced)} micro-batches of {float(trained):.1f} s of training")
    assert len(read_traces(engines.folder / "timed" / "traces")) == GROUPS * GROUP_SIZE
    assert sum(traced) < 0.02 * float(trained)


def test_wandb_gets_the_report_of_a_traced_rollout(engines, updates):
    """When the next one begins: then all ranks have written. The last one's comes with its last update."""
    updates("away")
    pages = sorted((engines.folder / "away").glob("wandb/offline-run-*/files/media/html/**/*.html"))
    texts = [page.read_text() for page in pages]
    assert [sum(f"rollout {rollout}" in text for text in texts) > 0 for rollout in (0, 1)] == [True, True]
