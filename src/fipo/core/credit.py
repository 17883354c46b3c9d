"""What FIPO knows of every token: its future-KL, its weight, and the factor on its advantage (arXiv:2603.19835).

    log_ratio_t = clamp(log π_θ − log π_old, ±20)          ratio = exp(log_ratio)
    M_t         = loss_mask_t ∧ ratio_t ≤ dual_clip_c, and the engine's correction did not reject t
    future_kl_t = Σ_{k ≥ t} γ^{d(t,k)} · M_k · log_ratio_k
    weight_t    = clip(exp(future_kl_t), weight_low, weight_high), in [0.8, 1] where A_t < 0 and ratio_t > safety_thresh
    factor_t    = weight_t, but 0 in dropped sequences and at tokens that are not trained

FIPO's policy loss is a dual-clipped PPO loss of the advantage A_t · factor_t; `fipo.core.loss` has it. Everything runs
in float32, or in float64 where an input is float64: with a bfloat16 γ the half-life of 32 tokens would be 35. A masked
position never reaches a trained one, whatever it holds, and a NaN reaches nothing to its right.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fipo.core.layout import check_layout, count_per_sequence, per_token, read_for_free, spread
from fipo.core.logged import warn_of_non_finite
from fipo.core.scan import discounted_suffix_sum, suffix_sum_over
from fipo.params import FIPOParams

LOG_RATIO_LIMIT = 20.0  # exp(20) ≈ 5e8: far beyond any clip, far below overflow
SAFE_WEIGHT_LOW, SAFE_WEIGHT_HIGH = 0.8, 1.0  # constants of the authors' code; the paper's text says 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredit:
    """What FIPO knows of every token, without gradient. All tensors are (B, T), or (N,) for packed input.

    Outside the loss mask values are 0 (`weight`, `raw_weight`: 1); only `future_kl` keeps the recurrence's value there.
    """

    factor: Tensor  # of the advantage: `weight` where `kept`, else 0
    kept: Tensor  # bool: trained, in no dropped sequence, neither rejected nor without π_old
    log_ratio: Tensor
    future_kl: Tensor
    raw_weight: Tensor  # exp(future_kl); may overflow to inf
    weight: Tensor
    participates: Tensor  # bool: M, the tokens that future_kl sums over
    at_low: Tensor  # bool: raw_weight lies below the lower bound
    at_high: Tensor  # bool: raw_weight lies above the upper bound
    safety_capped: Tensor  # bool: the safety rule changed the weight
    dual_clipped: Tensor  # bool: A < 0 and the dual clip binds strictly
    non_finite: Tensor  # bool: trained, but π_old is NaN or infinite there, so the token is left out
    dropped: Tensor  # bool, (B,), or (S,) packed: sequences with more than max_dual_clipped dual-clipped tokens


CREDIT_FIELDS = tuple(field.name for field in fields(TokenCredit))


@torch.no_grad()
def token_credit(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    *,
    cu_seqlens: Tensor | None = None,
    carry: Tensor | None = None,
    rejected: Tensor | None = None,
    dual_clipped_outside: Tensor | None = None,
) -> TokenCredit:
    """FIPO's credit of every token; multiply advantages by its `factor`, and keep your own loss.

    Args:
        logps: (B, T) log π_θ of the sampled tokens, or (N,) packed with `cu_seqlens`.
        old_logps: Like `logps`: log π_old, the policy at the start of the rollout's updates. A trained token whose
            entry is not finite is left out and flagged in `non_finite`.
        advantages: (B,), (B, 1) or (B, T); packed: (N,), (S, 1), or (S,) where S ≠ N.
        loss_mask: Like `logps`, boolean or 0/1; true = trained.
        params: The knobs.
        cu_seqlens: (S + 1,) integer boundaries of packed sequences, from 0 to N.
        carry: (B,), or (S,) packed: future_kl of the token right after each sequence's last one here, when the
            sequence goes on.
        rejected: Like `loss_mask`: trained tokens that a correction of the engine takes out of its loss. They give no
            future credit and do not count towards the drop.
        dual_clipped_outside: (B,), or (S,) packed: dual-clipped tokens of each sequence that are not among those given,
            which count towards the sequence drop too.

    Returns:
        A TokenCredit in float32, or float64 where `logps` or `old_logps` is.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
    """
    masks = {"loss_mask": loss_mask} | ({} if rejected is None else {"rejected": rejected})
    check_layout({"logps": logps, "old_logps": old_logps, **masks}, cu_seqlens, carry)
    mask = loss_mask.bool()
    non_finite = mask & ~old_logps.isfinite()
    if read_for_free(non_finite) and non_finite.any():  # elsewhere an engine warns, when it has read its metrics
        warn_of_non_finite()
    left_in = mask & ~non_finite
    log_ratio = clamped_log_ratio(logps, old_logps, left_in)
    left_in = left_in if rejected is None else left_in & ~rejected.bool()
    advantages = torch.where(mask, per_token("advantages", advantages, logps, cu_seqlens).to(log_ratio), 0)

    participates = _participates(log_ratio, left_in, params)
    future = _future_kl(log_ratio, participates, mask, params, carry=carry, cu_seqlens=cu_seqlens)
    raw_weight = torch.where(mask, future.exp(), 1)
    weight = torch.where(mask, influence_weights(future, log_ratio, advantages, params), 1)

    dual_clipped = left_in & (advantages < 0) & (log_ratio.exp() > params.dual_clip_c)
    count = count_per_sequence(dual_clipped, cu_seqlens)
    dropped = (count if dual_clipped_outside is None else count + dual_clipped_outside) > params.max_dual_clipped
    kept = left_in & ~spread(dropped, logps, cu_seqlens)
    return TokenCredit(
        factor=torch.where(kept, weight, 0),
        kept=kept,
        log_ratio=log_ratio,
        future_kl=future,
        raw_weight=raw_weight,
        weight=weight,
        participates=participates,
        at_low=raw_weight < params.weight_low,
        at_high=raw_weight > params.weight_high,
        safety_capped=mask & (weight != raw_weight.clamp(params.weight_low, params.weight_high)),
        dual_clipped=dual_clipped,
        non_finite=non_finite,
        dropped=dropped,
    )


@torch.no_grad()
def engine_inputs(credit: TokenCredit, logps: Tensor, old_logps: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """What an engine's own loss may be given: advantages times the factor, and π_old without extremes.

    Engines do not clamp log-ratios, and exp(100) · 0 is NaN. Where a trained token's log-ratio lies beyond ±20, or has
    no finite π_old, π_old is moved so that the log-ratio is `credit.log_ratio`, and the factor is 0: the gradient of a
    clamped ratio is 0 too. A π_θ that is not finite stays visible. Advantages are one a token; both results, too.
    """
    extreme = ~((logps - old_logps).abs() <= LOG_RATIO_LIMIT)
    factor = torch.where(extreme & credit.log_ratio.isfinite(), 0, credit.factor)
    old_logps = torch.where(extreme, logps - credit.log_ratio.to(logps.dtype), old_logps)
    return torch.where(factor == 0, 0, advantages * factor), old_logps


def future_kl(
    log_ratio: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    *,
    cu_seqlens: Tensor | None = None,
    carry: Tensor | None = None,
) -> Tensor:
    """future_kl_t = Σ_{k ≥ t} γ^{d(t,k)} · M_k · log_ratio_k, in linear time.

    Args:
        log_ratio: (B, T) log π_θ − log π_old, or (N,) packed with `cu_seqlens`. Clamped to ±20. Differentiable.
        loss_mask: Like `log_ratio`, boolean or 0/1; true = trained.
        params: decay_rate, dual_clip_c and distance are used.
        cu_seqlens: (S + 1,) integer boundaries of packed sequences, from 0 to N.
        carry: (B,), or (S,) packed: future_kl of the token right after each sequence's last one here.

    Returns:
        Like `log_ratio`, in float32 or float64. `[:, 0]` is the carry for what lies to the left.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
    """
    check_layout({"log_ratio": log_ratio, "loss_mask": loss_mask}, cu_seqlens, carry)
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    mask = loss_mask.bool()
    participates = _participates(log_ratio, mask, params)
    return _future_kl(log_ratio, participates, mask, params, carry=carry, cu_seqlens=cu_seqlens)


def influence_weights(future_kl: Tensor, log_ratio: Tensor, advantages: Tensor, params: FIPOParams) -> Tensor:
    """weight_t = clip(exp(future_kl_t), weight_low, weight_high), within [0.8, 1] where A_t < 0 and ratio_t > safety.

    Args:
        future_kl: (B, T) or (N,), from `future_kl`.
        log_ratio: Like `future_kl`.
        advantages: Anything that broadcasts to `future_kl`; (B,) is taken as (B, 1) for a (B, T) future_kl.
        params: The clip range and the safety threshold are used.

    Returns:
        Like `future_kl`, detached: FIPO lets no gradient flow through the weight.
    """
    if future_kl.dim() == 2 and advantages.dim() == 1:
        advantages = advantages[:, None]
    weight = future_kl.detach().exp().clamp(params.weight_low, params.weight_high)
    risky = (advantages < 0) & (log_ratio.detach().exp() > params.safety_thresh)
    return torch.where(risky, weight.clamp(SAFE_WEIGHT_LOW, SAFE_WEIGHT_HIGH), weight)


def clamped_log_ratio(logps: Tensor, old_logps: Tensor, where: Tensor) -> Tensor:
    """log π_θ − log π_old within ±20, and 0 elsewhere; float32 or wider. Differentiable."""
    dtype = torch.promote_types(torch.promote_types(logps.dtype, old_logps.dtype), torch.float32)
    difference = logps.to(dtype) - old_logps.to(dtype)
    return torch.where(where, difference, 0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _participates(log_ratio: Tensor, mask: Tensor, params: FIPOParams) -> Tensor:
    """M, with ratio ≤ c taken as log_ratio ≤ log c. A NaN at a trained token stays in, so that it is seen."""
    return mask & ~(log_ratio > math.log(params.dual_clip_c))


def _future_kl(
    log_ratio: Tensor, participates: Tensor, mask: Tensor, params: FIPOParams, **where: Tensor | None
) -> Tensor:
    """Of the participating tokens; `where` is carry and cu_seqlens."""
    summands = torch.where(participates, log_ratio, 0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if params.distance == "trained":
        return suffix_sum_over(mask, summands, params.decay_rate, **where)
    return discounted_suffix_sum(summands, params.decay_rate, **where)
