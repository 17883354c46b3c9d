"""What rounding does to weights: their error beside what an update truly did, with standard errors over responses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fipo.core import token_credit
from fipo.params import FIPOParams


@dataclass(frozen=True)
class Estimate:
    """A mean over responses and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2g}±{self.error:.1g}"


@dataclass(frozen=True)
class WeightErrors:
    """Means over the trained tokens of a response, then over responses; the units are nats and weights."""

    true_log_ratio: Estimate  # |log-ratio| without rounding
    true_weight: Estimate  # |weight − 1|, likewise
    log_ratio: Estimate  # |error|
    future_kl: Estimate
    weight: Estimate
    wrong_side: Estimate  # share of weights that lie on the other side of 1 than the true one
    correlation: Estimate  # of all weights with the true ones; NaN where one of them is constant


def weight_errors(
    measured: tuple[Tensor, Tensor],
    true: tuple[Tensor, Tensor],
    advantages: Tensor,
    trained: Tensor,
    params: FIPOParams,
) -> WeightErrors:
    """Compares the weights of two pairs of (log π_θ, log π_old), all (N, T); `advantages` (N,), a mask `trained`."""
    found, truth = (token_credit(*pair, advantages, trained, params) for pair in (measured, true))

    def mean(values: Tensor) -> Estimate:
        means = torch.where(trained, values.double(), 0).sum(-1) / trained.sum(-1)
        return Estimate(means.mean().item(), (means.std() / len(means) ** 0.5).item())

    off = (found.weight - 1) * (truth.weight - 1) < 0
    return WeightErrors(
        true_log_ratio=mean(truth.log_ratio.abs()),
        true_weight=mean((truth.weight - 1).abs()),
        log_ratio=mean((found.log_ratio - truth.log_ratio).abs()),
        future_kl=mean((found.future_kl - truth.future_kl).abs()),
        weight=mean((found.weight - truth.weight).abs()),
        wrong_side=mean(off),
        correlation=_correlation(found.weight, truth.weight, trained),
    )


def _correlation(x: Tensor, y: Tensor, trained: Tensor) -> Estimate:
    """Pearson's over all tokens, its error by the jackknife over responses."""
    x, y = (torch.where(trained, values.double() - 1, 0) for values in (x, y))  # weights lie about 1
    sums = torch.stack([values.sum(-1) for values in (trained, x, y, x * x, y * y, x * y)])  # (6, N)

    def of(sums: Tensor) -> Tensor:
        n, x, y, xx, yy, xy = sums
        return (n * xy - x * y) / ((n * xx - x * x) * (n * yy - y * y)).sqrt()

    whole = sums.sum(-1)
    without = of(whole[:, None] - sums)
    n = len(trained)
    return Estimate(of(whole).item(), ((n - 1) / n * (without - without.mean()).square().sum()).sqrt().item())
