"""Logs the report about each traced rollout to the W&B run that verl logs to.

    actor_rollout_ref.model.external_lib=fipo.engines.verl.wandb_report

verl imports what `external_lib` names where it builds its tokenizer, and so in the process that logs; importing this
module makes `Tracking` hold one logger more. The traces must lie on a disk that this process sees.
"""

from functools import wraps
from typing import Any

from verl.utils.tracking import Tracking

from fipo.engines.tracing import TraceOptions, TraceWriter
from fipo.errors import InvalidParameterError
from fipo.run_folder import trace_files_of


class CreditReports:
    """A logger as `Tracking` calls its own: after W&B's, when all workers have written the step's traces."""

    def __init__(self, options: TraceOptions) -> None:
        self.writer = TraceWriter(options, tokenizer=None, rank=0, ranks=1)

    def log(self, data: dict[str, Any], step: int) -> None:
        if any(self.writer.options.folder.glob(trace_files_of(step))):
            self.writer.log_report(step, step)


_start = Tracking.__init__


@wraps(_start)
def start(self: Tracking, *arguments: Any, **named: Any) -> None:
    """Raises an InvalidParameterError where verl logs to W&B and nothing is traced."""
    _start(self, *arguments, **named)
    if "wandb" not in self.logger:
        return
    options = TraceOptions.of(named["config"]["actor_rollout_ref"]["actor"]["policy_loss"])
    if options is None:
        raise InvalidParameterError(
            "actor_rollout_ref.model.external_lib is fipo.engines.verl.wandb_report, but nothing is traced; set "
            "actor_rollout_ref.actor.policy_loss.trace_dir, or drop external_lib."
        )
    self.logger["fipo"] = CreditReports(options)


Tracking.__init__ = start
