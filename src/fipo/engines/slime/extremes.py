"""The least and the greatest weight of an update, exact over micro-batches and ranks, through a logger that only sums.

slime adds up what the micro-batches of all ranks report, and divides by the update's batch D: its rollouts, or its
tokens with --calculate-per-token-loss. So micro-batch k of a rank reports v_k · C_k − v_{k−1} · C_{k−1}, where v is the
extreme so far on all ranks and C the rank's part of D so far; these add up to v · D. Ranks agree on v by one maximum of
two numbers a micro-batch, which all ranks have equally many of, and stop when both bounds of the weight are reached.
"""

from argparse import Namespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fipo.core.logged import WEIGHT_MAX, WEIGHT_MIN
from fipo.core.loss import FIPOOutput
from fipo.engines.slime.arguments import params_of
from fipo.engines.slime.contract import slime_function

KEPT = "fipo_weight_extremes"  # in a micro-batch: what it reported
ROUNDING = 1e-6


class WeightExtremes:
    """Follows one update; `start` begins the next one."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets the update before."""
        self._reached, self._at_bounds = torch.full((2,), -torch.inf), False  # −min and max of the weight
        self._part, self._reported = 0.0, torch.zeros(2)

    def see(self, args: Namespace, batch: dict[str, Any], out: FIPOOutput, trained: Tensor) -> dict[str, Tensor]:
        """What this micro-batch reports; the same when --recompute-loss-function asks for it again."""
        if KEPT not in batch:
            batch[KEPT] = self._next(args, batch, out, trained)
        return batch[KEPT]

    def _next(self, args: Namespace, batch: dict[str, Any], out: FIPOOutput, trained: Tensor) -> dict[str, Tensor]:
        mpu = slime_function("mpu")
        reached = self._reached.to(out.weight)
        if trained.any():
            weight = out.weight[trained]
            reached = torch.maximum(reached, torch.stack([-weight.min(), weight.max()]))
        if not self._at_bounds:
            dist.all_reduce(
                reached, op=dist.ReduceOp.MAX, group=mpu.get_data_parallel_group(with_context_parallel=True)
            )
            params, (least, greatest) = params_of(args), reached.tolist()
            self._at_bounds = -least <= params.weight_low + ROUNDING and greatest >= params.weight_high - ROUNDING
        self._reached = reached
        self._part += _part_of_batch(args, batch) / mpu.get_context_parallel_world_size()
        total = torch.where(reached.isinf(), 0, reached * self._part)
        report, self._reported = total - self._reported.to(total), total
        return {WEIGHT_MIN: -report[0], WEIGHT_MAX: report[1]}


def _part_of_batch(args: Namespace, batch: dict[str, Any]) -> float:
    """What this micro-batch adds to slime's divisor."""
    counts = [float(mask.sum()) for mask in batch["loss_masks"]]
    if args.calculate_per_token_loss:
        return sum(max(count, 1.0) for count in counts)
    totals = [float(total) for total in batch["rollout_mask_sums"]]
    return sum(count / total if total else 1.0 for count, total in zip(counts, totals, strict=True))
