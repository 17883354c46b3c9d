"""FIPO's policy loss, for people with a loop of their own: dual-clipped PPO of the weighed advantages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fipo.core.credit import CREDIT_FIELDS, TokenCredit, clamped_log_ratio, token_credit
from fipo.core.layout import per_token
from fipo.errors import InvalidInputError, InvalidParameterError
from fipo.params import FIPOParams


@dataclass(frozen=True, slots=True, kw_only=True)
class FIPOOutput(TokenCredit):
    """The loss beside all that `token_credit` gives; only `loss` has a gradient."""

    loss: Tensor  # policy loss; reduce it over `kept`
    clipped_low: Tensor  # bool: A < 0 and the ratio is clipped at 1 − epsilon_low
    clipped_high: Tensor  # bool: A > 0 and the ratio is clipped at 1 + epsilon_high


def fipo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.28,
    cu_seqlens: Tensor | None = None,
    carry: Tensor | None = None,
    rejected: Tensor | None = None,
    dual_clipped_outside: Tensor | None = None,
) -> FIPOOutput:
    """Per-token FIPO policy loss.

        loss_t = max(−A·w·ratio, −A·w·clamp(ratio, 1 − epsilon_low, 1 + epsilon_high)); if A < 0, ≤ −A·w·dual_clip_c

    Args:
        logps, old_logps, advantages, loss_mask, params: As for `token_credit`. Differentiable in `logps`.
        epsilon_low, epsilon_high: PPO's clip range, [1 − epsilon_low, 1 + epsilon_high].
        cu_seqlens, carry, rejected, dual_clipped_outside: As for `token_credit`.

    Returns:
        A FIPOOutput in float32, or float64 where `logps` or `old_logps` is.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
        InvalidParameterError: The clip range is not one.
    """
    if not (0 <= epsilon_low < 1 and epsilon_high >= 0):
        raise InvalidParameterError(
            f"epsilon_low is {epsilon_low} and epsilon_high is {epsilon_high}, but PPO's clip range needs "
            "0 ≤ epsilon_low < 1 and epsilon_high ≥ 0; change them."
        )
    outside = {"carry": carry, "rejected": rejected, "dual_clipped_outside": dual_clipped_outside}
    credit = token_credit(logps, old_logps, advantages, loss_mask, params, cu_seqlens=cu_seqlens, **outside)
    trained = loss_mask.bool() & ~credit.non_finite
    ratio = clamped_log_ratio(logps, old_logps, trained).exp()
    advantages = torch.where(trained, per_token("advantages", advantages, logps, cu_seqlens).to(ratio), 0)

    weighted, negative = advantages * credit.weight, advantages < 0
    surrogate = -weighted * ratio
    clipped_surrogate = -weighted * ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    loss = torch.maximum(surrogate, clipped_surrogate)
    loss = torch.where(negative, torch.minimum(loss, -weighted * params.dual_clip_c), loss)
    clipped = (clipped_surrogate > surrogate).detach()
    known = {name: getattr(credit, name) for name in CREDIT_FIELDS}
    return FIPOOutput(loss=loss, clipped_low=clipped & negative, clipped_high=clipped & ~negative, **known)


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
