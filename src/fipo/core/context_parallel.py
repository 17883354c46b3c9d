"""FIPO of sequences that lie in chunks over ranks: exact, with one collective whose size does not depend on length.

Credit flows from right to left, so all that a chunk must know of what lies to its right is one number, its carry:

    H_j = future_kl of chunk j's first token, as if the sequence ended with the chunk (0 for an empty chunk)
    C_j = H_{j+1} + γ^{n_{j+1}} · C_{j+1},   C_last = 0
    future_kl_t = G_t + γ^{end_j − t} · C_j,   G: the chunk scanned alone

n_j is the chunk's number of tokens, or of trained tokens with distance="trained". A sequence's dual-clipped tokens,
which decide whether it is dropped, add up over its chunks. They do not depend on the weights, so both travel together.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from fipo.core.layout import count_per_sequence
from fipo.core.loss import FIPOOutput, fipo_loss
from fipo.params import FIPOParams


@dataclass(frozen=True, slots=True)
class Chunks:
    """S sequences in C chunks each, of which this rank holds K, packed one after the other; a chunk may be empty."""

    cu_seqlens: Tensor  # (K + 1,) boundaries of the packed chunks
    sequence: Tensor  # (K,) which sequence each belongs to
    place: Tensor  # (K,) its place among the sequence's chunks, 0 the leftmost
    extents: Tensor  # (S, C) n of every chunk on all ranks: tokens, or trained tokens with distance="trained"


def context_parallel_fipo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    chunks: Chunks,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.28,
    group: dist.ProcessGroup | None = None,
) -> FIPOOutput:
    """`fipo_loss` of this rank's chunks, with the values that the whole sequences have there.

    Args:
        logps, old_logps, advantages, loss_mask: (N,) this rank's chunks, packed; N = 0 is allowed. Differentiable in
            `logps`; no gradient crosses ranks.
        params: The knobs.
        chunks: Where the chunks lie. Ranks must agree on `extents` and together hold every chunk once.
        epsilon_low, epsilon_high: PPO's clip range.
        group: The ranks that share the sequences; None: this process holds all chunks.

    Returns:
        A FIPOOutput of (N,) tensors; `dropped` is (K,), one value a chunk.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
        InvalidParameterError: The clip range is not one.
    """
    of_chunks = partial(
        fipo_loss,
        old_logps=old_logps,
        advantages=advantages,
        loss_mask=loss_mask,
        params=params,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        cu_seqlens=chunks.cu_seqlens,
    )
    with torch.no_grad():
        carry, dual_clipped_outside = _exchange(of_chunks(logps.detach()), chunks, params.decay_rate, group)
    return of_chunks(logps, carry=carry, dual_clipped_outside=dual_clipped_outside)


def _exchange(
    alone: FIPOOutput, chunks: Chunks, half_life: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """(K,) carry and (K,) dual-clipped tokens elsewhere in the sequence, from one sum over ranks of (S, C + 1)."""
    count = count_per_sequence(alone.dual_clipped, chunks.cu_seqlens).to(alone.future_kl.dtype)
    occupied = chunks.cu_seqlens.diff() > 0
    sequences, width = chunks.extents.shape
    shared = alone.future_kl.new_zeros(sequences, width + 1)
    shared[chunks.sequence[occupied], chunks.place[occupied]] = alone.future_kl[chunks.cu_seqlens[:-1][occupied]]
    shared[:, -1].index_add_(0, chunks.sequence, count)
    if group is not None:
        dist.all_reduce(shared, group=group)
    carries = _carries(shared[:, :-1], chunks.extents, half_life)
    return carries[chunks.sequence, chunks.place], shared[chunks.sequence, -1] - count


def _carries(heads: Tensor, extents: Tensor, half_life: float) -> Tensor:
    """C_j of every chunk, (S, C): the recurrence above, in float64, over a few chunks."""
    decay = torch.exp2(-extents.double() / half_life)
    carries = torch.zeros_like(decay)
    for j in reversed(range(extents.shape[1] - 1)):
        carries[:, j] = heads[:, j + 1] + decay[:, j + 1] * carries[:, j + 1]
    return carries.to(heads.dtype)
