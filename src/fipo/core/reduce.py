"""Reductions with explicit denominators."""

import torch
from torch import Tensor

from fipo.errors import InvalidInputError


def token_mean(values: Tensor, mask: Tensor, *, denominator: float | Tensor | None = None) -> Tensor:
    """Σ values over `mask`, divided by `denominator`.

    Args:
        values: Per-token values of any shape. Differentiable; what lies outside the mask, NaN included, has no effect.
        mask: Boolean or 0/1, of the same shape: `out.kept` for the paper's mean.
        denominator: What to divide by, for instance the step's token count over all ranks and micro-batches. By
            default the number of tokens in the mask, at least 1, so an empty batch gives 0.

    Returns:
        A scalar in the dtype of `values`, at least float32.

    Raises:
        InvalidInputError: The shapes differ.
    """
    if values.shape != mask.shape:
        raise InvalidInputError(
            f"mask has shape {tuple(mask.shape)}, but values have {tuple(values.shape)}; pass one mask entry a value."
        )
    mask = mask.bool()
    total = torch.where(mask, values, 0).sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return total / (mask.sum().clamp(min=1) if denominator is None else denominator)
