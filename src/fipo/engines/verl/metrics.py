"""FIPO's metrics in verl's log, exact over micro-batches and ranks.

verl takes the mean of whatever it is given, over all micro-batches of an update and over its ranks. A mean of
micro-batch means would weigh a token by its neighbours. So every row is given as one value, its tokens' sum times
rows / tokens of the whole update: rows are as many on every rank, and the mean over rows is the mean over tokens.
"""

from typing import Any

import torch
from torch import Tensor

from fipo.core import logged
from fipo.core.credit import TokenCredit

try:
    from verl.utils.metric import Metric
except ImportError:  # verl 0.7.0
    Metric = None


def metrics_of(credit: TokenCredit, rounding: Tensor, mask: Tensor, config: Any) -> dict[str, Any]:
    """One micro-batch's metrics by name: token means, and of rows the share that is dropped.

    Args:
        credit: Of the micro-batch, (B, T).
        rounding: (B, T) what rounding does to weights, from `fipo.core.rounding.expected_weight_errors`.
        mask: (B, T) bool, the trained tokens.
        config: verl's ActorConfig, whose global_batch_info counts the update's tokens and rows over all ranks. Workers
            of verl 0.7 that count per micro-batch leave it empty; they get this micro-batch's own numbers, as of verl's
            own losses.
    """
    values = {name: of(credit) for name, of in logged.TOKEN_MEANS.items()} | {logged.ROUNDING: rounding}
    of_tokens = torch.stack([torch.where(mask, value, 0).sum(-1, dtype=torch.float32) for value in values.values()])
    rows, tokens = (config.global_batch_info.get(name) for name in ("global_batch_size", "batch_num_tokens"))
    known = Metric is not None and rows and tokens
    of_tokens *= rows / tokens if known else len(mask) / mask.sum().clamp(min=1)
    of_rows = torch.stack([*of_tokens, credit.dropped.float()]).tolist()
    found = dict(zip((*values, logged.DROPPED_SEQUENCES), of_rows, strict=True))
    if any(found["fipo/non_finite"]):
        logged.warn_of_non_finite()
    if not known:
        return {name: sum(values) / max(1, len(values)) for name, values in found.items()}
    metrics = {name: Metric("mean") for name in found}
    for name, metric in metrics.items():
        metric.extend(found[name])
    return metrics


def rows_of_an_update(config: Any) -> float:
    """On this rank. Workers of verl 0.7 fill no global_batch_info and hold this rank's rows as ppo_mini_batch_size."""
    info = config.global_batch_info
    return (info.get("global_batch_size") or config.ppo_mini_batch_size) / (info.get("dp_size") or 1)
