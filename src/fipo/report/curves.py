"""The metrics of one or several runs as plotly figures: runs that differ only in a seed become a mean and a band."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from fipo.errors import DataError

SEED = re.compile(r"(.+?)[_-](?:seed[_-]?|s)\d+")
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#7f7f7f"]  # told apart by all eyes
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
CHARTS: list[tuple[str, str, str]] = [  # title, pattern of the metrics shown, unit
    ("Reward", r"reward|critic/score/mean|val-core/.+/reward/mean@\d+", ""),
    ("Held-out accuracy", r"eval_(greedy|(avg|pass)@\d+|.*accuracy.*)|val-core/.+/acc/(mean@\d+|.+/mean)", "%"),
    ("Response length", r"fipo/length_p\d+|response_length/(min|mean|max)", "tokens"),
    ("Weight: mean, and least to greatest", r"fipo/weight_mean", ""),
    ("Weights at the bounds", r"fipo/(weight_at_low|weight_at_high|safety_capped)", "%"),
    ("Policy KL since the rollout", r"fipo/policy_kl", "nats"),
    ("Entropy", r"entropy", "nats"),
    (
        "Clipped tokens, dropped sequences",
        r"clip_ratio/(low|high)_mean|pg_clipfrac|fipo/(dual_clipped|dropped_sequences)",
        "%",
    ),
]
LARGEST = 1e100  # plotly's axes fail near the end of float64
RANGES = {"fipo/weight_mean": ("fipo/weight_min", "fipo/weight_max")}  # a line's own band

Series = dict[float, float]  # step → value


@dataclass(slots=True)
class Metrics:
    """One run's metrics: name → step → value, and a sentence for every line that could not be read."""

    run: str
    series: dict[str, Series] = field(default_factory=lambda: defaultdict(dict))
    problems: list[str] = field(default_factory=list)
    steps: str = "update"  # what a step is


@dataclass(slots=True)
class Line:
    """One line of a chart, over `runs` of the same name but for the seed."""

    name: str
    metric: str
    colour: str
    dash: str
    runs: list[str]  # whose values it shows
    middle: Series
    low: Series
    high: Series


Families = list[tuple[str, list[Metrics]]]  # the name in the legend, and the runs that differ in their seed alone


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
            step = _finite(record.pop("step"))
            if math.isnan(step):
                raise ValueError
            if isinstance(record.get("data"), dict):  # verl's
                record, metrics.steps = record["data"], "rollout"
            values = {name: _finite(value) for name, value in record.items() if _is_number(value)}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            bad.append(number)
            continue
        for name, value in values.items():
            metrics.series[name.removeprefix("actor/")][step] = value
    return bad


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float:
    """As a float. A NaN leaves a gap in a curve; what is larger than a curve can show is refused."""
    number = float(value)
    if abs(number) > LARGEST:
        raise OverflowError
    return number


def draw_curves(runs: list[Metrics], most_points: int | None = None) -> list[dict[str, Any]]:
    """Plotly figures as JSON values, one for every chart that has data; of more steps every so-manieth is drawn."""
    families = _families([_thinned(run, most_points) for run in runs] if most_points else runs)
    charts = [_draw(title, pattern, unit, families) for title, pattern, unit in CHARTS]
    return [chart for chart in charts if chart is not None]


def _thinned(run: Metrics, most: int) -> Metrics:
    """With at most so many steps of each metric, evenly spaced by their order, the last among them."""
    kept = {}
    for name, series in run.series.items():
        steps = sorted(series)[::-1]
        kept[name] = {step: series[step] for step in reversed(steps[:: -(-len(steps) // most)])}
    return Metrics(run.run, kept, steps=run.steps)


def _families(runs: list[Metrics]) -> Families:
    """Runs whose names differ in a trailing seed alone, by the name without it; any other run is its own family."""
    stems = [(SEED.fullmatch(run.run) or {1: ""})[1] for run in runs]
    families: Families = []
    for run, stem in zip(runs, stems, strict=True):
        if not stem or stems.count(stem) == 1:
            families.append((run.run, [run]))
        elif run is runs[stems.index(stem)]:
            families.append((stem, [other for other, its in zip(runs, stems, strict=True) if its == stem]))
    return families


def _draw(title: str, pattern: str, unit: str, families: Families) -> dict[str, Any] | None:
    present = {name for _, members in families for run in members for name in run.series}
    metrics = sorted((name for name in present if re.fullmatch(pattern, name)), key=_by_number)
    lines = [line for metric in metrics for line in _lines(metric, metrics, families)]
    if not lines:
        return None
    figure = go.Figure(layout={"template": "none"})
    for line in lines:
        if line.low:
            figure.add_trace(_band(line))
        figure.add_trace(_curve(line))
    figure.update_layout(
        xaxis={"title": {"text": " or ".join(dict.fromkeys(run.steps for _, members in families for run in members))}},
        yaxis={"title": {"text": "" if unit == "%" else unit}, "tickformat": ".0%" if unit == "%" else ""},
        showlegend=len(lines) > 1 or any(len(line.runs) > 1 for line in lines),  # a band must say what it spans
    )
    return {"title": title, "figure": json.loads(str(figure.to_json()))}


def _lines(metric: str, metrics: list[str], families: Families) -> Iterable[Line]:
    """Where several runs are shown, colour tells them apart and dashes the metrics; else colour tells the metrics."""
    place = metrics.index(metric)
    for number, (family, members) in enumerate(families):
        having = [run for run in members if metric in run.series]
        if not having:
            continue
        values = [run.series[metric] for run in having]
        several = len(families) > 1
        label = metric.removeprefix("fipo/").removeprefix("eval_")
        name = (f"{family} · {label}" if len(metrics) > 1 else family) if several else label
        if len(values) > 1:
            name += f", {len(values)} seeds"
        middle, low, high = _mean_and_range(values)
        if metric in RANGES and len(having) == 1:
            low, high = (having[0].series.get(end, {}) for end in RANGES[metric])
        elif metric in RANGES:
            low, high = (_extreme(members, end, pick) for end, pick in zip(RANGES[metric], (min, max), strict=True))
        colour = COLOURS[(number if several else place) % len(COLOURS)]
        dash, runs = DASHES[place % len(DASHES) if several else 0], [run.run for run in having]
        yield Line(name, metric, colour, dash, runs, middle, low, high)


def _mean_and_range(values: list[Series]) -> tuple[Series, Series, Series]:
    """Over the steps that all have: a mean over fewer runs would jump where one ends. One run has no range."""
    if len(values) == 1:
        return values[0], {}, {}
    steps = sorted(set.intersection(*map(set, values)))
    each = {step: [series[step] for series in values] for step in steps}
    mean = {step: sum(found) / len(found) for step, found in each.items()}
    return mean, {step: min(found) for step, found in each.items()}, {step: max(found) for step, found in each.items()}


def _extreme(members: list[Metrics], metric: str, pick: Any) -> Series:
    values = [run.series[metric] for run in members if metric in run.series]
    steps = sorted(set.intersection(*map(set, values))) if values else []
    return {step: pick(series[step] for series in values) for step in steps}


def _curve(line: Line) -> go.Scatter:
    steps = sorted(line.middle)
    few = len(steps) < 30
    return go.Scatter(
        x=steps,
        y=[line.middle[step] for step in steps],
        name=escape(line.name),  # plotly takes tags in names for markup
        mode="lines+markers" if few else "lines",
        line={"color": line.colour, "dash": line.dash, "width": 2},
        legendgroup=line.name,
        meta={"runs": line.runs},  # for who points at it
    )


def _band(line: Line) -> go.Scatter:
    steps = sorted(set(line.low) & set(line.high))
    return go.Scatter(
        x=steps + steps[::-1],
        y=[line.high[step] for step in steps] + [line.low[step] for step in reversed(steps)],
        fill="toself",
        fillcolor=_translucent(line.colour),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=line.name,
    )


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.2)"


def _by_number(name: str) -> list[Any]:
    """Numbers in a name in their order, however long: text and digits take turns."""
    parts = re.split(r"(\d+)", name)
    return [(len(part.lstrip("0")), part) if place % 2 else part for place, part in enumerate(parts)]
