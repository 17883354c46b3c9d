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

from fipo.core.credit import TokenCredit, token_credit
from fipo.core.layout import count_per_sequence
from fipo.params import FIPOParams


@dataclass(frozen=True, slots=True)
class ShardedSequences:
    """S sequences in C chunks each, of which this rank holds K, packed one after the other; a chunk may be empty."""

    cu_seqlens: Tensor  # (K + 1,) boundaries of the packed chunks
    sequence: Tensor  # (K,) which sequence each belongs to
    place: Tensor  # (K,) its place among the sequence's chunks, 0 the leftmost
    extents: Tensor  # (S, C) n of every chunk on all ranks: tokens, or trained tokens with distance="trained"


@torch.no_grad()
def context_parallel_token_credit(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    sharded: ShardedSequences,
    *,
    rejected: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> TokenCredit:
    """`token_credit` of this rank's chunks, with the values that the whole sequences have there.

    Args:
        logps, old_logps, advantages, loss_mask, rejected: (N,) this rank's chunks, packed; N = 0 is allowed.
        params: The knobs.
        sharded: Where the chunks lie. Ranks must agree on `extents` and together hold every chunk once.
        group: The ranks that share the sequences; None: this process holds all chunks.

    Returns, Raises:
        As `token_credit`, of (N,) tensors; `dropped` is (K,), one value a chunk.
    """
    of_chunks = partial(
        token_credit, logps, old_logps, advantages, loss_mask, params, cu_seqlens=sharded.cu_seqlens, rejected=rejected
    )
    alone = of_chunks()
    count = count_per_sequence(alone.dual_clipped, sharded.cu_seqlens).to(alone.future_kl.dtype)
    occupied = sharded.cu_seqlens.diff() > 0
    sequences, width = sharded.extents.shape
    shared = alone.future_kl.new_zeros(sequences, width + 1)
    shared[sharded.sequence[occupied], sharded.place[occupied]] = alone.future_kl[sharded.cu_seqlens[:-1][occupied]]
    shared[:, -1].index_add_(0, sharded.sequence, count)
    if group is not None:
        dist.all_reduce(shared, group=group)
    carries = _carries(shared[:, :-1], sharded.extents, params.decay_rate)
    return of_chunks(
        carry=carries[sharded.sequence, sharded.place],
        dual_clipped_outside=shared[sharded.sequence, -1] - count,
    )


def _carries(heads: Tensor, extents: Tensor, half_life: float) -> Tensor:
    """C_j of every chunk, (S, C): the recurrence above, in float64, over a few chunks."""
    decay = torch.exp2(-extents.double() / half_life)
    carries = torch.zeros_like(decay)
    for j in reversed(range(extents.shape[1] - 1)):
        carries[:, j] = heads[:, j + 1] + decay[:, j + 1] * carries[:, j + 1]
    return carries.to(heads.dtype)
