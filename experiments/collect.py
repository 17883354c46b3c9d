"""The tables of docs/evidence.md from runs of other trainers: whose arm, at equal seeds, ends higher?

python -m experiments.collect RUN [RUN …] --metric eval/aime-2024

A RUN is a folder with metrics.jsonl (`fipo train`, verl's logger `file`) or TensorBoard's event files, such a file, or
the CSV file of a chart of W&B's, with many runs. The recipes name their runs NAME-ARM-sSEED; for any other write
NAME-ARM-sSEED=PATH.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.protocol import FIPO, GRPO, SHUFFLED, UNIFORM, Elsewhere, Run
from experiments.report import accuracy_table, comparison_table
from experiments.statistics import Results
from fipo.errors import DataError, FIPOError
from fipo.messages import did_you_mean
from fipo.report.curves import read_metrics
from fipo.run_folder import METRICS_FILE

ARMS = {"fipo": FIPO, "grpo": GRPO, "dapo": GRPO, "shuffled": SHUFFLED, "uniform": UNIFORM}
NAME = re.compile(rf"(?P<name>.+)-(?P<arm>{'|'.join(ARMS)})-s(?P<seed>\d+)(?:_.*)?")  # to which slime adds _RANDOM
OF_CHART = re.compile(r"(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?")  # a column of W&B's CSV

Curve = dict[float, float]  # step → value
Curves = dict[str, Curve]  # metric → its curve


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; a mistake is one sentence and exit code 2."""
    parser = argparse.ArgumentParser("experiments.collect", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or file, or NAME-ARM-sSEED=PATH")
    parser.add_argument("--metric", required=True, help="the held-out accuracy, a share of 1, by the name it has there")
    options = parser.parse_args(arguments)
    try:
        results = collect(options.runs, options.metric)
    except FIPOError as error:
        print(f"experiments.collect: {error}", file=sys.stderr)
        return 2
    names = list(dict.fromkeys(run.setting for run in results))
    print(accuracy_table(results, names), comparison_table(results, names), sep="\n\n")
    return 0


def collect(sources: list[str], metric: str) -> Results:
    """A result for every run: its evaluations, in order of their steps.

    Raises:
        DataError: A run cannot be read or told apart, or lacks the metric.
    """
    results: Results = {}
    for source in sources:
        for name, curves in _runs_of(source):
            run = _run_of(name)
            if run in results:
                raise DataError(f"{run.name} is there twice, the second time as {source}; leave one out.")
            if metric not in curves:
                known = sorted(curves)
                remedy = did_you_mean(metric, known, f"it has {', '.join(known[:20])}.")
                raise DataError(f"{source} has no metric {metric!r}; {remedy}")
            steps, values = zip(*sorted(curves[metric].items()), strict=True)
            if len(steps) < 2 or not 0 <= min(values) <= max(values) <= 1:
                raise DataError(
                    f"{metric} of {name} is {len(steps)} values from {min(values):g} to {max(values):g}, but must be "
                    "at least two between 0 and 1; name an accuracy that is measured from the start on."
                )
            results[run] = {"evaluations": {"samples": list(steps), "accuracy": list(values)}}
    return results


def _run_of(name: str) -> Run:
    found = NAME.fullmatch(name)
    if found is None:
        raise DataError(
            f"{name!r} does not tell arm and seed, but a name must be NAME-ARM-sSEED, with ARM one of "
            f"{', '.join(ARMS)}; write NAME-ARM-sSEED=PATH."
        )
    return Run(Elsewhere(found["name"]), ARMS[found["arm"]], int(found["seed"]))


def _runs_of(source: str) -> Iterator[tuple[str, Curves]]:
    """Every run's name and curves."""
    name, _, path = source.rpartition("=")
    place = Path(path)
    if place.suffix == ".csv":
        yield from _of_chart(place).items()
        return
    lines = place / METRICS_FILE if place.is_dir() else place
    folder = lines.resolve().parent if place.is_dir() or place.name == METRICS_FILE else place.resolve()
    if lines.suffix == ".jsonl" and lines.is_file():
        yield name or folder.name.removesuffix(".jsonl"), read_metrics(lines, source).series
    else:
        yield name or folder.name, _of_events(place)


def _of_chart(path: Path) -> dict[str, Curves]:
    """W&B's CSV: a step, and for every run a column `RUN - METRIC`, with two more for its bounds."""
    runs: dict[str, Curves] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        step, *columns = reader.fieldnames or [""]
        for row in reader:
            for column in columns:
                found = OF_CHART.fullmatch(column)
                if found is not None and not found["bound"] and row[column]:
                    curves = runs.setdefault(found["run"], {})
                    curves.setdefault(found["metric"], {})[float(row[step])] = float(row[column])
    if not runs:
        raise DataError(f"{path} has no column RUN - METRIC; export a chart of W&B as CSV.")
    return runs


def _of_events(path: Path) -> Curves:
    """TensorBoard's scalars."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = [path] if path.is_file() else list(path.rglob("*tfevents*"))
    if not any("tfevents" in file.name for file in files):
        raise DataError(f"{path} holds neither metrics.jsonl nor TensorBoard's events; name a run's folder or file.")
    curves: Curves = {}
    for file in sorted(files):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return curves


if __name__ == "__main__":
    sys.exit(main())
