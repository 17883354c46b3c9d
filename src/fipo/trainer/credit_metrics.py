"""FIPO's metrics, exact over micro-batches and ranks: sums are accumulated, added up over ranks, and divided once."""

import torch
from accelerate import Accelerator
from torch import Tensor

from fipo.core.logged import TOKEN_MEANS
from fipo.core.loss import FIPOOutput
from fipo.core.precision import widest_float

CLIP_MEANS = {  # under TRL's names
    "clip_ratio/low_mean": lambda out: out.clipped_low,
    "clip_ratio/high_mean": lambda out: out.clipped_high,
    "clip_ratio/region_mean": lambda out: out.clipped_low | out.clipped_high,
}
NOISE = ("noise_floor", "noise_weight_shift")  # counted at update 0 only


class CreditMetrics:
    """Sums of one logging interval, a row for every update within the rollout."""

    def __init__(self, updates: int, extra: tuple[str, ...]) -> None:
        """`extra`: further token means, given to `add` by name."""
        self.updates = updates
        self.names = (*TOKEN_MEANS, *CLIP_MEANS, *extra, "weight_squared", *NOISE)
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(self.updates, len(self.names), dtype=torch.float64)
        self._counts = torch.zeros(self.updates, 3, dtype=torch.float64)  # trained tokens, sequences, dropped
        self._extremes = torch.full((2,), -torch.inf, dtype=torch.float64)  # −min and max of the weight

    def add(self, out: FIPOOutput, mask: Tensor, update: int, **extra: Tensor) -> None:
        """Adds one micro-batch; `extra` holds the (B, T) values of the names given on creation."""
        mask = mask.bool()
        values = {name: of(out) for name, of in (TOKEN_MEANS | CLIP_MEANS).items()} | extra
        values["weight_squared"] = out.weight.square()
        values["noise_floor"] = out.log_ratio.abs()
        values["noise_weight_shift"] = (out.raw_weight - 1).abs()
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
        metrics["fipo/weight_min"], metrics["fipo/weight_max"] = -extremes[0], extremes[1]
        metrics["fipo/dropped_sequences"] = dropped / sequences
        for update in counts[:, 0].nonzero().flatten().tolist():
            here = self._means(sums[update], counts[update, 0].item())
            metrics |= {f"fipo/update_{update}/{name.removeprefix('fipo/')}": value for name, value in here.items()}
        if counts[0, 0] > 0:
            here = dict(zip(self.names, (sums[0] / counts[0, 0]).tolist(), strict=True))
            metrics |= {f"fipo/{name}": here[name] for name in NOISE}
        return metrics

    def _means(self, sums: Tensor, tokens: float) -> dict[str, float]:
        means = dict(zip(self.names, (sums / tokens).tolist(), strict=True))
        variance = means.pop("weight_squared") - means["fipo/weight_mean"] ** 2
        means["fipo/weight_std"] = max(variance, 0.0) ** 0.5
        return {name: value for name, value in means.items() if name not in NOISE}
