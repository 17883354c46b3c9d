"""FIPO's metrics, exact over micro-batches and ranks: sums are accumulated, added up over ranks, and divided once."""

import torch
from accelerate import Accelerator
from torch import Tensor

from fipo.core.logged import (
    CLIP_MEANS,
    DROPPED_SEQUENCES,
    FIRST_UPDATE_MEANS,
    TOKEN_MEANS,
    WEIGHT_MAX,
    WEIGHT_MIN,
)
from fipo.core.loss import FIPOOutput
from fipo.core.precision import widest_float

MEANS = TOKEN_MEANS | {f"clip_ratio/{name}_mean": of for name, of in CLIP_MEANS.items()}  # the latter as TRL names them


class CreditMetrics:
    """Sums of one logging interval, a row for every update within the rollout."""

    def __init__(self, updates: int, extra: tuple[str, ...]) -> None:
        """`extra`: further token means, given to `add` by name."""
        self.updates = updates
        self.names = (*MEANS, *extra, "weight_squared", *FIRST_UPDATE_MEANS)
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(self.updates, len(self.names), dtype=torch.float64)
        self._counts = torch.zeros(self.updates, 3, dtype=torch.float64)  # trained tokens, sequences, dropped
        self._extremes = torch.full((2,), -torch.inf, dtype=torch.float64)  # −min and max of the weight

    def add(self, out: FIPOOutput, mask: Tensor, update: int, **extra: Tensor) -> None:
        """Adds one micro-batch; `extra` holds the (B, T) values of the names given on creation."""
        mask = mask.bool()
        values = {name: of(out) for name, of in (MEANS | FIRST_UPDATE_MEANS).items()} | extra
        values["weight_squared"] = out.weight.square()
        wide = widest_float(mask.device)
        sums = torch.stack([torch.where(mask, values[name].to(wide), 0).sum() for name in self.names])
        self._sums[update] += sums.cpu()
        sequences = mask.any(-1)
        counts = torch.stack([mask.sum(), sequences.sum(), (out.dropped & sequences).sum()])
        self._counts[update] += counts.cpu()
        if mask.any():
            trained = out.weight[mask].to(wide)
            extremes = torch.stack([-trained.min(), trained.max()]).cpu()
            self._extremes = torch.maximum(self._extremes, extremes)

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The interval's metrics over all ranks (a collective), empty if nothing was added; starts a new interval."""
        device = accelerator.device if accelerator.num_processes > 1 else torch.device("cpu")
        packed = torch.cat([self._sums, self._counts], dim=1).to(device)
        sums, counts = accelerator.reduce(packed, reduction="sum").cpu().split([len(self.names), 3], dim=1)
        extremes = accelerator.gather(self._extremes.to(device)).view(-1, 2).amax(0).tolist()
        self.reset()
        tokens, sequences, dropped = counts.sum(0).tolist()
        if tokens == 0:
            return {}
        metrics = self._means(sums.sum(0), tokens)
        metrics[WEIGHT_MIN], metrics[WEIGHT_MAX] = -extremes[0], extremes[1]
        metrics[DROPPED_SEQUENCES] = dropped / sequences
        for update in counts[:, 0].nonzero().flatten().tolist():
            here = self._means(sums[update], counts[update, 0].item())
            metrics |= {f"fipo/update_{update}/{name.removeprefix('fipo/')}": value for name, value in here.items()}
        if counts[0, 0] > 0:
            here = dict(zip(self.names, (sums[0] / counts[0, 0]).tolist(), strict=True))
            metrics |= {name: here[name] for name in FIRST_UPDATE_MEANS}
        return metrics

    def _means(self, sums: Tensor, tokens: float) -> dict[str, float]:
        means = dict(zip(self.names, (sums / tokens).tolist(), strict=True))
        variance = means.pop("weight_squared") - means["fipo/weight_mean"] ** 2
        means["fipo/weight_std"] = max(variance, 0.0) ** 0.5
        return {name: value for name, value in means.items() if name not in FIRST_UPDATE_MEANS}
