"""The two layouts of token tensors, padded (B, T) and packed (N,) with `cu_seqlens`: broadcasts, counts and checks."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fipo.errors import InvalidInputError

MASKS = ("loss_mask", "rejected")


def per_token(name: str, values: Tensor, like: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """To the shape of `like`, one a token: of one a sequence, (S,) or (S, 1), or as it is."""
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
    return per_sequence[sequence_of(cu_seqlens, like.numel())]


def sequence_of(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """(N,) which sequence each of N packed tokens belongs to."""
    return torch.searchsorted(cu_seqlens, torch.arange(tokens, device=cu_seqlens.device), right=True) - 1


def count_per_sequence(flags: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(S,) how many tokens of each sequence are flagged."""
    if cu_seqlens is None:
        return flags.sum(-1)
    counts = torch.nn.functional.pad(flags.cumsum(0), (1, 0))
    return counts[cu_seqlens].diff()


def read_for_free(x: Tensor) -> bool:
    """Whether values may be looked at here: no accelerator would be waited for, and `x` is neither traced nor fake."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode())


def check_layout(tensors: dict[str, Tensor], cu_seqlens: Tensor | None, carry: Tensor | None = None) -> None:
    """All of one shape and device, floating point unless a mask, fit for `cu_seqlens`, which is read, and `carry`."""
    name, first = next(iter(tensors.items()))
    if first.dim() != (2 if cu_seqlens is None else 1):
        raise InvalidInputError(
            f"{name} has shape {tuple(first.shape)}, but must be (B, T), or (N,) together with cu_seqlens; reshape it."
        )
    for other, tensor in (tensors | {"cu_seqlens": cu_seqlens, "carry": carry}).items():
        if tensor is not None and tensor.device != first.device:
            raise InvalidInputError(
                f"{other} is on {tensor.device}, but {name} is on {first.device}; move them to one device."
            )
    for other, tensor in tensors.items():
        if tensor.shape != first.shape:
            raise InvalidInputError(
                f"{other} has shape {tuple(tensor.shape)}, but {name} has {tuple(first.shape)}; give both one shape."
            )
        if other not in MASKS and not tensor.is_floating_point():
            raise InvalidInputError(
                f"{other} has dtype {tensor.dtype}, but must be floating point; pass log-probabilities, not ids."
            )
    if cu_seqlens is not None and not (torch.compiler.is_compiling() or cu_seqlens.is_meta):
        values, tokens = cu_seqlens.tolist(), first.numel()  # for which an accelerator is waited for
        integer = not cu_seqlens.is_floating_point() and cu_seqlens.dim() == 1 and len(cu_seqlens) > 0
        if not integer or values[0] != 0 or values[-1] != tokens or values != sorted(values):
            raise InvalidInputError(
                f"cu_seqlens is {values[:8]}…, but must be integer boundaries that rise from 0 to {tokens}, the number "
                "of packed tokens; pass the cumulative sequence lengths."
            )
    sequences = len(first) if cu_seqlens is None else len(cu_seqlens) - 1
    if carry is not None and carry.shape != (sequences,):
        raise InvalidInputError(
            f"carry has shape {tuple(carry.shape)}, but must be ({sequences},); pass one value a sequence."
        )
