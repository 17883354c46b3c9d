"""What verl logs: its own policy metrics and FIPO's, exact over micro-batches and ranks.

verl takes the mean of whatever it is given, over all micro-batches of an update and over its ranks. A mean of
micro-batch means would weigh a token by its neighbours. So every row is given as one value, its tokens' sum times
rows / tokens of the whole update: rows are as many on every rank, and the mean over rows is the mean over tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fipo.core.loss import FIPOOutput
from fipo.core.statistics import TOKEN_MEANS

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


def batch_metrics(out: FIPOOutput, mask: Tensor, global_batch_info: dict[str, Any]) -> dict[str, Any]:
    """One micro-batch's metrics by name: token means, and the share of rows that were dropped.

    Args:
        out: Of the micro-batch, (B, T).
        mask: (B, T) bool, the trained tokens.
        global_batch_info: verl's counts of the update's tokens and rows over all ranks. Workers of verl 0.7 that count
            per micro-batch leave it empty; they get this micro-batch's means, as of verl's own losses.
    """
    rows, tokens = (global_batch_info.get(name) for name in ("global_batch_size", "batch_num_tokens"))
    exact = Metric is not None and rows and tokens
    token_sums = [torch.where(mask, of(out), 0).sum(-1, dtype=torch.float32) for of in MEANS.values()]
    if not exact:
        rows, tokens = len(mask), mask.sum()
    per_row = torch.stack(token_sums) * (rows / max(int(tokens), 1))
    per_row = torch.cat([per_row, out.dropped[None].float()])
    names = (*MEANS, "fipo/dropped_sequences")
    if not exact:
        return dict(zip(names, (per_row.sum(-1) / max(rows, 1)).tolist(), strict=True))
    return {name: _mean_over(values) for name, values in zip(names, per_row.tolist(), strict=True)}


def _mean_over(values: list[float]) -> Any:
    metric = Metric("mean")
    metric.extend(values)
    return metric
