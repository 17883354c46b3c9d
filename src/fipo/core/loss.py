"""The FIPO policy loss, token by token (Ma et al., arXiv:2603.19835).

    log_ratio_t = clamp(log π_θ − log π_old, ±20)          ratio = exp(log_ratio)
    M_t         = loss_mask_t ∧ ratio_t ≤ dual_clip_c
    future_kl_t = Σ_{k ≥ t} γ^{d(t,k)} · M_k · log_ratio_k
    weight_t    = clip(exp(future_kl_t), weight_low, weight_high), in [0.8, 1] where A_t < 0 and ratio_t > safety_thresh
    loss_t      = dual-clipped PPO loss with the advantage A_t · weight_t; no gradient flows through the weight

Everything runs in float32, or in float64 where an input is float64: with a bfloat16 γ the half-life of 32 tokens
would be 35. A masked position never reaches a trained one, whatever it holds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fipo.core.layout import check_layout, count_per_sequence, per_token, spread
from fipo.core.scan import discounted_suffix_sum
from fipo.errors import InvalidParameterError
from fipo.params import FIPOParams

LOG_RATIO_LIMIT = 20.0  # exp(20) ≈ 5e8: far beyond any clip, far below overflow
SAFE_WEIGHT_LOW, SAFE_WEIGHT_HIGH = 0.8, 1.0  # constants of the authors' code; the paper's text says 1


@dataclass(frozen=True, slots=True)
class FIPOOutput:
    """What FIPO knows about every token. All tensors are (B, T), or (N,) for packed input; only `loss` has a gradient.

    Outside the loss mask values are 0 (`weight`, `raw_weight`: 1); only `future_kl` keeps the recurrence's value there.
    """

    loss: Tensor  # policy loss; reduce it over `kept`
    kept: Tensor  # bool: trained, and not in a dropped sequence
    log_ratio: Tensor
    future_kl: Tensor
    raw_weight: Tensor  # exp(future_kl)
    weight: Tensor  # the weight that the loss used
    participates: Tensor  # bool: M, the tokens that future_kl sums over
    at_low: Tensor  # bool: raw_weight lies below the lower bound
    at_high: Tensor  # bool: raw_weight lies above the upper bound
    safety_capped: Tensor  # bool: the safety rule changed the weight
    clipped_low: Tensor  # bool: A < 0 and the ratio is clipped at 1 − epsilon_low
    clipped_high: Tensor  # bool: A > 0 and the ratio is clipped at 1 + epsilon_high
    dual_clipped: Tensor  # bool: A < 0 and the dual clip binds strictly
    dropped: Tensor  # bool, (B,), or (S,) packed: sequences with more than max_dual_clipped dual-clipped tokens


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
    dual_clipped_outside: Tensor | None = None,
) -> FIPOOutput:
    """Per-token FIPO policy loss.

    Args:
        logps: (B, T) log π_θ of the sampled tokens, or (N,) packed with `cu_seqlens`. Differentiable.
        old_logps: Like `logps`: log π_old, the policy at the start of the rollout's updates.
        advantages: (B,), (B, 1) or (B, T); packed: (N,), (S, 1), or (S,) where S ≠ N.
        loss_mask: Like `logps`, boolean or 0/1; true = trained.
        params: The knobs.
        epsilon_low, epsilon_high: PPO's clip range, [1 − epsilon_low, 1 + epsilon_high].
        cu_seqlens: (S + 1,) integer boundaries of packed sequences, from 0 to N.
        carry: (B,), or (S,) packed: future_kl of the token right after each sequence's last one here, when the
            sequence goes on.
        dual_clipped_outside: (B,), or (S,) packed: dual-clipped tokens of each sequence that are not among those given,
            which count towards the sequence drop too.

    Returns:
        A FIPOOutput in float32, or float64 where `logps` or `old_logps` is.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit.
        InvalidParameterError: The clip range is not one.
    """
    check_layout({"logps": logps, "old_logps": old_logps, "loss_mask": loss_mask}, cu_seqlens, carry)
    return loss_of_checked(
        logps,
        old_logps,
        advantages,
        loss_mask,
        params,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        cu_seqlens=cu_seqlens,
        carry=carry,
        dual_clipped_outside=dual_clipped_outside,
    )


def loss_of_checked(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    *,
    epsilon_low: float,
    epsilon_high: float,
    cu_seqlens: Tensor | None,
    carry: Tensor | None,
    dual_clipped_outside: Tensor | None,
) -> FIPOOutput:
    """`fipo_loss` of tensors that fit together; it reads nothing back from an accelerator."""
    _check_clip_range(epsilon_low, epsilon_high)
    dtype = torch.promote_types(torch.promote_types(logps.dtype, old_logps.dtype), torch.float32)
    mask = loss_mask.bool()
    advantages = torch.where(mask, per_token("advantages", advantages, logps, cu_seqlens).to(dtype), 0)
    log_ratio = torch.where(mask, logps.to(dtype) - old_logps.to(dtype), 0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()

    with torch.no_grad():
        detached = log_ratio.detach()
        credit = _future_kl(detached, mask, params, cu_seqlens, carry)
        raw_weight = torch.where(mask, credit.exp(), 1)
        weight = torch.where(mask, influence_weights(credit, detached, advantages, params), 1)

    weighted = advantages * weight
    surrogate = -weighted * ratio
    clipped_surrogate = -weighted * ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    loss = torch.maximum(surrogate, clipped_surrogate)
    ceiling = -weighted * params.dual_clip_c
    negative = advantages < 0
    dual_clipped = negative & (ratio > params.dual_clip_c)  # loss > ceiling, but untouched by how the weight rounds
    loss = torch.where(negative, torch.minimum(loss, ceiling), loss)
    count = count_per_sequence(dual_clipped, cu_seqlens)
    dropped = (count if dual_clipped_outside is None else count + dual_clipped_outside) > params.max_dual_clipped

    ratio_clipped = clipped_surrogate > surrogate
    return FIPOOutput(
        loss=loss,
        kept=mask & ~spread(dropped, logps, cu_seqlens),
        log_ratio=detached,
        future_kl=credit,
        raw_weight=raw_weight,
        weight=weight,
        participates=_participates(detached, mask, params),
        at_low=raw_weight < params.weight_low,
        at_high=raw_weight > params.weight_high,
        safety_capped=mask & (weight != raw_weight.clamp(params.weight_low, params.weight_high)),
        clipped_low=ratio_clipped & negative,
        clipped_high=ratio_clipped & ~negative,
        dual_clipped=dual_clipped,
        dropped=dropped,
    )


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
    return _future_kl(log_ratio, loss_mask.bool(), params, cu_seqlens, carry)


def _future_kl(
    log_ratio: Tensor, mask: Tensor, params: FIPOParams, cu_seqlens: Tensor | None, carry: Tensor | None
) -> Tensor:
    summands = torch.where(_participates(log_ratio, mask, params), log_ratio, 0)
    summands.clamp_(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if carry is not None:
        carry = carry.to(summands.dtype)
    if params.distance == "trained":
        return _scan_trained(summands, mask, params, cu_seqlens, carry)
    return discounted_suffix_sum(summands, params.decay_rate, carry=carry, cu_seqlens=cu_seqlens)


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


def _participates(log_ratio: Tensor, mask: Tensor, params: FIPOParams) -> Tensor:
    """M, with ratio ≤ c taken as log_ratio ≤ log c. A NaN at a trained token stays in, so that it is seen."""
    return mask & ~(log_ratio > math.log(params.dual_clip_c))


def _scan_trained(
    summands: Tensor, mask: Tensor, params: FIPOParams, cu_seqlens: Tensor | None, carry: Tensor | None
) -> Tensor:
    """The scan with distances counted in trained tokens: cut the others out, scan, and spread the result again.

    A token that is not trained gets the value of the next trained one, so that `[:, 0]` is the carry here too.
    """
    if summands.numel() == 0:
        return summands.clone()
    flat = summands.reshape(-1)
    boundaries = cu_seqlens
    if boundaries is None:
        boundaries = torch.arange(len(summands) + 1, device=flat.device) * summands.shape[1]
    total, trained_before = len(flat), pad(mask.reshape(-1).cumsum(0), (1, 0))
    next_trained, ends = trained_before[:-1], trained_before[boundaries]
    # Trained tokens side by side; what is left over at the end is one sequence more, and one entry takes all others.
    place = torch.where(mask.reshape(-1), next_trained, total)
    packed = discounted_suffix_sum(
        flat.new_zeros(total + 1).index_put((place,), flat)[:-1],
        params.decay_rate,
        carry=None if carry is None else pad(carry, (0, 1)),
        cu_seqlens=pad(ends, (0, 1), value=total),
    )
    sequence = torch.arange(len(ends) - 1, device=flat.device).repeat_interleave(boundaries.diff(), output_size=total)
    at_end = flat.new_zeros(len(ends) - 1) if carry is None else carry
    has_next = next_trained < ends[1:][sequence]
    return torch.where(has_next, packed[next_trained.clamp(max=total - 1)], at_end[sequence]).view(summands.shape)


def _check_clip_range(epsilon_low: float, epsilon_high: float) -> None:
    if not (0 <= epsilon_low < 1 and epsilon_high >= 0):
        raise InvalidParameterError(
            f"epsilon_low is {epsilon_low} and epsilon_high is {epsilon_high}, but PPO's clip range needs "
            "0 ≤ epsilon_low < 1 and epsilon_high ≥ 0; change them."
        )
