"""What the importers share."""

from collections.abc import Callable
from typing import Any

import torch

from fipo.core import token_credit
from fipo.params import FIPOParams
from fipo.traces.columns import trace_columns

UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # of hostile input
DAPO_CLIP = (0.2, 0.28)  # dumps do not record PPO's

BytesOf = Callable[[int], bytes]  # from a token id


def credit(logps: Any, old_logps: Any, advantages: Any, trained: Any, params: FIPOParams | None) -> dict[str, Any]:
    """The columns that fipo gives one completion's (T,) log-probs."""
    logps, old_logps, advantages = (torch.as_tensor(column).float()[None] for column in (logps, old_logps, advantages))
    mask = torch.as_tensor(trained).bool()[None]
    found = token_credit(logps, old_logps, advantages, mask, params or FIPOParams())
    columns = trace_columns(found, mask, DAPO_CLIP, advantages=advantages)
    names = ("log_ratio", "future_kl", "raw_weight", "weight", "flags")
    return {name: columns[name][0].numpy() for name in names} | {"dropped": bool(found.dropped[0])}
