"""The policy loss `fipo`, called as verl's ppo_loss calls it."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from core.test_golden import CASES, GOLDEN, load
from support import naive
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig

from fipo import FIPOParams, InvalidParameterError, token_credit
from fipo.core.logged import TOKEN_MEANS
from fipo.engines.verl import FIPOPolicyLossConfig, contract, guard
from fipo.engines.verl.guard import WATCHED_UPDATES, OneUpdateWatch

pytestmark = pytest.mark.verl

MODES = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
if contract.release() >= (0, 9):
    MODES.append("token-sum")
EXTREMES = {"fipo/weight_min", "fipo/weight_max"}
METRICS = {"actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl", "fipo/dropped_sequences", *TOKEN_MEANS}
METRICS |= EXTREMES


def actor(policy_loss=None, **settings):
    settings = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0, **settings}
    return FSDPActorConfig(
        ppo_micro_batch_size_per_gpu=1, rollout_n=1, policy_loss=policy_loss or FIPOPolicyLossConfig(), **settings
    )


def counted(config, mask, ranks=1):
    """What verl's engine counts before the first micro-batch of an update."""
    config.global_batch_info.update(
        dp_size=ranks, batch_num_tokens=int(mask.sum()), global_batch_size=len(mask), loss_scale_factor=None
    )
    return config


def rollout(rows=6, tokens=10, seed=0, drift=0.4):
    """With holes in the mask, a row of padding, and two dual-clipped tokens in row 2."""
    generator = torch.Generator().manual_seed(seed)
    new = -torch.rand(rows, tokens, generator=generator, dtype=torch.double)
    old = new - drift * torch.randn(rows, tokens, generator=generator, dtype=torch.double)
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.double).expand(rows, tokens).clone()
    mask = torch.rand(rows, tokens, generator=generator) < 0.8
    mask[4] = False
    mask[2, :2], old[2, :2], advantages[2] = True, new[2, :2] - 3, -1.0
    return {"old_log_prob": old, "log_prob": new, "advantages": advantages, "response_mask": mask}


def call(name, config, batch, mode="token-mean", **more):
    """Loss, gradient and metrics of one micro-batch."""
    new = batch["log_prob"].clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(name)(**{**batch, "log_prob": new, **more}, loss_agg_mode=mode, config=config)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient, metrics


def mean(metric):
    return metric.aggregate() if hasattr(metric, "aggregate") else metric


@pytest.mark.parametrize("case", CASES)
def test_the_authors_numbers(case):
    """Their mean is over what is not dropped, so that is the count which stands for verl's here."""
    x, params, clip = load(case)
    adv = x["adv"] if x["adv"].dim() == 2 else x["adv"][:, None].expand(x["new"].shape)
    knobs = {name: getattr(params, name) for name in ("decay_rate", "clip_ratio_low", "clip_ratio_high")}
    config = actor(
        FIPOPolicyLossConfig(**knobs, clip_high_only=params.clip_high_only, safety_thresh=params.safety_thresh),
        clip_ratio_c=params.dual_clip_c,
        clip_ratio_low=clip["epsilon_low"],
        clip_ratio_high=clip["epsilon_high"],
    )
    columns = (x["new"].tolist(), x["old"].tolist(), adv.tolist(), x["mask"].tolist())
    dropped = [naive.fipo(*row, params, **clip)[3] for row in zip(*columns, strict=True)]
    kept = x["mask"].bool() & ~torch.tensor(dropped)[:, None]
    batch = {"old_log_prob": x["old"], "log_prob": x["new"], "advantages": adv, "response_mask": x["mask"]}
    loss, gradient, metrics = call("fipo", counted(config, kept), batch)
    for ours, key in ((loss, "loss"), (gradient, "grad_new")):
        expected = torch.from_numpy(np.asarray(GOLDEN[f"{case}/official/{key}"]))
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert set(metrics) == METRICS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("engine", [False, True])
def test_neutral_weights_are_verls_own_loss(mode, corrected, engine):
    batch = rollout()
    if corrected:
        batch["rollout_is_weights"] = 0.5 + torch.rand(6, 10, generator=torch.Generator().manual_seed(1)).double()
    neutral = actor(FIPOPolicyLossConfig(clip_ratio_low=0.0, clip_ratio_high=0.0, max_dual_clipped=100))
    if engine:
        counted(neutral, batch["response_mask"])
    loss, gradient, metrics = call("fipo", neutral, batch, mode)
    expected_loss, expected_gradient, expected_metrics = call("vanilla", neutral, batch, mode)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    for name, expected in expected_metrics.items():
        assert metrics[name] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_add_up(mode):
    batch = rollout()
    config = counted(actor(), batch["response_mask"])
    loss, gradient, metrics = call("fipo", config, batch, mode)
    assert mean(metrics["fipo/dropped_sequences"]) == pytest.approx(1 / 6)
    parts = [call("fipo", config, {k: v[rows] for k, v in batch.items()}, mode) for rows in ([0], [1, 2, 3], [4, 5])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)


def test_fipos_metrics_are_exact_over_micro_batches():
    """Through verl's mean over rows; tests/engines/verl/test_engine.py has ranks."""
    batch = rollout()
    mask, config = batch["response_mask"], counted(actor(), batch["response_mask"])
    names = ("log_prob", "old_log_prob", "advantages", "response_mask")
    credit = token_credit(*(batch[name] for name in names), FIPOParams())
    rows = [credit.weight[row][mask[row]] for row in (0, 1, 2, 3, 5)]
    expected = {name: of(credit)[mask].double().mean().item() for name, of in TOKEN_MEANS.items()}
    expected |= {"fipo/weight_min": (sum(row.min() for row in rows) + 1) / 6, "fipo/dropped_sequences": 1 / 6}
    expected |= {"fipo/weight_max": (sum(row.max() for row in rows) + 1) / 6}
    parts = [call("fipo", config, {k: v[rows] for k, v in batch.items()})[2] for rows in ([0], [4], [2, 3], [1, 5])]
    for name, value in expected.items():
        found = [part[name] for part in parts]
        if not hasattr(found[0], "aggregate"):
            pytest.skip("verl 0.7.0 cannot")
        for other in found[1:]:
            found[0].append(other)
        assert found[0].aggregate() == pytest.approx(float(value), rel=1e-5, abs=1e-7), name


def test_what_verls_correction_takes_out_gives_no_credit():
    """Its importance weight is 0; a rejected token's mask is 0 already."""
    batch = rollout()
    weights = torch.ones(6, 10)
    weights[2, :2] = 0  # the row's two dual-clipped tokens
    _, gradient, metrics = call("fipo", counted(actor(), batch["response_mask"]), batch, rollout_is_weights=weights)
    assert mean(metrics["fipo/dropped_sequences"]) == 0
    assert (gradient[2, :2] == 0).all() and gradient[2].any()
    batch["response_mask"][2, :2] = False
    masked = call("fipo", counted(actor(), rollout()["response_mask"]), batch)[1]
    torch.testing.assert_close(gradient, masked)


def falling(logps, cu_seqlens, **_):
    start = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff())
    return 1 / (1 + torch.arange(len(logps)) - start)


def test_a_rule_of_ones_own(monkeypatch):
    """verl's own loss of advantages that this test weighs itself."""
    batch = rollout()
    settings = FIPOPolicyLossConfig(rule=f"python:{__name__}:falling")
    found = call("fipo", counted(actor(settings), batch["response_mask"]), batch)
    factor = (1 / torch.arange(1, 11)).expand(6, 10).clone()
    factor[2] = 0  # the dropped sequence
    weighed = batch | {"advantages": batch["advantages"] * factor}
    expected = call("vanilla", counted(actor(), batch["response_mask"]), weighed)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-8)
    with pytest.raises(InvalidParameterError, match=r"policy_loss\.rule is 'python:nowhere:rule', which cannot"):
        FIPOPolicyLossConfig(rule="python:nowhere:rule")


def test_a_dropped_sequence_gives_nothing_and_stays_in_the_denominator():
    batch = rollout()
    params = SimpleNamespace(**vars(FIPOPolicyLossConfig()) | {"dual_clip_c": 10.0})
    total = 0.0
    for row in range(6):
        columns = (batch[name][row].tolist() for name in ("log_prob", "old_log_prob", "advantages", "response_mask"))
        losses, _, _, dropped = naive.fipo(*columns, params, epsilon_low=0.2, epsilon_high=0.28)
        assert dropped == (row == 2)
        total += 0.0 if dropped else sum(losses)
    loss, gradient, _ = call("fipo", actor(), batch)
    assert loss.item() == pytest.approx(total / batch["response_mask"].sum().item(), rel=1e-12)
    assert (gradient[2] == 0).all()


def test_what_lies_outside_the_mask_does_not_matter():
    batch = rollout()
    outside = ~batch["response_mask"]
    loss, gradient, metrics = call("fipo", actor(), batch)
    for name in ("old_log_prob", "advantages"):
        batch[name] = batch[name].masked_fill(outside, torch.nan)
    again = call("fipo", actor(), batch)
    assert again[0] == loss
    assert torch.equal(again[1], gradient)
    assert again[2] == metrics
    assert (gradient[outside] == 0).all()


def test_the_masks_dtype_does_not_matter():
    batch = rollout()
    loss, gradient, _ = call("fipo", actor(), batch)
    for dtype in (torch.long, torch.float):
        again = call("fipo", actor(), {**batch, "response_mask": batch["response_mask"].to(dtype)})
        torch.testing.assert_close(again[0], loss)
        torch.testing.assert_close(again[1], gradient)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("rows", [[4], []])
def test_rows_of_padding_alone_and_no_rows(mode, engine, rows):
    batch = rollout()
    config = counted(actor(), batch["response_mask"]) if engine else actor()
    loss, gradient, metrics = call("fipo", config, {name: tensor[rows] for name, tensor in batch.items()}, mode)
    assert loss == 0
    assert (gradient == 0).all()
    assert set(metrics) == METRICS
    if rows:
        assert all(mean(metrics[name]) == (name in EXTREMES) for name in METRICS)


def test_half_precision_is_computed_in_float32():
    batch = {k: v if v.dtype == torch.bool else v.bfloat16() for k, v in rollout().items()}
    loss, gradient, _ = call("fipo", actor(), batch)
    wide = call("fipo", actor(), {k: v if v.dtype == torch.bool else v.float() for k, v in batch.items()})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wide[0])
    torch.testing.assert_close(gradient.float(), wide[1], rtol=1e-2, atol=1e-4)


def test_the_symmetric_clip_range_is_the_fallback():
    batch = rollout()
    explicit = call("fipo", actor(clip_ratio_low=0.1, clip_ratio_high=0.1), batch)
    fallback = call("fipo", actor(clip_ratio=0.1, clip_ratio_low=None, clip_ratio_high=None), batch)
    assert explicit[0] == fallback[0]
    assert explicit[0] != call("fipo", actor(), batch)[0]


def test_plain_policy_loss_config_is_refused():
    with pytest.raises(InvalidParameterError, match=r"is a PolicyLossConfig, .*_target_=fipo.engines.verl.FIPOPolicy"):
        call("fipo", FSDPActorConfig(ppo_micro_batch_size_per_gpu=1, rollout_n=1), rollout())


def looks(watch, config, batch, times):
    names = ("log_prob", "old_log_prob", "advantages", "response_mask")
    credit = token_credit(*(batch[name] for name in names), FIPOParams())
    for _ in range(times):
        watch.see(credit, config)


def test_the_watch_warns_once_when_the_weights_stay_at_one():
    still, config = rollout(drift=0.0), counted(actor(), torch.ones(12, 10), ranks=2)
    still["old_log_prob"][2] = still["log_prob"][2]
    watch = OneUpdateWatch()  # an update is 6 of 12 rows on this rank: one micro-batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looks(watch, config, still, WATCHED_UPDATES - 1)
    with pytest.warns(UserWarning, match=r"stayed at 1 for 32 updates, so this run is GRPO.*ppo_epochs at least 2"):
        looks(watch, config, still, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looks(watch, config, still, 2 * WATCHED_UPDATES)


def test_the_watch_is_silent_once_the_weights_have_moved():
    config, watch = counted(actor(), torch.ones(6, 10)), OneUpdateWatch()
    looks(watch, config, rollout(), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looks(watch, config, rollout(drift=0.0), 2 * WATCHED_UPDATES)


def test_a_fused_head_that_loses_gradients_is_refused():
    """verl #7235: repaired in 0.9. Without use_fused_kernels nobody asks."""
    batch = rollout()
    assert guard.fused_head_loses_gradients() == (contract.release() < (0, 9))
    for fused in (False, True):
        config = counted(actor(use_fused_kernels=fused), batch["response_mask"])
        if fused and contract.release() < (0, 9):
            with pytest.raises(InvalidParameterError, match=r"verl #7235.*use_fused_kernels=False"):
                call("fipo", config, batch)
        else:
            call("fipo", config, batch)


@pytest.mark.parametrize("control", ["none", "uniform", "shuffle"])
def test_controls_in_every_split(control):
    batch = rollout()
    config = counted(actor(FIPOPolicyLossConfig(control=control)), batch["response_mask"])
    own = counted(actor(), batch["response_mask"])
    whole, plain = call("fipo", config, batch), call("fipo", own, batch)
    rows = [{name: column[[row]] for name, column in batch.items()} for row in (3, 1, 0, 2, 5)]
    parts = [call("fipo", config, part) for part in rows]
    gradient = torch.zeros_like(whole[1])
    for row, part in zip((3, 1, 0, 2, 5), parts, strict=True):
        gradient[row] = part[1]
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0])
    torch.testing.assert_close(gradient, whole[1])
    assert (whole[1] - plain[1]).abs().max() > 1e-4
    if control == "none":
        neutral = FIPOPolicyLossConfig(clip_ratio_low=0.0, clip_ratio_high=0.0)
        torch.testing.assert_close(whole[1], call("fipo", counted(actor(neutral), batch["response_mask"]), batch)[1])
    else:
        kept = "fipo/weight_mean"
        torch.testing.assert_close(mean(whole[2][kept]), mean(plain[2][kept]))


def test_an_unknown_control_is_refused():
    with pytest.raises(
        InvalidParameterError, match=r"policy_loss\.control is 'random', but must be one of none, uniform"
    ):
        FIPOPolicyLossConfig(control="random")
