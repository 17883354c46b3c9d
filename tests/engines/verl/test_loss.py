"""The policy loss `fipo`, called as verl's ppo_loss calls it."""

from contextlib import nullcontext
from itertools import combinations

import pytest
import torch
from support import one_truth
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.workers.config import FSDPActorConfig

from fipo import FIPOParams, InvalidParameterError, token_credit
from fipo.core.logged import ROUNDING, TOKEN_MEANS
from fipo.core.rounding import expected_weight_errors, future_kl_errors
from fipo.engines.verl import FIPOPolicyLossConfig, contract
from fipo.engines.verl import loss as plugin
from fipo.engines.verl.guard import WATCHED_UPDATES, OneUpdateWatch

pytestmark = pytest.mark.verl

MODES = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
if contract.release() >= (0, 9):
    MODES.append("token-sum")
METRICS = {"actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl", "fipo/dropped_sequences"}
METRICS |= {*TOKEN_MEANS, ROUNDING}
PADDING, SHAPE = one_truth.ROWS, (one_truth.ROWS + 1, one_truth.TOKENS)  # the row of padding is the last
COLUMNS = ("log_prob", "old_log_prob", "advantages", "response_mask")


def actor(policy_loss=None, **settings):
    settings = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0, **settings}
    return FSDPActorConfig(
        ppo_micro_batch_size_per_gpu=1, rollout_n=1, policy_loss=policy_loss or FIPOPolicyLossConfig(), **settings
    )


def counted(mask, policy_loss=None, ranks=1, **settings):
    """With what verl's engine counts before the first micro-batch of an update."""
    config = actor(policy_loss, **settings)
    config.global_batch_info.update(
        dp_size=ranks, batch_num_tokens=int(mask.sum()), global_batch_size=len(mask), loss_scale_factor=None
    )
    return config


def rollout():
    """The batch that all engines share, and a row of padding."""
    data = {
        name: torch.nn.functional.pad(column, (0, 0, 0, 1))
        for name, column in one_truth.batch().items()
        if column.dim() == 2
    }
    new = -torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    batch = {"old_log_prob": new - data["log_ratio"], "log_prob": new}
    return batch | {"advantages": data["advantages"], "response_mask": data["mask"]}


def call(name, config, batch, mode="token-mean", **more):
    """Loss, gradient and metrics of one micro-batch."""
    new = batch["log_prob"].clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(name)(**{**batch, "log_prob": new, **more}, loss_agg_mode=mode, config=config)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient, metrics


def part_of(batch, rows):
    return {name: column[rows] for name, column in batch.items()}


def mean(metric):
    return metric.aggregate() if hasattr(metric, "aggregate") else metric


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("engine", [False, True])
def test_neutral_weights_are_verls_own_loss(mode, corrected, engine):
    batch = rollout()
    if corrected:
        batch["rollout_is_weights"] = 0.5 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)).double()
    settings = FIPOPolicyLossConfig(clip_ratio_low=0.0, clip_ratio_high=0.0, max_dual_clipped=100)
    neutral = counted(batch["response_mask"], settings) if engine else actor(settings)
    found, expected = (call(name, neutral, batch, mode) for name in ("fipo", "vanilla"))
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-12, atol=1e-12)
    assert {name: found[2][name] for name in expected[2]} == pytest.approx(expected[2], rel=1e-5, abs=1e-7)


CONTROLS = ("none", "uniform", "shuffle")


@pytest.mark.parametrize(
    ("mode", "control"), [*((mode, None) for mode in MODES), *(("token-mean", c) for c in CONTROLS)]
)
def test_micro_batches_add_up(mode, control):
    """Also where a control needs whole responses, whatever their order."""
    batch, order = rollout(), [3, 1, 2, 0, 6, 4, 5]
    config = counted(batch["response_mask"], FIPOPolicyLossConfig(control=control))
    loss, gradient, _ = call("fipo", config, batch, mode)
    parts = [call("fipo", config, part_of(batch, rows), mode) for rows in ([3], [1, 2, 0], [6, 4, 5])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient[order])


def test_fipos_metrics_are_exact_over_micro_batches():
    """Through verl's mean over rows; tests/engines/verl/test_engine.py has ranks."""
    batch = rollout()
    mask, config = batch["response_mask"], counted(batch["response_mask"])
    credit = token_credit(*(batch[name] for name in COLUMNS), FIPOParams())
    expected = {name: of(credit)[mask].double().mean().item() for name, of in TOKEN_MEANS.items()}
    expected["fipo/dropped_sequences"] = 1 / 7
    moved = future_kl_errors(mask, 0.044, FIPOParams())  # in bfloat16, verl's default
    rounding = expected_weight_errors(credit, batch["advantages"], mask, moved, FIPOParams())
    expected[ROUNDING] = rounding[mask].double().mean().item()
    assert expected[ROUNDING] > 0.01
    parts = [call("fipo", config, part_of(batch, rows))[2] for rows in ([0], [PADDING], [2, 3], [1, 4, 5])]
    for name, value in expected.items():
        found = [part[name] for part in parts]
        if not hasattr(found[0], "aggregate"):
            pytest.skip("verl 0.7.0 cannot")
        for other in found[1:]:
            found[0].append(other)
        assert found[0].aggregate() == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_what_verls_correction_takes_out_gives_no_credit():
    """Its importance weight is 0; a rejected token's mask is 0 already."""
    batch = rollout()
    weights = torch.ones(SHAPE)
    weights[2, :2] = 0  # the row's two dual-clipped tokens
    config = counted(batch["response_mask"])
    _, gradient, metrics = call("fipo", config, batch, rollout_is_weights=weights)
    assert mean(metrics["fipo/dropped_sequences"]) == 0
    assert (gradient[2, :2] == 0).all() and gradient[2].any()
    batch["response_mask"][2, :2] = False
    torch.testing.assert_close(gradient, call("fipo", config, batch)[1])


def test_a_rule_of_ones_own():
    """verl's own loss of advantages that this test weighs itself."""
    batch = rollout()
    settings = FIPOPolicyLossConfig(rule="python:core.test_rules:falling")
    found = call("fipo", counted(batch["response_mask"], settings), batch)
    factor = (1 / torch.arange(1, 1 + SHAPE[1])).expand(SHAPE).clone()
    factor[2] = 0  # the dropped sequence
    weighed = batch | {"advantages": batch["advantages"] * factor}
    expected = call("vanilla", counted(batch["response_mask"]), weighed)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-6, atol=1e-8)


def test_the_batch_that_all_engines_share(monkeypatch):
    batch, seen = rollout(), []
    monkeypatch.setattr(plugin, "token_credit", lambda *a, **k: seen.append(token_credit(*a, **k)) or seen[0])
    config = counted(batch["response_mask"], FIPOPolicyLossConfig(decay_rate=one_truth.PARAMS.decay_rate))
    loss, gradient, _ = call("fipo", config, batch)
    one_truth.assert_same_credit(seen[0].weight[:PADDING], loss)
    logps = batch["log_prob"][:PADDING].requires_grad_()
    one_truth.assert_same_gradients([gradient[:PADDING]], 1 * logps, logps)


def test_what_lies_outside_the_mask_does_not_matter():
    batch = rollout()
    outside = ~batch["response_mask"]
    loss, gradient, metrics = call("fipo", actor(), batch)
    for name in ("old_log_prob", "advantages"):
        batch[name] = batch[name].masked_fill(outside, torch.nan)
    again = call("fipo", actor(), batch)
    assert again[0] == loss and again[2] == metrics
    assert torch.equal(again[1], gradient) and (gradient[outside] == 0).all()
    for dtype in (torch.long, torch.float):  # nor does the mask's dtype
        again = call("fipo", actor(), {**batch, "response_mask": batch["response_mask"].to(dtype)})
        torch.testing.assert_close(again[:2], (loss, gradient))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("rows", [[PADDING], []])
def test_rows_of_padding_alone_and_no_rows(mode, engine, rows):
    batch = rollout()
    config = counted(batch["response_mask"]) if engine else actor()
    loss, gradient, metrics = call("fipo", config, part_of(batch, rows), mode)
    assert loss == 0 and (gradient == 0).all()
    assert set(metrics) == METRICS
    if rows:
        assert all(mean(metrics[name]) == 0 for name in METRICS)


def test_half_precision_is_computed_in_float32():
    mask, batch = rollout()["response_mask"], {name: column.bfloat16() for name, column in rollout().items()}
    loss, gradient, _ = call("fipo", actor(), batch | {"response_mask": mask})
    wide = call("fipo", actor(), {name: column.float() for name, column in batch.items()} | {"response_mask": mask})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wide[0])
    torch.testing.assert_close(gradient.float(), wide[1], rtol=1e-2, atol=1e-4)


def test_plain_policy_loss_config_is_refused():
    with pytest.raises(InvalidParameterError, match=r"is a PolicyLossConfig, .*_target_=fipo.engines.verl.FIPOPolicy"):
        call("fipo", FSDPActorConfig(ppo_micro_batch_size_per_gpu=1, rollout_n=1), rollout())


@pytest.mark.filterwarnings("error")
def test_the_watch_warns_once_when_the_weights_stay_at_one():
    batch, config = rollout(), counted(torch.ones(14, 10), ranks=2)  # an update is 7 of 14 rows here: one micro-batch
    new, old, *others = (batch[name] for name in COLUMNS)
    still, moved = (token_credit(new, before, *others, FIPOParams()) for before in (new, old))
    watch, moving = OneUpdateWatch(), OneUpdateWatch()
    moving.see(moved, config)
    for _ in range(WATCHED_UPDATES - 1):
        watch.see(still, config), moving.see(still, config)
    with pytest.warns(match=r"stayed at 1 for 32 updates, so this run is GRPO.*ppo_epochs at least 2"):
        watch.see(still, config)
    for _ in range(WATCHED_UPDATES):
        watch.see(still, config), moving.see(still, config)


def test_a_fused_head_that_loses_gradients_is_refused():
    """verl #7235: repaired in 0.9. Without use_fused_kernels nobody asks."""
    hidden, weight = torch.ones(2, 4, 3, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    ids, batch = torch.zeros(2, 3, dtype=torch.long), rollout()
    logps, _ = FusedLinearForPPO().forward(hidden.transpose(1, 2), weight, ids, temperature=1.0)
    loses = torch.autograd.grad(logps.sum(), hidden, allow_unused=True)[0] is None
    call("fipo", counted(batch["response_mask"], use_fused_kernels=False), batch)
    refused = pytest.raises(InvalidParameterError, match=r"verl #7235.*use_fused_kernels=False")
    with refused if loses else nullcontext():
        call("fipo", counted(batch["response_mask"], use_fused_kernels=True), batch)


def test_each_control_changes_the_gradient_in_its_own_way():
    """What they keep of FIPO's weights, tests/core/test_rules.py says."""
    mask = (batch := rollout())["response_mask"]
    settings = [FIPOPolicyLossConfig(control=control) for control in (None, *CONTROLS)]
    gradients = [call("fipo", counted(mask, policy_loss), batch)[1] for policy_loss in settings]
    for one, other in combinations(gradients, 2):
        assert (one - other).abs().max() > 1e-4
