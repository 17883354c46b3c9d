"""Sequences cut into chunks, wherever the cuts lie, are the whole sequences. Real ranks: tests/engines/slime."""

import math

import pytest
import torch

from fipo import FIPOParams, token_credit
from fipo.core.context_parallel import ShardedSequences, context_parallel_token_credit

TOKENWISE = ("factor", "kept", "log_ratio", "future_kl", "raw_weight", "weight", "participates", "at_low", "at_high")


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
    chunks = ShardedSequences(
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
    *tokens, mask = rollout(lengths, scale=0.6)
    rejected = torch.rand(len(mask), generator=torch.Generator().manual_seed(1)) < 0.1
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    whole = token_credit(*tokens, mask, params, cu_seqlens=boundaries, rejected=rejected)
    assert 0 < whole.dropped.sum() < len(lengths)

    chunks, order = cut(lengths, mask, width, distance)
    pieces = (column[order] for column in (*tokens, mask))
    parts = context_parallel_token_credit(*pieces, params, chunks, rejected=rejected[order])
    assert torch.equal(parts.dropped, whole.dropped[chunks.sequence])
    for name in TOKENWISE:
        expected, value = getattr(whole, name)[order], getattr(parts, name)
        if name == "future_kl":  # outside the mask it is whatever the recurrence needs
            expected, value = expected[mask[order]], value[mask[order]]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


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
        out = token_credit(sequences, torch.zeros_like(sequences), advantages, torch.ones_like(sequences), params)
        flags.append(out.dual_clipped)
    assert flags[0][:, 0].any() and not flags[0][:, 0].all()
    assert all(torch.equal(flag, flags[0]) for flag in flags)
