"""The metrics of one or several runs as plotly figures: runs that differ only in a seed become a mean and a band."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fipo.errors import DataError

SEED = re.compile(r"(.+?)[_-](?:seed[_-]?|s)\d+")
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#7f7f7f"]  # that all eyes distinguish
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
CLIPPED = r"clip_ratio/(low|high)_mean|pg_clipfrac|fipo/(dual_clipped|dropped_sequences)"
CHARTS: list[tuple[str, str, str]] = [  # title, pattern of the metrics shown, unit
    ("Reward", r"reward|critic/score/mean|val-core/.+/reward/mean@\d+", ""),
    ("Held-out accuracy", r"eval_(greedy|(avg|pass)@\d+|.*accuracy.*)|val-core/.+/acc/(mean@\d+|.+/mean)", "%"),
    ("Response length", r"fipo/length_p\d+|response_length/(min|mean|max)", "tokens"),
    ("Weight: mean, and least to greatest", r"fipo/weight_mean", ""),
    ("Weights at the bounds", r"fipo/(weight_at_low|weight_at_high|safety_capped)", "%"),
    ("Policy KL since the rollout", r"fipo/policy_kl", "nats"),
    ("Entropy", r"entropy", "nats"),
    ("Clipped tokens, dropped sequences", CLIPPED, "%"),
]
LARGEST = 1e100  # plotly's axes fail near the end of float64
MOST_POINTS = 500  # of a line: a chart is about as many pixels wide
RANGES = {"fipo/weight_mean": ("fipo/weight_min", "fipo/weight_max")}  # a line's own band


@dataclass(slots=True)
class Metrics:
    """One run's metrics: name → step → value, and a sentence for every line that could not be read."""

    run: str
    series: dict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(dict))
    problems: list[str] = field(default_factory=list)
    steps: str = "update"  # what a step is


def read_metrics(path: Path, run: str) -> Metrics:
    """Reads metrics.jsonl, of `fipo train` or of verl's logger `file`; numbers only.

    A line that is no JSON object with a step is left out and named.
    """
    found = Metrics(run)
    bad = add_lines(found, path.read_bytes().splitlines())
    if bad:
        lines = ", ".join(map(str, bad[:5])) + (" …" if len(bad) > 5 else "")
        found.problems.append(
            f"{path}: line {lines} is no JSON object with a step and finite numbers, and was left out."
        )
    if not found.series:
        raise DataError(f"{path} holds no metric, but a report needs one a line; name a run that has trained.")
    if not any(re.fullmatch(pattern, name) for _, pattern, _ in CHARTS for name in found.series):
        names = ", ".join(sorted(found.series)[:5])
        found.problems.append(f"{path}: none of its metrics ({names}) is one that is drawn, such as reward.")
    return found


def add_lines(metrics: Metrics, lines: Iterable[bytes]) -> list[int]:
    """Adds lines of metrics.jsonl; returns the numbers, from 1, of those that cannot be used."""
    bad = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
            if isinstance(record.get("data"), dict):  # verl's
                record, metrics.steps = record["data"], "rollout"
            values = {name: float(x) for name, x in record.items() if type(x) in (int, float)}
            if math.isnan(step) or any(abs(value) > LARGEST for value in (step, *values.values())):
                raise ValueError  # a NaN in a value is a gap in its curve
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            bad.append(number)
            continue
        for name, value in values.items():
            metrics.series[name.removeprefix("actor/")][step] = value
    return bad


def draw_curves(runs: list[Metrics]) -> list[dict[str, Any]]:
    """Plotly figures as JSON values, one for every chart that has data.

    Where several runs are shown, each has a colour and each metric a dash; else each metric has a colour.
    """
    families, charts = _families(runs), []
    several = len(families) > 1
    steps = " or ".join(dict.fromkeys(run.steps for run in runs))
    for title, pattern, unit in CHARTS:
        metrics = {name for run in runs for name in run.series if re.fullmatch(pattern, name)}
        data: list[dict[str, Any]] = []
        legend = False
        for place, metric in enumerate(sorted(metrics)):
            for number, (family, members) in enumerate(families):
                having = [run for run in members if metric in run.series]
                if having:
                    label = metric.removeprefix("fipo/").removeprefix("eval_")
                    name = (f"{family} · {label}" if len(metrics) > 1 else family) if several else label
                    colour = COLOURS[(number if several else place) % len(COLOURS)]
                    legend |= bool(data) or len(having) > 1  # a band must say what it spans
                    data += _drawn(name, metric, having, colour, DASHES[place % len(DASHES) if several else 0])
        layout = {
            "xaxis": {"title": {"text": steps}},
            "yaxis": {"title": {"text": "" if unit == "%" else unit}, "tickformat": ".0%" if unit == "%" else ""},
            "showlegend": legend,
        }
        charts += [{"title": title, "figure": {"data": data, "layout": layout}}] if data else []
    return charts


def _families(runs: list[Metrics]) -> list[tuple[str, list[Metrics]]]:
    """Runs whose names differ in a trailing seed alone, by the name without it; any other run is its own family."""
    stems = [(SEED.fullmatch(run.run) or {1: ""})[1] for run in runs]
    times, families = Counter(filter(None, stems)), defaultdict[tuple[str, int], list[Metrics]](list)
    for number, (run, stem) in enumerate(zip(runs, stems, strict=True)):
        families[(stem, -1) if times[stem] > 1 else (run.run, number)].append(run)
    return [(name, members) for (name, _), members in families.items()]


def _drawn(name: str, metric: str, runs: list[Metrics], colour: str, dash: str) -> list[dict[str, Any]]:
    """A metric of runs that differ in their seed alone: their mean, before a band from the least to the greatest."""
    name = escape(name + f", {len(runs)} seeds" * (len(runs) > 1))  # plotly takes tags in names for markup
    steps, values = _over(runs, metric, np.mean)
    curve: dict[str, Any] = {"type": "scatter", "x": _thinned(steps, np.max), "y": _thinned(values, np.mean)}
    curve |= {"name": name, "mode": "lines+markers" if len(steps) < 30 else "lines", "legendgroup": name}
    curve |= {"line": {"color": colour, "dash": dash, "width": 2}}
    curve |= {"meta": {"runs": [run.run for run in runs]}}  # for who points at it
    least, most = RANGES.get(metric, (metric, metric))
    (steps, low), (ends, high) = _over(runs, least, np.min), _over(runs, most, np.max)
    lone = len(runs) == 1 and metric not in RANGES and len(steps) <= MOST_POINTS
    if lone or not len(steps) or not np.array_equal(steps, ends):
        return [curve]
    x, lower, upper = _thinned(steps, np.max), _thinned(low, np.min), _thinned(high, np.max)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    band: dict[str, Any] = {"type": "scatter", "x": x + x[::-1], "y": upper + lower[::-1], "mode": "lines"}
    band |= {"fill": "toself", "fillcolor": f"rgba({red}, {green}, {blue}, 0.2)", "line": {"width": 0}}
    return [band | {"hoverinfo": "skip", "showlegend": False, "legendgroup": name}, curve]


def _over(runs: list[Metrics], metric: str, pick: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, over the steps that all of these runs have: a mean over fewer would jump where one ends."""
    found = [run.series[metric] for run in runs if metric in run.series]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    return np.array(steps), pick([[series[step] for step in steps] for series in found] or [[]], axis=0)


def _thinned(values: np.ndarray, pick: Callable[[np.ndarray], Any]) -> list[float | None]:
    """Of more than MOST_POINTS values `pick` of as many equal parts; in nine digits, and a NaN is a gap."""
    parts = map(pick, np.array_split(values, MOST_POINTS)) if len(values) > MOST_POINTS else values
    return [None if math.isnan(value) else float(f"{value:.9g}") for value in parts]
