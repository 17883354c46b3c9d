"""The fast loss against its naive twin, its gradients, and identities that hold for every input."""

import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive
from torch._subclasses.fake_tensor import FakeTensorMode

from fipo import FIPOParams, fipo_loss, future_kl, influence_weights, token_credit, token_mean
from fipo.core import logged, scan
from fipo.core.credit import CREDIT_FIELDS, engine_inputs

EPSILON = {"epsilon_low": 0.2, "epsilon_high": 0.28}
settings.register_profile("fipo", deadline=None, derandomize=True, max_examples=60)  # read where a test is decorated
settings.load_profile("fipo")


@st.composite
def batches(draw, min_tokens=0):
    """Random batches in float64, with holes in the mask and log-ratios far outside every clip."""
    rows, length = draw(st.integers(0, 5)), draw(st.integers(min_tokens, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.01, 0.3, 3.0, 15.0]))
    old = -torch.rand(rows, length, generator=generator, dtype=torch.float64) * 5
    new = old + scale * torch.randn(rows, length, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=generator) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    params = FIPOParams(
        decay_rate=draw(st.sampled_from([0.01, 0.5, 4.0, 32.0, 1000.0, math.inf])),
        clip_ratio_low=draw(st.sampled_from([0.0, 0.2])),
        clip_ratio_high=draw(st.sampled_from([0.0, 0.2])),
        clip_high_only=draw(st.booleans()),
        safety_thresh=draw(st.sampled_from([1.0, 3.0, math.inf])),
        dual_clip_c=draw(st.sampled_from([1.5, 3.0, 10.0, math.inf])),
        max_dual_clipped=draw(st.integers(0, 2)),
        distance=draw(st.sampled_from(["position", "trained"])),
    )
    return new, old, advantages, mask, params


@given(batches(), st.sampled_from([2, 3, 8, scan.BLOCK]))
def test_equals_the_naive_loop(batch, block):
    new, old, advantages, mask, params = batch
    new.requires_grad_()
    with mock.patch.object(scan, "BLOCK", block):  # small ones make many levels of blocks
        out = fipo_loss(new, old, advantages, mask, params, **EPSILON)
    (gradient,) = torch.autograd.grad(out.loss.sum(), new)
    for row in range(len(new)):
        sequence = (t[row].tolist() for t in (new.detach(), old, advantages, mask))
        loss, slope, weight, dropped = naive.fipo(*sequence, params, **EPSILON)
        for fast, slow in ((out.loss, loss), (gradient, slope), (out.weight, weight)):
            expected = torch.tensor(slow, dtype=torch.float64)
            torch.testing.assert_close(fast[row].detach(), expected, rtol=1e-9, atol=1e-9)
        assert out.dropped[row] == dropped
        assert torch.equal(out.kept[row], mask[row] & (not dropped))
        assert torch.equal(out.factor[row], out.weight[row] * out.kept[row])


def pack(tensor, lengths):
    return torch.cat([tensor[row, :n] for row, n in enumerate(lengths)] + [tensor.new_empty(0)])


@given(batches(), st.data())
def test_packed_equals_padded(batch, data):
    new, old, advantages, mask, params = batch
    lengths = [data.draw(st.integers(0, new.shape[1])) for _ in range(len(new))]
    padding = torch.arange(new.shape[1]) >= torch.tensor(lengths, dtype=torch.long)[:, None]
    mask = mask & ~padding
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    per_sequence = advantages.sum(-1, keepdim=True)
    padded = fipo_loss(new, old, per_sequence, mask, params, **EPSILON)
    flat = [pack(t, lengths) for t in (new, old)]
    packed = fipo_loss(*flat, per_sequence, pack(mask, lengths).bool(), params, cu_seqlens=cu_seqlens, **EPSILON)
    for name in ("loss", "weight", "log_ratio"):
        expected = pack(getattr(padded, name), lengths)
        torch.testing.assert_close(getattr(packed, name), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(packed.kept, pack(padded.kept, lengths).bool())
    assert torch.equal(packed.dropped, padded.dropped)


@given(batches(min_tokens=1), st.data())
def test_split_anywhere_with_carry_equals_whole(batch, data):
    new, old, _, mask, params = batch
    split = data.draw(st.integers(0, new.shape[1] - 1))
    whole = future_kl(new - old, mask, params)
    right = future_kl((new - old)[:, split:], mask[:, split:], params)
    left = future_kl((new - old)[:, :split], mask[:, :split], params, carry=right[:, 0])
    torch.testing.assert_close(torch.cat([left, right], dim=1), whole, rtol=1e-10, atol=1e-10)


@given(batches())
def test_the_loss_is_ppo_of_the_weighed_advantages(batch):
    """What engines do with the credit: their own clipped and dual-clipped loss, which clamps no ratio."""
    new, old, advantages, mask, params = batch
    new.requires_grad_()
    out, credit = (function(new, old, advantages, mask, params) for function in (fipo_loss, token_credit))
    assert all(torch.equal(getattr(out, name), getattr(credit, name)) for name in CREDIT_FIELDS)
    weighed, bounded = engine_inputs(credit, new, old, advantages)
    ratio = (new - bounded).exp()
    ppo = -torch.minimum(ratio.clamp(max=params.dual_clip_c) * weighed, ratio.clamp(0.8, 1.28) * weighed)
    inside = out.kept & ((new - old).abs() <= 20)
    torch.testing.assert_close(ppo.sum(), out.loss[inside].sum(), rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(out.loss[out.kept].sum(), new)[0]
    if params.dual_clip_c == math.inf:  # the clamp at 20 is the only bound of ratios there
        expected = torch.where(inside, expected, 0)
    torch.testing.assert_close(torch.autograd.grad(ppo.sum(), new)[0], expected, rtol=1e-9, atol=1e-9)


@given(batches(min_tokens=1), st.data())
def test_a_nan_reaches_nothing_to_its_right(batch, data):
    new, old, advantages, mask, params = batch
    if not mask.any():
        return
    row, t = mask.nonzero()[data.draw(st.integers(0, int(mask.sum()) - 1))].tolist()
    clean = token_credit(new, old, advantages, mask, params)
    new[row, t] = math.nan
    dirty = token_credit(new, old, advantages, mask, params)
    clean.future_kl[row, : t + 1] = math.nan
    assert torch.equal(dirty.future_kl.isnan(), clean.future_kl.isnan())
    assert torch.equal(dirty.future_kl.nan_to_num(), clean.future_kl.nan_to_num())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_token_without_pi_old_is_left_out(poison, monkeypatch):
    """As if it were not trained, but for distances; it is flagged, and told once."""
    warnings = []
    logged.warn_of_non_finite.cache_clear()
    monkeypatch.setattr(logged.logger, "warning", warnings.append)
    torch.manual_seed(0)
    new, mask, advantages = torch.randn(2, 40).double().requires_grad_(), torch.rand(2, 40) < 0.8, -torch.ones(2)
    old = new.detach() - 0.1 * torch.randn(2, 40)
    mask[0, 7], without = True, mask.clone()
    without[0, 7] = False
    clean = fipo_loss(new, old, advantages, without, FIPOParams())
    old[0, 7] = poison
    for _ in range(2):
        out = fipo_loss(new, old, advantages, mask, FIPOParams())
    assert torch.equal(out.kept, clean.kept)
    torch.testing.assert_close(out.factor, clean.factor)
    torch.testing.assert_close(out.loss, clean.loss)
    assert torch.autograd.grad(out.loss.sum(), new)[0].isfinite().all()
    assert out.non_finite.nonzero().tolist() == [[0, 7]]
    if new.device.type == "cpu":
        assert len(warnings) == 1 and "π_old is not finite at some trained tokens" in warnings[0]


def test_rejected_tokens_give_no_credit_and_drop_nothing():
    new, old = torch.zeros(1, 6), torch.tensor([[0.0, -3.0, -3.0, -0.3, -0.2, 0.0]])
    mask, rejected = torch.ones(1, 6), torch.tensor([[0, 1, 0, 1, 0, 0]])
    credit = token_credit(new, old, -torch.ones(1), mask, FIPOParams(decay_rate=math.inf), rejected=rejected)
    assert credit.future_kl[0].tolist() == pytest.approx([0.2] * 5 + [0.0])
    assert credit.kept[0].tolist() == (credit.factor[0] > 0).tolist() == [True, False, True, False, True, True]
    assert not credit.dropped.any()
    assert token_credit(new, old, -torch.ones(1), mask, FIPOParams()).dropped.all()  # for two dual-clipped tokens


@pytest.mark.subprocess
@pytest.mark.parametrize("distance", ["position", "trained"])
@pytest.mark.parametrize("packed", [False, True])
def test_compiled_in_one_graph_and_on_the_meta_device(packed, distance):
    torch.manual_seed(0)
    new, mask, advantages = torch.randn(3, 70, requires_grad=True), torch.rand(3, 70) < 0.8, torch.randn(3, 70)
    old, boundaries = new.detach() + 0.1 * torch.randn(3, 70), None
    if packed:
        new, old, mask, advantages = (x.detach().flatten() for x in (new, old, mask, advantages))
        boundaries = torch.tensor([0, 0, 50, 51, 210])
        new.requires_grad_()

    def both(new, old, advantages, mask, boundaries):
        params = FIPOParams(distance=distance)
        out = fipo_loss(new, old, advantages, mask, params, cu_seqlens=boundaries)
        credit = token_credit(new, old, advantages, mask, params, cu_seqlens=boundaries)
        return token_mean(out.loss, out.kept), credit.factor, out.dropped

    arguments = (new, old, advantages, mask, boundaries)
    if new.device.type == "cpu":
        results = [torch.compile(both, fullgraph=True, backend="aot_eager")(*arguments), both(*arguments)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(loss, new) for loss, *_ in results))
    on_meta = [None if x is None else x.detach().to("meta") for x in arguments]
    assert [x.shape for x in both(*on_meta)] == [x.shape for x in both(*arguments)]


@given(batches(), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_masked_positions_never_reach_trained_tokens(batch, poison):
    *tensors, mask, params = batch

    def found():
        new, old, advantages = (x.clone() for x in tensors)
        out = fipo_loss(new.requires_grad_(), old, advantages, mask, params, **EPSILON)
        return *torch.autograd.grad(token_mean(out.loss, out.kept), new), out.loss.detach(), out.weight

    clean = found()
    for x in tensors:
        x[~mask] = poison
    assert all(torch.equal(a, b) for a, b in zip(found(), clean, strict=True))


def test_fake_tensors_do_not_outlive_their_mode():
    """Memory estimators and export tools trace with tensors that hold no data; the scan keeps its matrices."""
    params, shape = FIPOParams(decay_rate=11.0), (2, 70)  # a decay that no other test has
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert future_kl(torch.empty(shape), torch.ones(shape), params).shape == shape
    assert future_kl(torch.ones(shape), torch.ones(shape), params).isfinite().all()


@pytest.mark.parametrize("distance", ["position", "trained"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 40)])
def test_future_kl_is_differentiable(shape, distance):
    torch.manual_seed(0)
    log_ratio = 0.3 * torch.randn(shape, dtype=torch.float64)
    mask, params = torch.rand(shape) < 0.8, FIPOParams(distance=distance)
    assert torch.autograd.gradcheck(lambda x: future_kl(x, mask, params), log_ratio.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    torch.manual_seed(0)
    new, old = (-torch.rand(2, 300).to(dtype) for _ in range(2))
    others = torch.ones(2), torch.ones(2, 300), FIPOParams()
    low, same = fipo_loss(new, old, *others), fipo_loss(new.float(), old.float(), *others)
    assert low.weight.dtype == low.loss.dtype == torch.float32
    assert torch.equal(low.future_kl, same.future_kl)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "switch", ["torch.set_float32_matmul_precision('medium')", "torch.backends.fp32_precision='tf32'"]
)
def test_autocast_and_reduced_matmul_precision_do_not_round_the_scan(switch):
    """In a process of its own: torch has no way back from one switch to the other."""
    code = f"""
import torch
from fipo import FIPOParams, future_kl
torch.manual_seed(0)
x, mask = 0.01 * torch.randn(2, 1000), torch.ones(2, 1000)
exact = future_kl(x.double(), mask, FIPOParams())
{switch}
with torch.autocast("cpu", dtype=torch.bfloat16):
    reduced = future_kl(x, mask, FIPOParams())
torch.testing.assert_close(reduced.double(), exact, rtol=1e-5, atol=1e-7)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_safety_rule_keeps_risky_tokens_within_four_fifths_and_one():
    log_ratio, params = torch.tensor([[math.log(4.0), 0.0]]), FIPOParams(clip_ratio_low=0.5, safety_thresh=3.0)
    for advantage, future, risky, other in ((-1.0, 5.0, 1.0, 1.2), (1.0, 5.0, 1.2, 1.2), (-1.0, -5.0, 0.8, 0.5)):
        found = influence_weights(torch.full((1, 2), future), log_ratio, torch.tensor([advantage]), params)
        assert found[0].tolist() == pytest.approx([risky, other])


@given(batches())
def test_token_means_of_parts_add_up_and_an_empty_one_is_finite(batch):
    new, old, advantages, mask, params = batch
    new.requires_grad_()
    out = fipo_loss(new, old, advantages, mask, params)
    tokens, loss = out.kept.sum(), token_mean(out.loss, out.kept)
    assert torch.autograd.grad(loss, new)[0].isfinite().all()
    if tokens:
        parts = [token_mean(*row, denominator=tokens) for row in zip(out.loss, out.kept, strict=True)]
        torch.testing.assert_close(sum(parts), loss)
    else:
        assert loss == 0


@pytest.mark.subprocess
def test_import_fipo_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import fipo.core; "
        "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'fipo', 'torch'})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
