"""What is minimised at a token: the FIPO loss, the KL to a reference and the entropy bonus."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from fipo.core.loss import FIPOOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """What the loss needs at every token besides the policy. All tensors have one shape, (B, T) or packed (N,)."""

    old_logps: Tensor
    advantages: Tensor
    loss_mask: Tensor  # bool
    ref_logps: Tensor | None = None
    importance_weights: Tensor | None = None  # factors of the policy loss alone
    entropy_coef: Tensor | None = None
    denominator: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: function(value) for name, value in self.given().items()})

    def given(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def token_objective(
    out: FIPOOutput,
    logps: Tensor,
    entropy: Tensor,
    batch: TokenBatch,
    *,
    beta: float = 0.0,
    unbiased_kl: bool = False,
) -> Tensor:
    """(importance_weight · fipo + beta · kl − entropy_coef · entropy) / denominator, and 0 where not `out.kept`.

    Args:
        out: `fipo_loss` of `logps`.
        logps, entropy: (B, T) or (N,): log π_θ and the policy's entropy in nats. Differentiable.
        batch: Absent tensors add no term; `ref_logps` is needed with `beta`.
        beta: Coefficient of the KL term.
        unbiased_kl: See `reference_kl`.

    Returns:
        Like `logps`; its sum is the loss.
    """
    kept = out.kept  # outside it, inputs may hold anything, and NaN · 0 in a gradient is NaN
    objective = out.loss
    if batch.importance_weights is not None:
        objective = objective * torch.where(kept, batch.importance_weights, 0)
    if beta and batch.ref_logps is not None:
        ref_logps = torch.where(kept, batch.ref_logps, logps.detach())
        old_logps = torch.where(kept, batch.old_logps, logps.detach()) if unbiased_kl else None
        objective = objective + beta * reference_kl(logps, ref_logps, old_logps)
    if batch.entropy_coef is not None:
        objective = objective - torch.where(kept, batch.entropy_coef, 0) * entropy
    if batch.denominator is not None:
        objective = objective / torch.where(kept, batch.denominator, 1)
    return torch.where(kept, objective, 0)


def reference_kl(logps: Tensor, ref_logps: Tensor, old_logps: Tensor | None = None) -> Tensor:
    """KL(π_θ ‖ π_ref) per token by the k3 estimate, exp(d) − d − 1 with d = log π_ref − log π_θ.

    Given `old_logps`, times π_θ / π_old, which makes the estimate unbiased for samples of π_old. All shapes are equal;
    differentiable in `logps`.
    """
    difference = ref_logps - logps
    kl = difference.exp() - difference - 1
    return kl if old_logps is None else kl * (logps - old_logps).exp()
