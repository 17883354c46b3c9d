"""The custom loss on real ranks: slime's own policy loss where weights are neutral, and the same for every split.

With SLIME_SRC set, all of it runs against slime's own modules, with MILES_SRC against miles' own; without, against a
stand-in written from the contract.
"""

import os
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch
from cases import OPTIONS
from support import one_truth
from support.one_truth import DROPPED, PARAMS
from torch.nn.utils.rnn import pad_sequence

from fipo import token_credit
from fipo.core.logged import DROPPED_SEQUENCES, FIRST_UPDATE_MEANS, ROUNDING, TOKEN_MEANS
from fipo.traces import read_traces

pytestmark = pytest.mark.beside

SPLITS = [split for splits in cases.SPLITS.values() for split in splits]
LAYOUTS = [split for split in SPLITS if split in ("whole", "cp2", "cp2_allgather", "cp4")]
OTHER_WEIGHTS = ("uniform", "none", "no_bounds", "rule", "shuffled_rule")  # than FIPO's
NAMES = [*TOKEN_MEANS, DROPPED_SEQUENCES, *FIRST_UPDATE_MEANS, ROUNDING]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where ranks.py left what it found with 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}  # nothing is compiled for the test
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    return {name: found for world in cases.SPLITS for name, found in torch.load(folder / f"{world}.pt").items()}


@pytest.fixture(scope="module")
def traces(folder):
    """What each split's run left, by split."""
    return {split: read_traces(folder / "traces" / split) for split in SPLITS}


def mean_over_rollouts(runs, totals):
    """As slime means: of each sample's total over its rollout's tokens."""
    rows = zip(totals, runs["samples"], strict=True)
    return sum(total / sample["rollout_mask_sums"] for total, sample in rows).item() / len(set(cases.ROLLOUTS))


def assert_same_update(found, expected, names):
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["gradient"], expected["gradient"], rtol=1e-4, atol=1e-7)
    assert list(found["metrics"]) == names
    shared = {name: found["metrics"][name] for name in expected["metrics"]}
    assert shared == pytest.approx(expected["metrics"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in OTHER_WEIGHTS])
@pytest.mark.parametrize("split", cases.COMPARED)
def test_neutral_weights_are_slimes_policy_loss(runs, split, option):
    fipo, neutral, policy = (runs[split, option, kind] for kind in ("fipo", "neutral", "policy"))
    assert policy["gradient"].abs().max() > 1e-3
    if (
        "opsm_clipfrac" in policy["metrics"]
    ):  # what OPSM masks has no advantage left, and so slime counts nothing masked
        assert policy["metrics"]["opsm_clipfrac"] > 0
        policy = policy | {"metrics": policy["metrics"] | {"opsm_clipfrac": 0.0}}
    assert_same_update(neutral, policy, [*policy["metrics"], *NAMES])
    assert (fipo["gradient"] - neutral["gradient"]).abs().max() > 1e-3  # here credit matters
    assert fipo["metrics"]["fipo/weight_at_high"] > 0.1 and fipo["metrics"]["fipo/safety_capped"] > 0


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("split", SPLITS[1:])
def test_every_split_is_the_whole(runs, split, option):
    if not cases.runs(split, option):
        pytest.skip("slime's own GSPO aborts there")
    whole = runs["whole", option, "fipo"]
    assert_same_update(runs[split, option, "fipo"], whole, list(whole["metrics"]))


@pytest.mark.parametrize(("option", "regularized"), [("token_mean", False), ("per_token", True)])
@pytest.mark.parametrize("split", LAYOUTS)
def test_the_batch_that_all_engines_share(runs, split, option, regularized):
    """With a KL and an entropy bonus, those of its dropped sequence stay in."""
    found, model = runs[split, option, "fipo"], runs["model"].requires_grad_()
    tokens, lengths = ([sample[name] for sample in runs["samples"]] for name in ("unconcat_tokens", "response_lengths"))
    every = [model[row[:-1]].log_softmax(-1)[-n:] for row, n in zip(tokens, lengths, strict=True)]
    logps = [e.gather(-1, row[-len(e) :, None])[:, 0] for e, row in zip(every, tokens, strict=True)]
    entropy = [-(e.exp() * e).sum(-1) for e in every]
    logps, entropy, weights = (pad_sequence(rows, True) for rows in (logps, entropy, runs[split, "weights"]))
    one_truth.assert_same_credit(weights, found["loss"], entropy.detach() if regularized else None)
    one_truth.assert_same_gradients([found["gradient"]], logps, [model], entropy if regularized else None)


def test_metrics_are_means_as_slime_means(runs):
    """Over a rollout's tokens and then over rollouts; dropped sequences stay in the denominators."""
    weights, masks = runs["whole", "weights"], [sample["loss_masks"].bool() for sample in runs["samples"]]
    trained, tokens = [w[m] for w, m in zip(weights, masks, strict=True)], [int(mask.sum()) for mask in masks]
    mean = mean_over_rollouts(runs, [weight.sum() for weight in trained])
    assert abs(mean - sum(weight.mean().item() for weight in trained) / len(trained)) > 1e-3  # of micro-batch means
    metrics = runs["whole", "plain", "fipo"]["metrics"]
    assert metrics["fipo/weight_mean"] == pytest.approx(mean, abs=1e-6)
    assert metrics[DROPPED_SEQUENCES] == pytest.approx(1 / 5)
    assert metrics[ROUNDING] > 0.01  # slime's default is bfloat16
    share = runs["whole", "per_token", "fipo"]["metrics"][DROPPED_SEQUENCES]
    assert share == pytest.approx(tokens[DROPPED] / sum(tokens))


def test_rules_and_controls_weigh_whole_responses(runs):
    """A rule: 1 / n at a response's n-th token; `none` is neutral, other controls keep the mean, not the places."""
    plain, shuffle, uniform, none, neutral, rule, shuffled_rule = (
        runs["whole", option, "fipo"] for option in ("plain", "shuffle", *OTHER_WEIGHTS)
    )
    totals = [(s["loss_masks"] / torch.arange(1, 1 + s["response_lengths"])).sum() for s in runs["samples"]]
    assert rule["metrics"]["fipo/weight_mean"] == pytest.approx(mean_over_rollouts(runs, totals), rel=1e-5)
    torch.testing.assert_close(none["gradient"], neutral["gradient"])
    for found, of in ((shuffle, plain), (uniform, plain), (shuffled_rule, rule)):
        assert (found["gradient"] - of["gradient"]).abs().max() > 1e-4
        for name in ("fipo/weight_mean", "fipo/future_kl_mean"):  # the latter is of FIPO, whatever weighs
            assert found["metrics"][name] == pytest.approx(of["metrics"][name], rel=1e-5)


def test_what_slimes_corrections_take_out_gives_no_credit(runs):
    """A custom TIS function rejects every third token: neither future_kl nor the drop sees them."""
    columns = [runs["whole", "log_probs"]]
    columns += [[sample[name] for sample in runs["samples"]] for name in ("log_probs", "advantages", "loss_masks")]
    *columns, mask = (pad_sequence(column, batch_first=True) for column in columns)
    mask = mask.bool()
    rejected = (torch.arange(mask.shape[1]) % 3 == 0).expand(mask.shape)
    credit = token_credit(*columns, mask, PARAMS, rejected=rejected)
    for name in ("fipo/participation", "fipo/weight_mean", "fipo/dual_clipped"):
        expected = mean_over_rollouts(runs, torch.where(mask, TOKEN_MEANS[name](credit), 0).sum(-1))
        assert runs["whole", "tis_custom", "fipo"]["metrics"][name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("split", "cp_size", "rows"), [("cp2", 2, 6), ("cp2_one_by_one", 2, 1), ("cp4", 4, 1)])
def test_collectives_whose_size_does_not_depend_on_length(runs, split, cp_size, rows):
    shapes = runs[split, "plain", "fipo"]["collectives"]
    of_one = shapes[: len(shapes) * rows // 6]  # micro-batch
    assert shapes == of_one * (6 // rows)
    assert of_one[0] == (rows, 2 * cp_size + 1)  # heads and counts
    assert len(of_one) == 1 or cases.MILES  # which has collectives of its own


def test_traces_hold_what_the_loss_used(runs, traces):
    """Of the traced rollout alone, both updates of every sample, once."""
    found, expected = traces["whole"], runs["samples"]
    assert found.params == PARAMS
    assert [(t.rollout, t.sample, t.update) for t in found] == [(0, s, u) for s in range(len(expected)) for u in (0, 1)]
    for trace in found:
        sample = expected[trace.sample]
        assert trace.token_ids.tolist() == sample["unconcat_tokens"][-sample["response_lengths"] :].tolist()
        assert trace.text == "".join(f"⟨{index}⟩" for index in trace.token_ids)  # there is no tokenizer here
        assert trace.trained.tolist() == sample["loss_masks"].bool().tolist()
        for name, column in {
            "logps": runs["whole", "log_probs"][trace.sample],
            "weight": runs["whole", "weights"][trace.sample],
            "old_logps": sample["log_probs"],
            "rollout_logps": sample["rollout_log_probs"],
            "advantages": sample["advantages"],
        }.items():
            torch.testing.assert_close(torch.tensor(getattr(trace, name)), column.float())
        assert (trace.reward, trace.group) == (trace.sample, trace.sample)
        assert trace.stop_reason == ("length" if trace.sample % 2 else "stop")
        assert trace.dropped == (trace.sample == DROPPED)
        assert trace.run == "whole"


@pytest.mark.parametrize("split", SPLITS[1:])
def test_every_split_leaves_the_traces_of_the_whole(traces, split):
    names = ("logps", "old_logps", "log_ratio", "future_kl", "raw_weight", "weight", "advantages", "entropy")
    for found, expected in zip(traces[split], traces["whole"], strict=True):
        assert (found.sample, found.update, found.reward) == (expected.sample, expected.update, expected.reward)
        assert found.flags.tolist() == expected.flags.tolist()
        for name in (*names, "rollout_logps"):
            values = (torch.tensor(getattr(trace, name)) for trace in (found, expected))
            torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
