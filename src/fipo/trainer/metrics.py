"""FIPO's metrics, exact over micro-batches and ranks: sums are accumulated, added up over ranks, and divided once."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from fipo.core import logged
from fipo.core.precision import widest_float
from fipo.trainer.credit import Credit


class CreditMetrics:
    """Sums of one logging interval, a row for every update within the rollout."""

    names = (*logged.TOKEN_MEANS, "fipo/length_weighted_advantage", "weight_squared", *logged.FIRST_UPDATE_MEANS)

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.reset()

    def reset(self) -> None:
        # After the sums: trained tokens, sequences, dropped ones, and the sums of their least and greatest weights.
        self._found = torch.zeros(self.updates, len(self.names) + 5, dtype=torch.float64)

    def add(self, credit: Credit) -> None:
        """Adds one micro-batch."""
        tokens, mask, wide = credit.tokens, credit.mask, widest_float(credit.mask.device)
        values = {name: of(tokens) for name, of in (logged.TOKEN_MEANS | logged.FIRST_UPDATE_MEANS).items()}
        values |= {"fipo/length_weighted_advantage": credit.advantages, "weight_squared": tokens.weight.square()}
        sums = [torch.where(mask, values[name].to(wide), 0).sum() for name in self.names]
        sequences = mask.any(-1)
        padded = (pad(torch.where(mask, tokens.weight, end), (0, 1), value=end) for end in (torch.inf, -torch.inf))
        least, greatest = padded  # with a column even where no completion has a token
        extremes = [torch.where(sequences, x.to(wide), 0).sum() for x in (least.amin(-1), greatest.amax(-1))]
        counts = [mask.sum(), sequences.sum(), (tokens.dropped & sequences).sum()]
        self._found[credit.update] += torch.stack([*sums, *(count.to(wide) for count in counts), *extremes]).cpu()

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The interval's metrics over all ranks (a collective), empty if nothing was added; starts a new interval."""
        device = accelerator.device if accelerator.num_processes > 1 else torch.device("cpu")
        found = accelerator.reduce(self._found.to(device), reduction="sum").cpu()
        sums, counts = found.split([len(self.names), 5], dim=1)
        self.reset()
        tokens, sequences, dropped, least, greatest = counts.sum(0).tolist()
        if tokens == 0:
            return {}
        metrics = self._means(sums.sum(0), tokens)
        metrics |= {"fipo/weight_min": least / sequences, "fipo/weight_max": greatest / sequences}
        metrics[logged.DROPPED_SEQUENCES] = dropped / sequences
        for update in counts[:, 0].nonzero().flatten().tolist():
            here = self._means(sums[update], counts[update, 0].item())
            metrics |= {f"fipo/update_{update}/{name.removeprefix('fipo/')}": value for name, value in here.items()}
        if counts[0, 0] > 0:
            here = dict(zip(self.names, (sums[0] / counts[0, 0]).tolist(), strict=True))
            metrics |= {name: here[name] for name in logged.FIRST_UPDATE_MEANS}
        return metrics

    def _means(self, sums: Tensor, tokens: float) -> dict[str, float]:
        means = dict(zip(self.names, (sums / tokens).tolist(), strict=True))
        variance = means.pop("weight_squared") - means["fipo/weight_mean"] ** 2
        means["fipo/weight_std"] = max(variance, 0.0) ** 0.5
        return {name: value for name, value in means.items() if name not in logged.FIRST_UPDATE_MEANS}
