"""The two layouts of token tensors, padded (B, T) and packed (N,) with `cu_seqlens`: broadcasts, counts and checks."""

import torch
from torch import Tensor

from fipo.core.precision import widest_float
from fipo.errors import InvalidInputError


def per_token(name: str, values: float | Tensor, like: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """To the shape of `like`: a number (then of the widest float), one a sequence, (S,) or (S, 1), or one a token."""
    if not isinstance(values, Tensor) or values.dim() == 0:
        number = values if isinstance(values, Tensor) else torch.full((), values, dtype=widest_float(like.device))
        return number.to(like.device, widest_float(like.device), non_blocking=True).expand(like.shape)
    if values.shape == like.shape:
        return values
    sequences = len(like) if cu_seqlens is None else len(cu_seqlens) - 1
    if values.shape not in ((sequences,), (sequences, 1)):
        raise InvalidInputError(
            f"{name} have shape {tuple(values.shape)}, but must have ({sequences},), ({sequences}, 1) or "
            f"{tuple(like.shape)}; pass one a sequence or one a token."
        )
    return spread(values.reshape(sequences), like, cu_seqlens)


def spread(per_sequence: Tensor, like: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(S,) to the shape of `like`: every token gets its sequence's value."""
    if cu_seqlens is None:
        return per_sequence[:, None].expand(like.shape)
    return per_sequence.repeat_interleave(cu_seqlens.diff(), output_size=like.numel())


def count_per_sequence(flags: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(S,) how many tokens of each sequence are flagged."""
    if cu_seqlens is None:
        return flags.sum(-1)
    counts = torch.nn.functional.pad(flags.cumsum(0), (1, 0))
    return counts[cu_seqlens].diff()


def check_layout(tensors: dict[str, Tensor], cu_seqlens: Tensor | None, carry: Tensor | None = None) -> None:
    """All of one shape and device, floating point unless a mask, fit for `cu_seqlens`, which is read, and `carry`."""
    (name, first), *others = tensors.items()
    dimensions = 2 if cu_seqlens is None else 1
    if first.dim() != dimensions:
        raise InvalidInputError(
            f"{name} has shape {tuple(first.shape)}, but must be (B, T), or (N,) together with cu_seqlens; reshape it."
        )
    for other_name, other in others:
        if other.shape != first.shape:
            raise InvalidInputError(
                f"{other_name} has shape {tuple(other.shape)}, but {name} has {tuple(first.shape)}; "
                "give both the same shape."
            )
    for any_name, tensor in tensors.items():
        if any_name != "loss_mask" and not tensor.is_floating_point():
            raise InvalidInputError(
                f"{any_name} has dtype {tensor.dtype}, but must be floating point; pass log-probabilities, not ids."
            )
    known = {**tensors, **{n: x for n, x in {"cu_seqlens": cu_seqlens, "carry": carry}.items() if x is not None}}
    elsewhere = next((n for n, tensor in known.items() if tensor.device != first.device), None)
    if elsewhere is not None:
        raise InvalidInputError(
            f"{elsewhere} is on {known[elsewhere].device}, but {name} is on {first.device}; move them to one device."
        )
    sequences = first.shape[0]
    if cu_seqlens is not None:
        check_boundaries(cu_seqlens, cu_seqlens.tolist(), first.numel())
        sequences = len(cu_seqlens) - 1
    if carry is not None and carry.shape != (sequences,):
        raise InvalidInputError(
            f"carry has shape {tuple(carry.shape)}, but must be ({sequences},); pass one value a sequence."
        )


def check_boundaries(cu_seqlens: Tensor, values: list[int], tokens: int) -> None:
    """`values` are those of `cu_seqlens`, which an accelerator would have to be waited for."""
    integer = not cu_seqlens.is_floating_point() and cu_seqlens.dim() == 1 and len(cu_seqlens) > 0
    if not integer or values[0] != 0 or values[-1] != tokens or values != sorted(values):
        raise InvalidInputError(
            f"cu_seqlens is {values[:8]}…, but must be integer boundaries that rise from 0 to {tokens}, "
            "the number of packed tokens; pass the cumulative sequence lengths."
        )
