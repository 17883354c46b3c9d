"""The report about a traced rollout where an experiment tracker shows pages."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fipo.core.logged import CREDIT_REPORT
from fipo.report.page import Report
from fipo.run_folder import trace_files_of
from fipo.traces import read_traces

TRACKERS = ("wandb", "trackio")  # both have Html and log


def log_credit(run: Path, rollout: int, trackers: Iterable[Any], *, step: int | None = None, **values: Any) -> None:
    """Logs the report about this rollout's traces, and `values`, to each of `trackers`, modules of TRACKERS.

    Raises:
        DataError: No trace of the rollout lies in `run`.
    """
    if trackers := list(trackers):
        traces = read_traces(run, trace_files_of(rollout))
        page = Report(traces=[(f"{run.name}, rollout {rollout}", traces)], problems=traces.problems).html()
    for tracker in trackers:
        at = {} if step is None else {"step": step}
        tracker.log({CREDIT_REPORT: tracker.Html(page, inject=False), **values}, **at)


def running_wandb() -> list[Any]:
    """The module wandb, where it tracks a run in this process; else an empty list."""
    wandb = sys.modules.get("wandb")
    return [wandb] if getattr(wandb, "run", None) is not None else []
