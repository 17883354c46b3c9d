"""What verl logs: its own policy metrics and FIPO's, exact over micro-batches and ranks.

verl takes the mean of whatever it is given, over all micro-batches of an update and over its ranks. A mean of
micro-batch means would weigh a token by its neighbours. So every row is given as one value, its tokens' sum times
rows / tokens of the whole update: rows are as many on every rank, and the mean over rows is the mean over tokens.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fipo.core.extremes import SummedExtremes
from fipo.core.logged import CLIP_MEANS, DROPPED_SEQUENCES, TOKEN_MEANS, WEIGHT_MAX, WEIGHT_MIN
from fipo.core.loss import FIPOOutput
from fipo.params import FIPOParams

try:
    from verl.utils.metric import Metric
except ImportError:  # verl 0.7.0
    Metric = None

VERL_MEANS: dict[str, Callable[[FIPOOutput], Tensor]] = {  # as verl's own loss `vanilla` defines them
    "actor/pg_clipfrac": CLIP_MEANS["region"],
    "actor/pg_clipfrac_lower": lambda out: out.dual_clipped,
    "actor/ppo_kl": lambda out: -out.log_ratio,
}
MEANS = VERL_MEANS | TOKEN_MEANS


class Metrics:
    """What the loss reports; it counts rows, to know where an update begins."""

    def __init__(self) -> None:
        self._extremes = SummedExtremes()

    def of(self, out: FIPOOutput, mask: Tensor, params: FIPOParams, config: Any) -> dict[str, Any]:
        """One micro-batch's metrics by name: token means, the share of dropped rows, the least and greatest weight.

        Args:
            out: Of the micro-batch, (B, T).
            mask: (B, T) bool, the trained tokens.
            params: The bounds of the weight.
            config: verl's ActorConfig, whose global_batch_info counts the update's tokens and rows over all ranks.
                Workers of verl 0.7 that count per micro-batch leave it empty; they get this micro-batch's own numbers,
                as of verl's own losses.
        """
        per_row = {name: torch.where(mask, of(out), 0).sum(-1, dtype=torch.float32) for name, of in MEANS.items()}
        per_row[DROPPED_SEQUENCES] = out.dropped.float()
        values = torch.stack(list(per_row.values()))
        rows, tokens = (config.global_batch_info.get(name) for name in ("global_batch_size", "batch_num_tokens"))
        if Metric is None or not rows or not tokens:
            means = values.sum(-1)
            means[:-1] /= mask.sum().clamp(min=1)
            means[-1] /= max(len(mask), 1)
            return dict(zip(per_row, means.tolist(), strict=True)) | _own_extremes(out, mask)
        values[:-1] *= rows / tokens
        metrics = {name: _mean_of(of_rows) for name, of_rows in zip(per_row, values.tolist(), strict=True)}
        return metrics | self._extremes_of(out, mask, params, config)

    def _extremes_of(self, out: FIPOOutput, mask: Tensor, params: FIPOParams, config: Any) -> dict[str, Any]:
        """One value a row, as for the means; the micro-batch's report stands in its first row."""
        known, group = _group(config)
        if not known:
            return {}
        if not len(mask):
            return {WEIGHT_MIN: _mean_of([]), WEIGHT_MAX: _mean_of([])}
        if self._extremes.part >= rows_of_an_update(config):
            self._extremes.start()
        report = self._extremes.report(out, mask, params, len(mask), group).tolist()
        padding = [0.0] * (len(mask) - 1)
        return {name: _mean_of([value, *padding]) for name, value in zip((WEIGHT_MIN, WEIGHT_MAX), report, strict=True)}


def rows_of_an_update(config: Any) -> float:
    """On this rank. Workers of verl 0.7 fill no global_batch_info and hold this rank's rows as ppo_mini_batch_size."""
    info = config.global_batch_info
    return (info.get("global_batch_size") or config.ppo_mini_batch_size) / (info.get("dp_size") or 1)


def _group(config: Any) -> tuple[bool, Any]:
    """Whether the ranks that compute the loss are known, and which they are; None: all."""
    if config.strategy in ("fsdp", "fsdp2"):
        return True, None
    if config.strategy == "megatron":
        from megatron.core import mpu

        return True, mpu.get_data_parallel_group(with_context_parallel=True)
    return False, None


def _own_extremes(out: FIPOOutput, mask: Tensor) -> dict[str, float]:
    """±inf where nothing is trained, so that every other micro-batch decides."""
    weight = out.weight[mask]
    least, greatest = (weight.min().item(), weight.max().item()) if len(weight) else (math.inf, -math.inf)
    return {WEIGHT_MIN: least, WEIGHT_MAX: greatest}


def _mean_of(values: list[float]) -> Any:
    metric = Metric("mean")
    metric.extend(values)
    return metric
