"""What is minimised at a token: the FIPO loss, the KL to a reference and the entropy bonus."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from fipo.core.layout import check_layout, per_token
from fipo.core.loss import FIPOOutput, fipo_loss, loss_of_checked
from fipo.errors import InvalidInputError
from fipo.params import FIPOParams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """What the loss needs at every token besides the policy: (B, T), or packed (N,), unless another shape is named.

    Raises:
        InvalidInputError: From `spread`: shapes, dtypes or devices do not fit.
    """

    old_logps: Tensor
    advantages: Tensor  # also (B,) or (B, 1), packed (S,) or (S, 1): one a sequence
    loss_mask: Tensor  # boolean or 0/1; true = trained
    ref_logps: Tensor | None = None  # the reference policy's, needed with a KL term
    importance_weights: Tensor | None = None  # factors of the policy loss alone
    entropy_coef: float | Tensor | None = None  # of the entropy bonus: a number, or shapes as of advantages
    denominator: float | Tensor | None = None  # likewise; None: the number of kept tokens

    def spread(self, dtype: torch.dtype, cu_seqlens: Tensor | None = None) -> Self:
        """One value a token everywhere, the given ones in `dtype`."""
        compared = {"old_logps": self.old_logps, "loss_mask": self.loss_mask, "ref_logps": self.ref_logps}
        check_layout({name: tensor for name, tensor in compared.items() if tensor is not None}, cu_seqlens)
        names = ("advantages", "importance_weights", "entropy_coef", "denominator")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        wide = {name: per_token(name, value, self.loss_mask, cu_seqlens).to(dtype) for name, value in given.items()}
        return replace(self, loss_mask=self.loss_mask.bool(), **wide)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """`function` of every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if isinstance(value, Tensor)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised, whatever the batch:

        Σ_{t kept} importance_weight_t · fipo_t / denominator_t
          + Σ_{t trained} (beta · kl_t − entropy_coef_t · entropy_t) / denominator_t

    A dropped sequence gives no policy loss; its KL and its entropy bonus stay, as in the authors' code.
    """

    params: FIPOParams
    epsilon_low: float = 0.2  # PPO's clip range, [1 − epsilon_low, 1 + epsilon_high]
    epsilon_high: float = 0.28
    beta: float = 0.0  # coefficient of KL(π_θ ‖ π_ref)
    unbiased_kl: bool = False  # see `reference_kl`

    def credit(
        self,
        logps: Tensor,
        batch: TokenBatch,
        *,
        cu_seqlens: Tensor | None = None,
        carry: Tensor | None = None,
        dual_clipped_outside: Tensor | None = None,
        checked: bool = False,
    ) -> FIPOOutput:
        """`fipo_loss` of `batch` under log π_θ, whose arguments these are; `checked` ones are taken as they are."""
        return (loss_of_checked if checked else fipo_loss)(
            logps,
            batch.old_logps,
            batch.advantages,
            batch.loss_mask,
            self.params,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            cu_seqlens=cu_seqlens,
            carry=carry,
            dual_clipped_outside=dual_clipped_outside,
        )

    def policy_term(self, out: FIPOOutput, batch: TokenBatch) -> Tensor:
        """importance_weight · fipo / denominator where `out.kept`, else 0. Differentiable where `out.loss` is."""
        policy = out.loss
        if batch.importance_weights is not None:
            policy = policy * torch.where(out.kept, batch.importance_weights, 0)
        return _share(policy, out.kept, batch)

    def regularizer(self, logps: Tensor, entropy: Tensor, batch: TokenBatch) -> Tensor | None:
        """(beta · kl − entropy_coef · entropy) / denominator where trained, else 0; None where there is neither.

        Args:
            logps, entropy: (B, T) or (N,): log π_θ and the policy's entropy in nats. Differentiable.
            batch: `ref_logps` is needed with `beta`.
        """
        mask, terms = batch.loss_mask, []  # outside the mask inputs may hold anything, and NaN · 0 in a gradient is NaN
        if self.beta:
            if batch.ref_logps is None:
                raise InvalidInputError(
                    f"beta is {self.beta}, but ref_logps is None; pass the reference policy's log-probs."
                )
            ref_logps = torch.where(mask, batch.ref_logps, logps.detach())
            old_logps = torch.where(mask, batch.old_logps, logps.detach()) if self.unbiased_kl else None
            terms.append(self.beta * reference_kl(logps, ref_logps, old_logps))
        if batch.entropy_coef is not None:
            terms.append(-torch.where(mask, batch.entropy_coef, 0) * entropy)
        return _share(sum(terms[1:], terms[0]), mask, batch) if terms else None

    def loss(self, out: FIPOOutput, logps: Tensor, entropy: Tensor, batch: TokenBatch) -> Tensor:
        """The sum over all tokens, a scalar; `out` is the `credit` of `logps`."""
        regularizer = self.regularizer(logps, entropy, batch)
        policy = self.policy_term(out, batch).sum()
        return policy if regularizer is None else policy + regularizer.sum()


def _share(values: Tensor, where: Tensor, batch: TokenBatch) -> Tensor:
    if batch.denominator is not None:
        values = values / torch.where(where, batch.denominator, 1)
    return torch.where(where, values, 0)


def reference_kl(logps: Tensor, ref_logps: Tensor, old_logps: Tensor | None = None) -> Tensor:
    """KL(π_θ ‖ π_ref) per token by the k3 estimate, exp(d) − d − 1 with d = log π_ref − log π_θ.

    Given `old_logps`, times π_θ / π_old, which makes the estimate unbiased for samples of π_old. All shapes are equal;
    differentiable in `logps`.
    """
    difference = ref_logps - logps
    kl = difference.exp() - difference - 1
    return kl if old_logps is None else kl * (logps - old_logps).exp()
