"""The file that a run leaves: whole or absent, and checked when it is read."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from experiments.protocol import Run
from fipo.errors import DataError

FORMER_KNOBS = ("chunk_size",)  # had no effect; results from before still name it


def write_result(run: Run, measured: dict[str, Any]) -> None:
    """Writes `run.file` with the run's knobs and a checksum, beside its place first, then renamed."""
    content = {"run": describe(run), **measured}
    content["sha256"] = _checksum(content)
    run.file.parent.mkdir(parents=True, exist_ok=True)
    partial = run.file.with_suffix(".partial")
    partial.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    partial.replace(run.file)


def read_result(run: Run) -> dict[str, Any]:
    """What was measured.

    Raises:
        DataError: The run has no result, or a damaged one, or one of other knobs.
    """
    try:
        content = json.loads(run.file.read_text())
        checksum = content.pop("sha256")
    except FileNotFoundError:
        raise DataError(f"{run.name} was not run; `make evidence` runs it.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{run.name} is damaged ({type(error).__name__}: {error}); delete {run.file.name}.") from error
    if checksum != _checksum(content):
        raise DataError(f"{run.name} is damaged (its checksum is not that of its content); delete {run.file.name}.")
    found, expected = _that_count(content["run"]), _that_count(describe(run))
    if found != expected:
        other = sorted(knob for knob, value in expected.items() if found.get(knob) != value)
        raise DataError(f"{run.name} was run with another {', '.join(other)}; delete {run.file.name}.")
    return content


def read_results(runs: list[Run]) -> tuple[dict[Run, dict[str, Any]], dict[str, str]]:
    """The results that are whole; and by name, why each other run is left out."""
    results, excluded = {}, {}
    for run in runs:
        try:
            results[run] = read_result(run)
        except DataError as error:
            excluded[run.name] = str(error).removeprefix(f"{run.name} ")
    return results, excluded


def describe(run: Run) -> dict[str, Any]:
    """Every knob of a run, as JSON can hold it. A setting's learning rate is left out where the arm has its own."""
    knobs = {"setting": asdict(run.setting), "arm": asdict(run.arm), "seed": run.seed}
    if run.arm.learning_rate is not None:
        del knobs["setting"]["learning_rate"]
    return json.loads(json.dumps(knobs), parse_constant=str)


def _that_count(knobs: dict[str, Any]) -> dict[str, Any]:
    """Without those that are not set, and those that had no effect: results outlive the settings that come and go."""
    inner = {name: _that_count(value) if isinstance(value, dict) else value for name, value in knobs.items()}
    return {name: value for name, value in inner.items() if value is not None and name not in FORMER_KNOBS}


def columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Rows of one shape as columns, with five digits."""
    return {name: [float(f"{row[name]:.5g}") for row in rows] for name in rows[0]}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
