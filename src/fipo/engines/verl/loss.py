"""The policy loss `fipo`, in the shape that verl calls."""

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss

from fipo.core import fipo_loss
from fipo.core.control import control_weights, response_orders
from fipo.engines.verl import registry
from fipo.engines.verl.config import FIPOPolicyLossConfig
from fipo.engines.verl.guard import OneUpdateWatch, refuse_lost_gradients
from fipo.engines.verl.metrics import Metrics
from fipo.engines.verl.tracing import Traces
from fipo.errors import InvalidParameterError

_watch, _metrics, _traces = OneUpdateWatch(), Metrics(), Traces()


@registry.register
def fipo_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """One micro-batch's share of FIPO's policy loss, reduced by verl's `agg_loss`.

    A dropped sequence gives no policy loss; verl adds its KL and entropy bonus all the same. It stays in the
    denominator, which verl counts before anybody knows what will be dropped: so the loss does not depend on
    micro-batches and ranks, and neutral weights are verl's `vanilla`.

    Args:
        old_log_prob: (B, T) log π_old.
        log_prob: (B, T) log π_θ. Differentiable.
        advantages: (B, T).
        response_mask: (B, T) bool or 0/1; 0 at tool output, at rejected tokens and in whole rows of padding.
        loss_agg_mode: verl's reduction; docs/engines.md has the denominators.
        config: verl's ActorConfig with a FIPOPolicyLossConfig as `policy_loss`; its clip_ratio_low and clip_ratio_high
            (or clip_ratio) are PPO's clip range, its clip_ratio_c the dual clip.
        rollout_is_weights: (B, T) factors of the loss, verl's correction for what the rollout engine sampled.

    Returns:
        The loss, a scalar that carries the gradient, and the metrics, the same keys at every call.

    Raises:
        InvalidParameterError: `config` is not FIPO's, its fields contradict each other, or verl's fused head would lose
            gradients.
    """
    params = _settings(config).params(config.clip_ratio_c)
    refuse_lost_gradients(config)
    out = fipo_loss(
        log_prob,
        old_log_prob,
        advantages,
        response_mask,
        params,
        epsilon_low=config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low,
        epsilon_high=config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high,
    )
    if config.policy_loss.control is not None:
        trained = response_mask.bool()
        orders = response_orders(old[here] for old, here in zip(old_log_prob, trained, strict=True))
        out = control_weights(out, trained, config.policy_loss.control, orders)
    _watch.see(out, config)
    _traces.see(out, log_prob, old_log_prob, advantages, response_mask, config)
    loss = out.loss if rollout_is_weights is None else out.loss * torch.where(out.kept, rollout_is_weights, 0)
    loss = torch.where(out.kept, loss, 0)
    metrics = _metrics.of(out, response_mask.bool(), params, config)
    if not response_mask.any():  # where verl counts the tokens of this micro-batch alone, the mean would be 0/0
        return loss.sum(), metrics
    return agg_loss(
        loss_mat=loss, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info
    ), metrics


def _settings(config: Any) -> FIPOPolicyLossConfig:
    settings = getattr(config, "policy_loss", None)
    if not isinstance(settings, FIPOPolicyLossConfig):
        raise InvalidParameterError(
            f"policy_loss is a {type(settings).__name__}, but loss_mode=fipo needs FIPO's hyper-parameters; add "
            "actor_rollout_ref.actor.policy_loss._target_=fipo.engines.verl.FIPOPolicyLossConfig."
        )
    return settings
