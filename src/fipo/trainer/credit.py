"""What is known of one micro-batch's credit, as observers of a FIPOTrainer see it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fipo.core import TokenCredit
from fipo.core.layout import per_token


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """One micro-batch of B completions of T tokens, without gradient; nothing of it may be changed."""

    tokens: TokenCredit  # (B, T)
    logps: Tensor  # (B, T) log π_θ
    entropy: Tensor  # (B, T) of π_θ, in nats
    inputs: dict[str, Any]  # the micro-batch as TRL hands it to the loss, π_old in `old_per_token_logps`
    mask: Tensor  # (B, T) bool: the trained tokens
    training: bool  # false while TRL evaluates
    rollout: int  # from 0
    micro_batch: int  # since the rollout, from 0
    update: int  # which optimizer step since the rollout it is part of, from 0

    @property
    def advantages(self) -> Tensor:
        """(B, T), not yet weighed."""
        return per_token("advantages", self.inputs["advantages"], self.mask, None)


Observer = Callable[[Credit], None]
