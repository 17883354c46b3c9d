"""What is said about results: interquartile means with stratified bootstrap intervals, and comparisons (rliable)."""

from collections.abc import Callable, Container
from functools import cache
from typing import Any

import numpy as np
from rliable import library, metrics
from scipy.stats import permutation_test, t

from experiments.protocol import Arm, Elsewhere, Run, Setting

REPETITIONS = 5000
Results = dict[Run, dict[str, Any]]
Interval = tuple[float, float, float]  # estimate, lower and upper end of its 95 % interval


def accuracy_at_start(result: dict[str, Any]) -> float:
    """Held-out accuracy before the first rollout."""
    return result["evaluations"]["accuracy"][0]


def final_accuracy(result: dict[str, Any]) -> float:
    """Held-out accuracy after the last rollout."""
    return result["evaluations"]["accuracy"][-1]


def area_under_curve(result: dict[str, Any]) -> float:
    """Mean held-out accuracy over the samples: the trapezoids under the curve, divided by its width."""
    samples, accuracy = (np.array(result["evaluations"][name]) for name in ("samples", "accuracy"))
    return float(np.trapezoid(accuracy, samples) / (samples[-1] - samples[0]))


SCORES: dict[str, Callable[[dict[str, Any]], float]] = {
    "final accuracy": final_accuracy,
    "area under curve": area_under_curve,
}


def scores(
    results: Results, setting: Setting | Elsewhere, arm: Arm, score: Callable[[dict[str, Any]], float]
) -> dict[int, float]:
    """By seed, of the runs that are there."""
    found = {run.seed: result for run, result in results.items() if (run.setting, run.arm) == (setting, arm)}
    return {seed: score(result) for seed, result in sorted(found.items())}


def of_seeds(results: Results, seeds: Container[int]) -> Results:
    return {run: result for run, result in results.items() if run.seed in seeds}


@cache  # tables and figures ask for the same ones
def interquartile_mean(values: tuple[float, ...]) -> Interval:
    """Of one score a seed, with the percentile bootstrap over seeds."""
    return tuple(interquartile_means(np.array(values)[:, None])[0])


def interquartile_means(values: np.ndarray) -> np.ndarray:
    """(points, 3) from (seeds, points): each point's interquartile mean over seeds, and its interval."""
    point, interval = _bootstrap(values, middle_mean)
    return np.stack([point, *interval], axis=1)


def middle_mean(values: np.ndarray) -> np.ndarray:
    """(points,) from (seeds, points): the interquartile mean, as scipy's trim_mean, which is ten times slower here."""
    cut = len(values) // 4
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """Interquartile mean of the differences on the seeds that both have: same start, same problems."""
    a, b = _on_shared_seeds(ours, theirs)
    return interquartile_mean(tuple(a - b))


def sign_flip_p(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """Two-sided p of the mean difference over all ways to flip the differences' signs; with n seeds at least 2^(1 − n).

    Exact at any number of seeds, where a percentile bootstrap over few of them is too narrow.
    """
    found = permutation_test(
        _on_shared_seeds(ours, theirs),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    return float(found.pvalue)


def detectable_difference(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The mean difference that so many seeds, as spread as these, show four times in five (t-test, two-sided, 5 %)."""
    a, b = _on_shared_seeds(ours, theirs)
    freedom = len(a) - 1
    return float((t.ppf(0.975, freedom) + t.ppf(0.8, freedom)) * np.std(a - b, ddof=1) / np.sqrt(len(a)))


def probability_of_improvement(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """That a run of ours scores above a run of theirs, seeds drawn independently; a tie is half."""
    columns = [np.array(list(values.values()))[:, None] for values in (ours, theirs)]
    point, interval = _bootstrap(columns, lambda *drawn: np.array([metrics.probability_of_improvement(*drawn)]))
    return float(point[0]), *interval[:, 0]


def _on_shared_seeds(ours: dict[int, float], theirs: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    seeds = sorted(ours.keys() & theirs.keys())
    return np.array([ours[seed] for seed in seeds]), np.array([theirs[seed] for seed in seeds])


def _bootstrap(
    values: np.ndarray | list[np.ndarray], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    np.random.seed(0)  # rliable draws from numpy's global generator
    points, intervals = library.get_interval_estimates({"": values}, statistic, reps=REPETITIONS)
    return points[""], intervals[""]
