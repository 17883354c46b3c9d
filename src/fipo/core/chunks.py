"""Where a walk cuts its row of positions into chunks of trained tokens.

The host must know it before it can launch anything, and it depends on data: so all that must be known is found on the
device and read back at once. An accelerator is waited for this one time before a walk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fipo.core.layout import check_boundaries
from fipo.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions of the row, and which of all trained tokens lie among them."""

    positions: slice
    trained: slice
    learns: bool  # whether any of its tokens can have a gradient


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """A row of N positions, of which K are trained."""

    where: tuple[Tensor, ...]  # (K,) each: indices into a (B, T) or (N,) tensor
    trained: Tensor  # (K,): indices into the row
    boundaries: list[int]  # where sequences begin in the row, and where the last one ends
    cu_seqlens: Tensor  # the same, on the device
    right_to_left: list[Chunk]  # at least one; they cover the row
    size: int  # trained tokens in a chunk at most


def cut(
    mask: Tensor,
    targets: Tensor,
    vocabulary: int,
    chunk_tokens: int,
    *,
    cu_seqlens: Tensor | None = None,
    learns: Tensor | None = None,
) -> Chunks:
    """Chunks of `chunk_tokens` trained tokens at most.

    Args:
        mask: (B, T) or (N,) bool: which tokens are trained.
        targets: Like `mask`: their ids, from 0 to below `vocabulary`.
        cu_seqlens: (S + 1,) boundaries of the sequences, packed.
        learns: Like `mask`, bool: which can have a gradient; by default all.

    Raises:
        InvalidInputError: A trained target lies outside the vocabulary, or `cu_seqlens` are no boundaries.
    """
    row, sequences, chunks = mask.reshape(-1), len(mask) if mask.dim() == 2 else 1, -(-mask.numel() // chunk_tokens)
    positions = torch.arange(len(row), device=row.device)
    if cu_seqlens is None:
        cu_seqlens = torch.arange(sequences + 1, device=row.device) * (len(row) // max(1, sequences))
    so_far = row.cumsum(0)  # trained tokens up to here
    left = row.sum() - chunk_tokens * torch.arange(1, chunks + 1, device=row.device)  # trained tokens left of a chunk
    first = torch.searchsorted(so_far, left.clamp(min=0) + 1)  # a chunk's first trained position
    learning = pad((row if learns is None else row & learns.reshape(-1)).cumsum(0), (1, 0))  # of those before here
    ids = pad(torch.where(mask, targets, 0).reshape(-1), (0, 1))
    facts = [row.sum()[None], ids.min()[None], ids.max()[None], learning[-1:], first, learning[first]]
    read: list[int] = torch.cat([fact.long() for fact in (*facts, cu_seqlens.reshape(-1))]).tolist()
    total, least, greatest, learning_tokens = read[:4]
    edges, boundaries = list(zip(read[4 : 4 + chunks], read[4 + chunks :], strict=False)), read[4 + 2 * chunks :]
    check_boundaries(cu_seqlens, boundaries, len(row))
    if least < 0 or greatest >= vocabulary:
        raise InvalidInputError(
            f"A trained target is {least if least < 0 else greatest}, but the head knows ids from 0 to "
            f"{vocabulary - 1}; mask that token out or pass the whole head."
        )
    place = torch.where(row, so_far - 1, len(row))  # all that is not trained goes to one entry more
    trained = positions.new_empty(len(row) + 1).scatter_(0, place, positions)[:total]
    where = (trained,) if mask.dim() == 1 else (trained // mask.shape[1], trained % mask.shape[1])
    cuts = _chunks((len(row), learning_tokens), edges, total, chunk_tokens)
    return Chunks(where, trained, boundaries, cu_seqlens, cuts, chunk_tokens)


def _chunks(end: tuple[int, int], edges: list[tuple[int, int]], total: int, chunk_tokens: int) -> list[Chunk]:
    """`edges` are every chunk's first trained position and the learning tokens before it, `end` the row's end."""
    found, (right, learning_before_right) = [], end
    for number, stop in enumerate(range(total, 0, -chunk_tokens) if total else (0,)):
        start = max(0, stop - chunk_tokens)
        left, learning = edges[number] if start else (0, 0)
        found.append(Chunk(slice(left, right), slice(start, stop), learns=learning_before_right > learning))
        right, learning_before_right = left, learning
    return found
