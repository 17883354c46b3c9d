"""What verl logs: its own policy metrics and FIPO's, exact over micro-batches and ranks.

verl takes the mean of whatever it is given, over all micro-batches of an update and over its ranks. A mean of
micro-batch means would weigh a token by its neighbours. So every row is given as one value, its tokens' sum times
rows / tokens of the whole update: rows are as many on every rank, and the mean over rows is the mean over tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fipo.core.logged import TOKEN_MEANS
from fipo.core.loss import FIPOOutput

try:
    from verl.utils.metric import Metric
except ImportError:  # verl 0.7.0
    Metric = None

VERL_MEANS: dict[str, Callable[[FIPOOutput], Tensor]] = {  # as verl's own loss `vanilla` defines them
    "actor/pg_clipfrac": lambda out: out.clipped_low | out.clipped_high,
    "actor/pg_clipfrac_lower": lambda out: out.dual_clipped,
    "actor/ppo_kl": lambda out: -out.log_ratio,
}
MEANS = VERL_MEANS | TOKEN_MEANS
DROPPED = "fipo/dropped_sequences"


def batch_metrics(out: FIPOOutput, mask: Tensor, global_batch_info: dict[str, Any]) -> dict[str, Any]:
    """One micro-batch's metrics by name: token means, and the share of rows that were dropped.

    Args:
        out: Of the micro-batch, (B, T).
        mask: (B, T) bool, the trained tokens.
        global_batch_info: verl's counts of the update's tokens and rows over all ranks. Workers of verl 0.7 that count
            per micro-batch leave it empty; they get this micro-batch's means, as of verl's own losses.
    """
    per_row = {name: torch.where(mask, of(out), 0).sum(-1, dtype=torch.float32) for name, of in MEANS.items()}
    per_row[DROPPED] = out.dropped.float()
    values = torch.stack(list(per_row.values()))
    rows, tokens = (global_batch_info.get(name) for name in ("global_batch_size", "batch_num_tokens"))
    if Metric is None or not rows or not tokens:
        means = values.sum(-1)
        means[:-1] /= mask.sum().clamp(min=1)
        means[-1] /= max(len(mask), 1)
        return dict(zip(per_row, means.tolist(), strict=True))
    values[:-1] *= rows / tokens
    return {name: _mean_of(row_values) for name, row_values in zip(per_row, values.tolist(), strict=True)}


def _mean_of(values: list[float]) -> Any:
    metric = Metric("mean")
    metric.extend(values)
    return metric
