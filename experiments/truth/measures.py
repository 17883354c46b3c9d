"""How well a signal points at the true credit: of each response, and then over responses."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

DECIDED = 0.1  # a response has a deciding token if one changes the probability of a right answer by so much
MOST_OF_TRUTH = 0.8
REPETITIONS = 2000


def of_response(signal: Tensor, truth: Tensor) -> dict[str, float]:
    """How one response's signal points at the truth, both (T,); a constant signal has correlation 0 and AUC 0.5.

    The rank correlation with the truth; the share of the signal's size on the tokens that hold 80 % of the truth's; the
    area under the ROC curve of the signal's size for the deciding token.
    """
    size = signal.abs().double().numpy()
    decisive = int(truth.abs().argmax())
    return {
        "rank correlation": rank(signal, truth),
        "share": float(size[_holders(truth)].sum() / max(size.sum(), 1e-12)),
        "AUC": float((rankdata(size)[decisive] - 1) / max(len(size) - 1, 1)),
    }


def is_decided(truth: Tensor) -> bool:
    return bool(truth.abs().max() > DECIDED)


def chance(truth: Tensor) -> float:
    """The share of a signal that is the same at every token."""
    return len(_holders(truth)) / len(truth)


def over_responses(values: list[float], prompts: list[int], seed: int = 0) -> tuple[float, float, float]:
    """The mean, and its 95 % interval by a bootstrap over prompts, whose responses stay together."""
    numbers = np.unique(prompts, return_inverse=True)[1]
    sums, counts = np.bincount(numbers, values), np.bincount(numbers)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (REPETITIONS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def _holders(truth: Tensor) -> list[int]:
    """The fewest tokens that hold 80 % of the truth's size."""
    size, order = truth.abs().double().sort(descending=True)
    count = int((size.cumsum(0) < MOST_OF_TRUTH * size.sum() * (1 - 1e-9)).sum()) + 1
    return order[:count].tolist()


def rank(signal: Tensor, truth: Tensor) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where either is constant."""
    a, b = (rankdata(column.double().numpy()) for column in (signal, truth))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def gradient_measures(gradients: Tensor) -> dict[str, float]:
    """Of one signal's gradients (batches, parameters): how much of it is the same in every batch.

    The signal-to-noise ratio is the squared size of the mean gradient, without what noise adds to it, over a batch's
    mean squared deviation.
    """
    batches = len(gradients)
    mean = gradients.mean(0)
    noise = (gradients - mean).square().sum() / (batches - 1)
    signal = mean.square().sum() - noise / batches
    return {"signal-to-noise": float(signal / noise)}


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
