"""The policy loss `fipo`, as verl calls it: verl's own loss `vanilla` of advantages that FIPO has weighed."""

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, compute_policy_loss_vanilla, register_policy_loss

from fipo.core.credit import engine_inputs, token_credit
from fipo.core.rounding import expected_weight_errors, future_kl_errors
from fipo.engines.verl.config import FIPOPolicyLossConfig
from fipo.engines.verl.contract import NAME, check_owner
from fipo.engines.verl.guard import OneUpdateWatch, forward_error, refuse_lost_gradients
from fipo.engines.verl.metrics import metrics_of
from fipo.engines.verl.traced_rows import Traces
from fipo.errors import InvalidParameterError

_watch, _traces = OneUpdateWatch(), Traces()
if NAME in POLICY_LOSS_REGISTRY:  # by this module, when it is loaded again, or by somebody else
    check_owner()


@register_policy_loss(NAME)
def fipo_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """One micro-batch's share of FIPO's policy loss. A dropped sequence gives none, but stays in verl's denominators.

    Args:
        old_log_prob: (B, T) log π_old.
        log_prob: (B, T) log π_θ. Differentiable.
        advantages: (B, T).
        response_mask: (B, T) bool or 0/1; 0 at tool output, at rejected tokens and in whole rows of padding.
        loss_agg_mode: verl's reduction; docs/engines.md has the denominators.
        config: verl's ActorConfig with a FIPOPolicyLossConfig as `policy_loss`; its clip_ratio_low and clip_ratio_high
            (or clip_ratio) are PPO's clip range, its clip_ratio_c the dual clip.
        rollout_is_weights: (B, T) factors of the loss, verl's correction for what the rollout engine sampled; where
            one is 0, the correction has taken the token out.

    Returns:
        The loss, a scalar that carries the gradient, and the metrics, the same keys at every call: those of `vanilla`,
        as verl computes them, and `fipo/…`.

    Raises:
        InvalidParameterError: `config` is not FIPO's, its fields contradict each other, a rule failed, or verl's fused
            head would lose gradients.
    """
    settings = getattr(config, "policy_loss", None)
    if not isinstance(settings, FIPOPolicyLossConfig):
        raise InvalidParameterError(
            f"policy_loss is a {type(settings).__name__}, but loss_mode=fipo needs FIPO's hyper-parameters; add "
            "actor_rollout_ref.actor.policy_loss._target_=fipo.engines.verl.FIPOPolicyLossConfig."
        )
    refuse_lost_gradients(config)
    mask, logps = response_mask.bool(), log_prob.detach()
    rejected = None if rollout_is_weights is None else rollout_is_weights == 0
    known = {"logps": logps, "old_logps": old_log_prob, "advantages": advantages, "loss_mask": mask}
    params = settings.params(config.clip_ratio_c)
    credit = token_credit(**known, params=params, rejected=rejected)
    if settings.weighting is not None:
        fixed = (old[here] for old, here in zip(old_log_prob, mask, strict=True))
        credit = settings.weighting.of_rows(credit, known, fixed)
    _watch.see(credit, config)
    _traces.see(credit, log_prob, old_log_prob, advantages, mask, config)
    weighed, bounded = engine_inputs(credit, logps, old_log_prob, advantages)
    loss, metrics = compute_policy_loss_vanilla(
        old_log_prob=bounded.to(weighed.dtype),
        log_prob=log_prob.to(weighed.dtype),
        advantages=weighed,
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    if not mask.any():  # where verl counts the tokens of this micro-batch alone, the mean would be 0/0
        loss = torch.where(mask, log_prob, 0).sum()
    moved = future_kl_errors(mask, forward_error(config), params)
    rounding = expected_weight_errors(credit, advantages, mask, moved, params)
    return loss, metrics | metrics_of(credit, rounding, mask, config)
