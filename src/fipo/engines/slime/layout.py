"""slime's layout: which tokens of a micro-batch lie on which context-parallel rank."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fipo.core.context_parallel import ShardedSequences
from fipo.engines.slime.contract import READ_AT, slime_function
from fipo.errors import InvalidInputError


def response_edges(total_length: int, response_length: int, cp_size: int) -> list[int]:
    """The 2·cp + 1 boundaries of a response's chunks, 0 … response_length.

    A sequence is cut into 2·cp chunks of ceil(L / (2·cp)) tokens. The logits of token t + 1 stand at t, so a chunk owns
    the response tokens that its logits predict; the last token's logits predict none.
    """
    chunk = -(-total_length // (2 * cp_size))
    first_logit = total_length - response_length - 1
    return [min(max(j * chunk - first_logit, 0), response_length) for j in range(2 * cp_size + 1)]


def sharded_sequences(
    batch: dict[str, Any], distance: str, log_probs: list[Tensor], cp_rank: int, cp_size: int
) -> ShardedSequences:
    """Where the tokens of a micro-batch lie: rank r holds chunks r and 2·cp − 1 − r of every sequence, in this order.

    Raises an InvalidInputError where slime cut the sequences otherwise, which this rank's `log_probs`, one tensor a
    sequence, show. `distance` is that of FIPOParams.
    """
    device, places = log_probs[0].device, (cp_rank, 2 * cp_size - 1 - cp_rank)
    lengths, extents = [], []
    for total, response, mask, local in zip(
        batch["total_lengths"], batch["response_lengths"], batch["loss_masks"], log_probs, strict=True
    ):
        edges = torch.tensor(response_edges(total, response, cp_size))
        here = edges.diff()[list(places)]
        if here.sum() != len(local):
            raise InvalidInputError(
                f"This context-parallel rank has {len(local)} of a response's {response} tokens, but by slime's zigzag "
                f"layout as of {READ_AT} it must have {int(here.sum())}; install that version."
            )
        lengths.append(here)
        counts = pad(mask.bool().cumsum(0), (1, 0))[edges.to(mask.device)] if distance == "trained" else edges
        extents.append(counts.diff().to(device))
    return ShardedSequences(
        cu_seqlens=pad(torch.cat(lengths).cumsum(0), (1, 0)).to(device),
        sequence=torch.arange(len(log_probs), device=device).repeat_interleave(2),
        place=torch.tensor(places, device=device).repeat(len(log_probs)),
        extents=torch.stack(extents),
    )


def whole_responses(
    batch: dict[str, Any], rows: Iterable[int], columns: dict[str, Tensor], lengths: list[int]
) -> list[dict[str, Tensor]]:
    """Columns (R,), floating point, of the sequences `rows`, put together from the context-parallel ranks: of this
    rank's (N,) `columns`, in which the sequences of the micro-batch have these `lengths`. `rows` are the same on all.
    """
    dtype = columns["logps"].dtype
    parts = torch.stack([column.detach().to(dtype) for column in columns.values()], 1).split(lengths)
    gather = slime_function("all_gather_with_cp")
    wholes = [gather(parts[row], batch["total_lengths"][row], batch["response_lengths"][row]) for row in rows]
    return [dict(zip(columns, whole.unbind(1), strict=True)) for whole in wholes]
