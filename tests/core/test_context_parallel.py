"""Sequences cut into chunks, wherever the cuts lie, are the whole sequences. Real ranks: tests/engines/slime."""

import math

import pytest
import torch

from fipo import FIPOParams, fipo_loss
from fipo.core.context_parallel import Chunks, context_parallel_fipo_loss

TOKENWISE = ("loss", "kept", "log_ratio", "future_kl", "raw_weight", "weight", "participates", "at_low", "at_high")


def rollout(lengths, scale, seed=0, dtype=torch.float64):
    """Packed random sequences with holes in the mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    old = -torch.rand(tokens, generator=generator, dtype=dtype)
    new = old + scale * torch.randn(tokens, generator=generator, dtype=dtype)
    advantages = torch.randn(tokens, generator=generator, dtype=dtype)
    return new, old, advantages, torch.rand(tokens, generator=generator) < 0.8


def cut(lengths, mask, width, distance, seed=0):
    """Every sequence in `width` chunks at random cuts, and the chunks in random order; also the packing's order."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    pieces, extents = [], torch.zeros(len(lengths), width)
    for sequence, length in enumerate(lengths):
        inner = torch.randint(0, length + 1, (width - 1,), generator=generator).sort().values
        edges = [0, *inner.tolist(), length]
        for place in range(width):
            tokens = torch.arange(edges[place], edges[place + 1]) + starts[sequence]
            extents[sequence, place] = mask[tokens].sum() if distance == "trained" else len(tokens)
            pieces.append((sequence, place, tokens))
    pieces = [pieces[i] for i in torch.randperm(len(pieces), generator=generator).tolist()]
    chunks = Chunks(
        cu_seqlens=torch.tensor([0, *(len(tokens) for _, _, tokens in pieces)]).cumsum(0),
        sequence=torch.tensor([sequence for sequence, _, _ in pieces]),
        place=torch.tensor([place for _, place, _ in pieces]),
        extents=extents,
    )
    return chunks, torch.cat([tokens for _, _, tokens in pieces])


@pytest.mark.parametrize("distance", ["position", "trained"])
@pytest.mark.parametrize("decay_rate", [0.5, 32.0, math.inf])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_chunks_are_the_whole(width, decay_rate, distance):
    lengths = [1, 7, 0, 130, 33]  # shorter than the number of chunks, empty, longer than a block of the scan
    params = FIPOParams(decay_rate=decay_rate, distance=distance, dual_clip_c=3.0, max_dual_clipped=2)
    new, old, advantages, mask = rollout(lengths, scale=0.6)
    new.requires_grad_()
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    whole = fipo_loss(new, old, advantages, mask, params, cu_seqlens=boundaries)
    assert 0 < whole.dropped.sum() < len(lengths)
    (gradient,) = torch.autograd.grad(whole.loss.sum(), new)

    chunks, order = cut(lengths, mask, width, distance)
    pieces = new.detach()[order].requires_grad_()
    parts = context_parallel_fipo_loss(pieces, old[order], advantages[order], mask[order], params, chunks)
    (piece_gradient,) = torch.autograd.grad(parts.loss.sum(), pieces)
    torch.testing.assert_close(piece_gradient, gradient[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.dropped, whole.dropped[chunks.sequence])
    for name in TOKENWISE:
        expected, value = getattr(whole, name)[order], getattr(parts, name)
        if name == "future_kl":  # outside the mask it is whatever the recurrence needs
            expected, value = expected[mask[order]], value[mask[order]]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_a_rank_without_tokens():
    chunks = Chunks(
        cu_seqlens=torch.zeros(5, dtype=torch.long),
        sequence=torch.tensor([0, 0, 1, 1]),
        place=torch.tensor([0, 3, 0, 3]),
        extents=torch.zeros(2, 4),
    )
    nothing = torch.zeros(0, requires_grad=True)
    out = context_parallel_fipo_loss(
        nothing, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool), FIPOParams(), chunks
    )
    assert out.loss.shape == (0,) and out.loss.requires_grad
    assert not out.dropped.any()


def test_what_is_dual_clipped_does_not_depend_on_the_weight():
    """Ratios one float apart around a bound, before a token whose credit decides how the products round."""
    log_bound = torch.tensor(1.9).log()
    log_ratios = torch.stack([log_bound + shift * 2**-24 for shift in range(-4, 5)])
    sequences = torch.stack([log_ratios, torch.zeros_like(log_ratios)], dim=1)
    params = FIPOParams(clip_ratio_high=3.0, safety_thresh=math.inf, dual_clip_c=1.9)
    flags = []
    for later in torch.linspace(0.0, 0.6, 50):
        sequences[:, 1] = later
        advantages = torch.full((len(sequences),), -0.3)
        out = fipo_loss(sequences, torch.zeros_like(sequences), advantages, torch.ones_like(sequences), params)
        flags.append(out.dual_clipped)
    assert flags[0][:, 0].any() and not flags[0][:, 0].all()
    assert all(torch.equal(flag, flags[0]) for flag in flags)
