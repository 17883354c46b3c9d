"""The least and the greatest weight of an update, exact over micro-batches and ranks, through a logger that only sums.

An engine adds up what the micro-batches of all ranks report and divides by the update's batch D. So micro-batch k of a
rank reports v_k · C_k − v_{k−1} · C_{k−1}: v is the extreme so far on all ranks, and C the rank's part of D so far.
These add up to v · D. Ranks agree on v by one maximum of two numbers a micro-batch, which all ranks must have equally
many of, and stop when both bounds of the weight are reached: nothing lies beyond.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from fipo.core.loss import FIPOOutput
from fipo.params import FIPOParams

ROUNDING = 1e-6


class SummedExtremes:
    """Follows one update; `start` begins the next one."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets the update before."""
        self.part: float | Tensor = 0.0  # of the engine's divisor, so far
        self._reached, self._at_bounds = torch.full((2,), -torch.inf), False  # −min and max
        self._reported = torch.zeros(2)

    def report(
        self,
        out: FIPOOutput,
        trained: Tensor,
        params: FIPOParams,
        part: float | Tensor,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """(2,) what a micro-batch reports for the least and the greatest weight.

        Args:
            out: Of the micro-batch.
            trained: Bool, like `out.weight`.
            params: The bounds of the weight.
            part: What the micro-batch adds to this rank's part of the engine's divisor.
            group: The ranks whose reports are added up; None: all of them, or this process alone.
        """
        reached = self._reached.to(out.weight)
        if trained.any():
            weight = out.weight[trained]
            reached = torch.maximum(reached, torch.stack([-weight.min(), weight.max()]))
        if not self._at_bounds:
            if dist.is_initialized():
                dist.all_reduce(reached, op=dist.ReduceOp.MAX, group=group)
            minus_least, greatest = reached.tolist()
            self._at_bounds = -minus_least <= params.weight_low + ROUNDING and greatest >= params.weight_high - ROUNDING
        self._reached, self.part = reached, self.part + part
        total = torch.where(reached.isinf(), 0, reached * self.part)
        report, self._reported = total - self._reported.to(total), total
        return report * torch.tensor([-1, 1], device=report.device)
