"""Logs the report about each traced rollout to the W&B run that verl logs to.

    actor_rollout_ref.model.external_lib=fipo.engines.verl.wandb_report

verl imports what `external_lib` names where it builds its tokenizer, and so in the process that logs; importing this
module makes `Tracking` hold one logger more. The traces must lie on a disk that this process sees.
"""

import time
from functools import wraps
from typing import Any

from verl.utils.tracking import Tracking

from fipo.errors import InvalidParameterError
from fipo.report.tracking import log_credit, running_wandb
from fipo.run_folder import trace_files_of
from fipo.traces.writer import TraceOptions, costs_no_run


class CreditReports:
    """A logger as `Tracking` calls its own: after W&B's, when all workers have written the step's traces."""

    def __init__(self, options: TraceOptions) -> None:
        self.folder, self.started, self.warned = options.folder, time.time(), set[str]()

    def log(self, data: dict[str, Any], step: int) -> None:
        found = self.folder.glob(trace_files_of(step))
        if any(path.stat().st_mtime > self.started for path in found):  # older ones are an earlier attempt's
            with costs_no_run("No report was logged to W&B", self.warned):
                log_credit(self.folder, step, running_wandb(), step=step, **{"rollout/step": step})


_start = Tracking.__init__


@wraps(_start)
def start(self: Tracking, *arguments: Any, **named: Any) -> None:
    """Raises an InvalidParameterError where verl logs to W&B and nothing is traced."""
    config: Any = named.get("config") or {}
    loggers, actor = named.get("default_backend") or (), config.get("actor_rollout_ref", {}).get("actor", {})
    options = TraceOptions.of(dict(actor.get("policy_loss", {})))
    if "wandb" in loggers and options is None:
        raise InvalidParameterError(
            "actor_rollout_ref.model.external_lib is fipo.engines.verl.wandb_report, but nothing is traced; set "
            "actor_rollout_ref.actor.policy_loss.trace_dir, or drop external_lib."
        )
    _start(self, *arguments, **named)
    if options is not None and "wandb" in self.logger:
        self.logger["fipo"] = CreditReports(options)


Tracking.__init__ = start
