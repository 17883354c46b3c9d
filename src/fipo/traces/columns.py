"""What traces show of every token's credit, as tensors."""

from typing import Any

import torch
from torch import Tensor

from fipo.core.credit import TokenCredit, token_credit
from fipo.params import FIPOParams

FLAGS = {  # name → bit of `flags`
    "outside": 1,  # trained, but future_kl does not sum over it (its ratio exceeds dual_clip_c)
    "safety_capped": 2,
    "clipped_low": 4,
    "clipped_high": 8,
    "dual_clipped": 16,
}
DAPO_CLIP = (0.2, 0.28)  # of PPO's, which dumps do not record


def trace_columns(
    credit: TokenCredit, trained: Tensor, clip_range: tuple[float, float], **others: Tensor
) -> dict[str, Tensor]:
    """The columns of Trace that credit gives, and `others`, in the shape of `trained`, without gradient.

    Args:
        credit: Of these tokens, in any layout.
        trained: bool, the loss mask.
        clip_range: PPO's epsilon_low and epsilon_high.
        others: `logps`, `old_logps`, `advantages`, `entropy`, `rollout_logps`; advantages are needed.
    """
    ratio, advantages, (epsilon_low, epsilon_high) = credit.log_ratio.exp(), others["advantages"], clip_range
    found = {
        "outside": ~credit.participates,
        "safety_capped": credit.safety_capped,
        "clipped_low": (advantages < 0) & (ratio < 1 - epsilon_low),
        "clipped_high": (advantages > 0) & (ratio > 1 + epsilon_high),
        "dual_clipped": credit.dual_clipped,
    }
    flags = torch.stack([bit * (trained & found[name]) for name, bit in FLAGS.items()]).sum(0)
    columns = {name: getattr(credit, name) for name in ("log_ratio", "future_kl", "raw_weight", "weight")} | others
    columns = {name: column.detach().float() for name, column in columns.items()}
    return columns | {"trained": trained.bool(), "flags": flags.to(torch.uint8)}


def credit_of_dump(
    logps: Any, old_logps: Any, advantages: Any, trained: Any, params: FIPOParams | None
) -> dict[str, Any]:
    """`dropped`, and as numpy arrays the columns that fipo gives one completion's (T,) log-probs."""
    logps, old_logps, advantages = (torch.as_tensor(column).float()[None] for column in (logps, old_logps, advantages))
    mask = torch.as_tensor(trained).bool()[None]
    credit = token_credit(logps, old_logps, advantages, mask, params or FIPOParams())
    columns = trace_columns(credit, mask, DAPO_CLIP, advantages=advantages)
    names = ("log_ratio", "future_kl", "raw_weight", "weight", "flags")
    return {name: columns[name][0].numpy() for name in names} | {"dropped": bool(credit.dropped[0])}
