"""The custom loss on real ranks: slime's own policy loss where weights are neutral, and the same for every split.

With SLIME_SRC set, all of it runs against slime's own modules, with MILES_SRC against miles' own; without, against a
stand-in written from the contract.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import one_truth
from torch.nn.utils.rnn import pad_sequence

from fipo import FIPOParams, token_credit
from fipo.core.logged import TOKEN_MEANS
from fipo.traces import read_traces
from fipo.traces.importers import import_dump

HERE = Path(__file__).parent
OPTIONS = [
    *("plain", "high_only", "trained_distance", "kl_k3", "kl_unbiased", "entropy", "tis", "tis_custom", "mismatch"),
    *("opsm", "reducer", "temperature", "per_token", "recompute", "rollout_logprobs", "shuffle", "rule"),
    *("shuffled_rule", *(() if "MILES_SRC" in os.environ else ("top_p",))),
    *(("gspo", "cispo") if "SLIME_SRC" in os.environ else ()),
]
FIPOS = [option for option in OPTIONS if "rule" not in option]  # with FIPO's own weights
SPLITS = ["one_by_one", "dp2", "cp2", "cp2_one_by_one", "cp2_allgather", "cp2_allgather_one_by_one", "cp2_dp2", "cp4"]
DROPPED = 2  # the sample with two dual-clipped tokens


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What ranks.py found with 1, 2 and 4 processes, in one dict; and the folder."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}  # nothing is compiled for the test
    command = [sys.executable, str(HERE / "ranks.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-5000:]
    return {k: v for world in (1, 2, 4) for k, v in torch.load(folder / f"{world}.pt").items()}, folder


def assert_same_update(found, expected, shared_only=False):
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["gradient"], expected["gradient"], rtol=1e-4, atol=1e-7)
    names = list(expected["metrics"])
    if not shared_only:
        assert list(found["metrics"]) == names
    assert {name: found["metrics"][name] for name in names} == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("option", FIPOS)
@pytest.mark.parametrize("split", ["whole", "cp2"])
def test_neutral_weights_are_slimes_policy_loss(runs, split, option):
    found, policy = runs[0][split, option, "neutral"], runs[0][split, option, "policy"]
    assert policy["gradient"].abs().max() > 1e-3
    assert_same_update(found, policy, shared_only=True)
    assert list(found["metrics"])[: len(policy["metrics"])] == list(policy["metrics"])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_is_the_whole(runs, split, option):
    if (split, option, "fipo") not in runs[0]:
        pytest.skip("slime's own GSPO aborts there")
    assert_same_update(runs[0][split, option, "fipo"], runs[0]["whole", option, "fipo"])


@pytest.mark.parametrize("option", FIPOS)
def test_credit_matters_here(runs, option):
    """Else equal gradients would say nothing about the weights."""
    fipo, neutral = runs[0]["whole", option, "fipo"], runs[0]["whole", option, "neutral"]
    assert (fipo["gradient"] - neutral["gradient"]).abs().max() > 1e-3
    assert fipo["metrics"]["fipo/weight_at_high"] > 0.1
    assert fipo["metrics"]["fipo/safety_capped"] > 0


@pytest.mark.parametrize("split", ["whole", *SPLITS])
def test_controls_keep_what_they_say(runs, split):
    """The same order of a response's weights in every split follows from `test_every_split_is_the_whole`."""
    plain, shuffle, uniform, none, neutral = (
        runs[0][split, option, "fipo"] for option in ("plain", "shuffle", "uniform", "none", "no_bounds")
    )
    for found in (shuffle, uniform):
        assert (found["gradient"] - plain["gradient"]).abs().max() > 1e-4
        assert found["metrics"]["fipo/weight_mean"] == pytest.approx(plain["metrics"]["fipo/weight_mean"], rel=1e-5)
    torch.testing.assert_close(none["gradient"], neutral["gradient"])
    assert none["metrics"]["fipo/weight_mean"] == pytest.approx(1)
    for found in (shuffle, uniform, none):  # what FIPO knew stays to be seen
        name = "fipo/future_kl_mean"
        assert found["metrics"][name] == pytest.approx(plain["metrics"][name], rel=1e-5)


@pytest.mark.parametrize("split", ["whole", "cp2", "cp2_allgather", "cp4"])
def test_weights_are_those_of_the_padded_batch(runs, split):
    if (split, "weights") not in runs[0]:
        pytest.fail(f"{split} was not run")
    samples = runs[0]["samples"]
    columns = [runs[0]["whole", "log_probs"], *([s[name] for s in samples] for name in ("log_probs", "advantages"))]
    mask = pad_sequence([sample["loss_masks"].bool() for sample in samples], batch_first=True)
    out = token_credit(*(pad_sequence(c, batch_first=True) for c in columns), mask, FIPOParams(**runs[0]["knobs"]))
    assert out.dropped.nonzero().flatten().tolist() == [DROPPED]
    for row, weight in enumerate(runs[0][split, "weights"]):
        torch.testing.assert_close(weight, out.weight[row, : len(weight)], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("split", ["whole", "cp2", "cp2_allgather", "cp4"])
def test_the_batch_that_all_engines_share(runs, split, regularized):
    """With a KL and an entropy bonus, those of its dropped sequence stay in."""
    found = runs[0][split, "one_truth"][regularized]
    model = found["model"].requires_grad_()
    every = [model[t[:-1]].log_softmax(-1)[-one_truth.TOKENS :] for t in found["tokens"]]
    logps = [e.gather(-1, t[-one_truth.TOKENS :, None])[:, 0] for e, t in zip(every, found["tokens"], strict=True)]
    entropy = torch.stack([-(e.exp() * e).sum(-1) for e in every]) if regularized else None
    detached = None if entropy is None else entropy.detach()
    one_truth.assert_same_credit(torch.stack(found["weights"]), found["loss"], detached)
    one_truth.assert_same_gradients([found["gradient"]], torch.stack(logps), [model], entropy)


@pytest.mark.parametrize("split", ["whole", *SPLITS])
def test_least_and_greatest_weight_are_exact(runs, split):
    """Those of each response, meant over rollouts as slime means; pull request 1801's depend on the split."""
    weights, metrics = runs[0]["whole", "weights"], runs[0][split, "plain", "fipo"]["metrics"]
    for name, of in (("fipo/weight_min", torch.min), ("fipo/weight_max", torch.max)):
        rows = zip(weights, runs[0]["samples"], strict=True)
        shares = [of(w[s["loss_masks"].bool()]) * s["loss_masks"].sum() / s["rollout_mask_sums"] for w, s in rows]
        assert metrics[name] == pytest.approx(sum(shares).item() / 6, rel=1e-5)


@pytest.mark.parametrize("split", ["whole", *SPLITS])
def test_a_rule_weighs_whole_responses(runs, split):
    """1 / n at a response's n-th token, on whatever rank that lies."""
    shares = [
        (s["loss_masks"] / torch.arange(1, 1 + s["response_lengths"])).sum() / s["rollout_mask_sums"]
        for s in runs[0]["samples"]
    ]
    for option in ("rule", "shuffled_rule"):
        metrics = runs[0][split, option, "fipo"]["metrics"]
        assert metrics["fipo/weight_mean"] == pytest.approx(sum(shares).item() / 6, rel=1e-5)
    assert (runs[0][split, "rule", "fipo"]["gradient"] - runs[0][split, option, "fipo"]["gradient"]).abs().max() > 1e-4


@pytest.mark.parametrize("split", ["whole", "cp2"])
def test_what_slimes_corrections_take_out_gives_no_credit(runs, split):
    """A custom TIS function rejects every third token: neither future_kl nor the drop sees them."""
    samples = runs[0]["samples"]
    columns = [runs[0]["whole", "log_probs"], *([s[name] for s in samples] for name in ("log_probs", "advantages"))]
    mask = pad_sequence([sample["loss_masks"].bool() for sample in samples], batch_first=True)
    rejected = (torch.arange(mask.shape[1]) % 3 == 0).expand(mask.shape)
    columns = [pad_sequence(column, batch_first=True) for column in columns]
    credit = token_credit(*columns, mask, FIPOParams(**runs[0]["knobs"]), rejected=rejected)
    totals = [sample["rollout_mask_sums"] for sample in samples]
    for name in ("fipo/participation", "fipo/weight_mean", "fipo/dual_clipped"):
        values = torch.where(mask, TOKEN_MEANS[name](credit), 0).sum(-1)
        expected = sum(value / total for value, total in zip(values, totals, strict=True)) / 6
        assert runs[0][split, "tis_custom", "fipo"]["metrics"][name] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("split", ["whole", "cp2", "cp4"])
def test_dual_clipped_tokens_in_different_chunks_drop_the_sequence(runs, split):
    """No rank sees both."""
    gradient, dropped = runs[0][split, "dropped"]
    assert gradient == 0 and dropped > 0
    gradient, dropped = runs[0][split, "not_dropped"]
    assert gradient > 1e-3 and dropped == 0


def test_dropped_sequences_stay_in_the_denominators(runs):
    """One of six rollouts is dropped."""
    metrics = runs[0]["whole", "plain", "fipo"]["metrics"]
    assert metrics["fipo/dropped_sequences"] == pytest.approx(1 / 6)
    samples = runs[0]["samples"]
    tokens = [sample["loss_masks"].sum().item() for sample in samples]
    share = runs[0]["whole", "per_token", "fipo"]["metrics"]["fipo/dropped_sequences"]
    assert share == pytest.approx(tokens[DROPPED] / sum(tokens))


def test_statistics_do_not_depend_on_the_split(runs):
    """Ours are sums over rollouts of means over their tokens; a mean of micro-batch means would be another number."""
    samples, weights = runs[0]["samples"], runs[0]["whole", "weights"]
    masks = [sample["loss_masks"].bool() for sample in samples]
    shares = [(w * m).sum() / s["rollout_mask_sums"] for w, m, s in zip(weights, masks, samples, strict=True)]
    exact = (sum(shares) / 6).item()
    naive = torch.stack([w[m].mean() for w, m in zip(weights, masks, strict=True)]).mean().item()
    assert abs(exact - naive) > 1e-3
    for split in ["whole", *SPLITS]:
        assert runs[0][split, "plain", "fipo"]["metrics"]["fipo/weight_mean"] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(("split", "cp_size"), [("cp2", 2), ("cp2_one_by_one", 2), ("cp4", 4)])
def test_collectives_whose_size_does_not_depend_on_length(runs, split, cp_size):
    short, long = (runs[0][split, "collectives"][chosen] for chosen in ((0, 3), (2, 6)))
    ours = [(2, 2 * cp_size + 1), (2, 2)]  # heads and counts; least and greatest weights
    assert short == long and short[:2] == ours
    assert len(short) == 2 or "MILES_SRC" in os.environ  # which has collectives of its own


def test_metrics_have_the_names_of_slime_and_of_every_engine(runs):
    names = list(runs[0]["whole", "rollout_logprobs", "fipo"]["metrics"])
    slimes = ["loss", "pg_loss", "entropy_loss", "pg_clipfrac", "ppo_kl", "train_rollout_logprob_abs_diff"]
    noise = ["fipo/noise_floor", "fipo/noise_weight_shift"]
    extremes = ["fipo/weight_min", "fipo/weight_max"]
    assert set(slimes) <= set(names)
    assert names[-len(TOKEN_MEANS) - 5 :] == [*TOKEN_MEANS, "fipo/dropped_sequences", *noise, *extremes]


@pytest.mark.skipif("MILES_SRC" in os.environ, reason="miles captures no log-probs")
def test_the_importer_finds_the_weights_in_slimes_dump(runs):
    """slime's capture hook was called, so log_probs are the current policy's and the credit can be worked out again."""
    params = FIPOParams(**runs[0]["knobs"])
    found = import_dump("slime", runs[1] / "dump", params=params, current_logprobs=True)
    samples = {sample["partition"]: sample for sample in runs[0]["samples"]}
    assert len(found.traces) == len(samples)
    for trace in found.traces:
        sample, new = samples[trace.sample], runs[0]["whole", "log_probs"][trace.sample]
        columns = (new, sample["rollout_log_probs"], sample["advantages"], sample["loss_masks"].bool())
        out = token_credit(*(column[None] for column in columns), params)
        torch.testing.assert_close(torch.tensor(trace.weight), out.weight[0], rtol=1e-6, atol=1e-6)
        assert trace.dropped == bool(out.dropped)


@pytest.fixture(scope="module")
def traces(runs):
    """What each split's run left, by split."""
    return {split: read_traces(runs[1] / "traces" / split) for split in ("whole", *SPLITS)}


def test_traces_hold_what_the_loss_used(runs, traces):
    """Of the traced rollout alone, both updates of every sample, once."""
    found, expected = traces["whole"], runs[0]["samples"]
    assert found.params == FIPOParams(**runs[0]["knobs"])
    assert [(t.rollout, t.sample, t.update) for t in found] == [(0, s, u) for s in range(len(expected)) for u in (0, 1)]
    for trace in found:
        sample, log_probs = expected[trace.sample], runs[0]["whole", "log_probs"][trace.sample]
        length = sample["response_lengths"]
        assert trace.token_ids.tolist() == sample["unconcat_tokens"][-length:].tolist()
        assert trace.text == "".join(f"⟨{index}⟩" for index in trace.token_ids)  # there is no tokenizer here
        assert trace.trained.tolist() == sample["loss_masks"].bool().tolist()
        for name, of in {
            "logps": log_probs,
            "old_logps": sample["log_probs"],
            "advantages": sample["advantages"],
        }.items():
            torch.testing.assert_close(torch.tensor(getattr(trace, name)), of)
        torch.testing.assert_close(torch.tensor(trace.weight), runs[0]["whole", "weights"][trace.sample])
        torch.testing.assert_close(torch.tensor(trace.rollout_logps), sample["rollout_log_probs"])
        assert (trace.reward, trace.group) == (trace.sample, trace.sample)
        assert trace.stop_reason == ("length" if trace.sample % 2 else "stop")
        assert trace.dropped == (trace.sample == DROPPED)
        assert trace.run == "whole"


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_leaves_the_traces_of_the_whole(traces, split):
    for found, expected in zip(traces[split], traces["whole"], strict=True):
        assert (found.sample, found.update, found.reward) == (expected.sample, expected.update, expected.reward)
        assert found.flags.tolist() == expected.flags.tolist()
        for name in (
            "logps",
            "old_logps",
            "log_ratio",
            "future_kl",
            "raw_weight",
            "weight",
            "advantages",
            "entropy",
            "rollout_logps",
        ):
            values = (torch.tensor(getattr(trace, name)) for trace in (found, expected))
            torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
