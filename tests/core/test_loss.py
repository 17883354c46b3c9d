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

DECAYS = st.sampled_from([0.01, 0.5, 4.0, 32.0, 1000.0, math.inf])


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
        decay_rate=draw(DECAYS),
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


@given(batches())
def test_neutral_weights_are_dual_clip_ppo(batch):
    new, old, advantages, mask, params = batch
    neutral = FIPOParams(
        clip_ratio_low=0.0, clip_ratio_high=0.0, dual_clip_c=params.dual_clip_c, max_dual_clipped=10**9
    )
    out = fipo_loss(new, old, advantages, mask, neutral, **EPSILON)
    ratio = (new - old).clamp(-20, 20).exp()
    ppo = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    ppo = torch.where(advantages < 0, torch.minimum(ppo, -advantages * params.dual_clip_c), ppo)
    torch.testing.assert_close(out.loss[mask], ppo[mask], rtol=1e-12, atol=1e-12)
    assert torch.equal(out.kept, mask)


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
def test_trained_distance_is_position_distance_after_masked_tokens_are_cut_out(batch):
    new, old, _, mask, params = batch
    knobs = {"decay_rate": params.decay_rate, "dual_clip_c": params.dual_clip_c}
    whole = future_kl(new - old, mask, FIPOParams(**knobs, distance="trained"))
    for row in range(len(new)):
        cut = (new - old)[row, mask[row]][None]
        expected = future_kl(cut, torch.ones_like(cut), FIPOParams(**knobs, distance="position"))
        torch.testing.assert_close(whole[row, mask[row]][None], expected, rtol=1e-10, atol=1e-10)


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
    here = torch.zeros_like(mask)
    here[row, : t + 1] = True
    assert dirty.future_kl[row, : t + 1].isnan().all()
    assert torch.equal(dirty.future_kl[~here], clean.future_kl[~here])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_token_without_pi_old_is_left_out(poison, monkeypatch):
    """As if it were not trained, but for distances; it is flagged, and told once."""
    warnings = []
    monkeypatch.setattr(logged, "_warned_of_non_finite", False)
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
    assert credit.kept[0].tolist() == [True, False, True, False, True, True]
    assert (credit.factor > 0).tolist() == credit.kept.tolist()
    assert not credit.dropped.any()
    assert token_credit(new, old, -torch.ones(1), mask, FIPOParams()).dropped.all()


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
        found = torch.compile(both, fullgraph=True, backend="aot_eager")(*arguments)
        torch.testing.assert_close(found, both(*arguments))
        slopes = [torch.autograd.grad(loss, new)[0] for loss in (found[0], both(*arguments)[0])]
        torch.testing.assert_close(*slopes)
    on_meta = [None if x is None else x.detach().to("meta") for x in arguments]
    assert [x.shape for x in both(*on_meta)] == [x.shape for x in both(*arguments)]


@given(batches(), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_masked_positions_never_reach_trained_tokens(batch, poison):
    new, old, advantages, mask, params = batch
    clean_new = new.clone().requires_grad_()
    clean = fipo_loss(clean_new, old, advantages, mask, params, **EPSILON)
    (clean_gradient,) = torch.autograd.grad(token_mean(clean.loss, clean.kept), clean_new)
    for target in (new, old, advantages):
        target[~mask] = poison
    new.requires_grad_()
    out = fipo_loss(new, old, advantages, mask, params, **EPSILON)
    loss = token_mean(out.loss, out.kept)
    (gradient,) = torch.autograd.grad(loss, new)
    assert torch.equal(gradient, clean_gradient)
    assert torch.equal(out.loss, clean.loss)
    assert torch.equal(out.weight, clean.weight)


@pytest.mark.parametrize("distance", ["position", "trained"])
def test_fake_tensors_do_not_outlive_their_mode(distance):
    """Memory estimators and export tools trace with tensors that hold no data; the scan keeps its matrices."""
    params, shape = FIPOParams(decay_rate=11.0, distance=distance), (2, 70)  # a decay that no other test has
    with FakeTensorMode(allow_non_fake_inputs=True):
        if distance == "position":
            assert future_kl(torch.empty(shape), torch.ones(shape), params).shape == shape
    assert future_kl(torch.ones(shape), torch.ones(shape), params).isfinite().all()


@pytest.mark.parametrize("distance", ["position", "trained"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 40)])
def test_gradcheck(shape, distance):
    """future_kl is differentiated as it is; the loss with its weight held at a bound, where it is locally constant."""
    torch.manual_seed(0)
    log_ratio = 0.3 * torch.randn(shape, dtype=torch.float64)
    mask = torch.rand(shape) < 0.8
    params = FIPOParams(distance=distance)
    credit_of = lambda x: future_kl(x, mask, params)  # noqa: E731
    assert torch.autograd.gradcheck(credit_of, log_ratio.clone().requires_grad_())

    saturating = FIPOParams(decay_rate=math.inf, clip_ratio_low=0.01, clip_ratio_high=0.01, distance=distance)
    old = torch.zeros(shape, dtype=torch.float64)
    advantages = torch.randn(shape, dtype=torch.float64)

    def loss_of(new):
        out = fipo_loss(new, old, advantages, mask, saturating, **EPSILON)
        return out.loss

    assert torch.autograd.gradcheck(loss_of, (log_ratio + 0.5).requires_grad_())


def test_no_gradient_flows_through_the_weight():
    new = torch.tensor([[-1.0, -1.1]], requires_grad=True)
    out = fipo_loss(new, new.detach() - 0.05, torch.ones(1), torch.ones(1, 2), FIPOParams(), **EPSILON)
    (gradient,) = torch.autograd.grad(out.loss.sum(), new)
    torch.testing.assert_close(gradient, -(out.weight * out.log_ratio.exp()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    torch.manual_seed(0)
    new, old = -torch.rand(2, 300), -torch.rand(2, 300)
    low = fipo_loss(new.to(dtype), old.to(dtype), torch.ones(2), torch.ones(2, 300), FIPOParams())
    same = fipo_loss(new.to(dtype).float(), old.to(dtype).float(), torch.ones(2), torch.ones(2, 300), FIPOParams())
    assert low.weight.dtype == low.loss.dtype == torch.float32
    assert torch.equal(low.future_kl, same.future_kl)


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


def test_half_life():
    """A lone log-ratio of 1 nat is worth half as much one half-life earlier."""
    x = torch.zeros(1, 65, dtype=torch.float64)
    x[0, 64] = 1.0
    credit = future_kl(x, torch.ones(1, 65), FIPOParams(decay_rate=32.0))[0]
    assert credit[[0, 32, 64]].tolist() == pytest.approx([0.25, 0.5, 1.0], rel=1e-14)


def test_tokens_outside_the_dual_clip_give_no_future_credit():
    x = torch.tensor([[0.1, math.log(10.0) + 0.01, 0.2]], dtype=torch.float64)
    params = FIPOParams(decay_rate=math.inf)
    assert future_kl(x, torch.ones(1, 3), params)[0].tolist() == pytest.approx([0.3, 0.2, 0.2])


def test_safety_rule_keeps_risky_tokens_within_four_fifths_and_one():
    log_ratio = torch.tensor([[math.log(4.0), 0.0]])
    future = torch.tensor([[5.0, 5.0]])
    params = FIPOParams(safety_thresh=3.0)
    assert influence_weights(future, log_ratio, -torch.ones(1), params).tolist() == [[1.0, pytest.approx(1.2)]]
    assert influence_weights(future, log_ratio, torch.ones(1), params)[0].tolist() == pytest.approx([1.2, 1.2])


def test_a_sequence_is_dropped_at_its_second_dual_clipped_token():
    new = torch.zeros(2, 3)
    old = torch.tensor([[-3.0, 0.0, 0.0], [-3.0, -3.0, 0.0]])
    out = fipo_loss(new, old, -torch.ones(2), torch.ones(2, 3), FIPOParams())
    assert out.dual_clipped.sum(-1).tolist() == [1, 2]
    assert out.dropped.tolist() == [False, True]
    assert out.kept.all(-1).tolist() == [True, False]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (4, 1)])
def test_empty_and_single_token_batches(shape):
    new = torch.zeros(shape, requires_grad=True)
    for mask in (torch.ones(shape), torch.zeros(shape)):
        out = fipo_loss(new, torch.zeros(shape), torch.ones(shape[0]), mask, FIPOParams())
        loss = token_mean(out.loss, out.kept)
        loss.backward()
        assert loss.item() == (-1.0 if mask.any() else 0.0)
        assert torch.isfinite(new.grad).all()


def test_explicit_denominator_makes_split_batches_add_up():
    torch.manual_seed(0)
    new, old, mask = torch.randn(4, 8), torch.randn(4, 8), torch.rand(4, 8) < 0.7
    advantages = torch.randn(4)
    whole = fipo_loss(new, old, advantages, mask, FIPOParams())
    tokens = whole.kept.sum()
    parts = [
        fipo_loss(new[i : i + 1], old[i : i + 1], advantages[i : i + 1], mask[i : i + 1], FIPOParams())
        for i in range(4)
    ]
    total = sum(token_mean(part.loss, part.kept, denominator=tokens) for part in parts)
    torch.testing.assert_close(total, token_mean(whole.loss, whole.kept))


def test_import_fipo_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import fipo.core; "
        "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'fipo', 'torch'})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
