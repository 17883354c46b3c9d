"""What happens beside the training: metrics in RUN/metrics.jsonl, signals, and the end of a run."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fipo.run_folder import METRICS_FILE, Lock, whole_file

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class MetricsFile(TrainerCallback):
    """RUN/metrics.jsonl, the trainer's history as one JSON object a line; on the main process.

    A resumed run begins with its checkpoint's, without what the killed one logged after it.
    """

    def __init__(self, run: str) -> None:
        self.path = Path(run) / METRICS_FILE

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        with whole_file(self.path) as partial:
            partial.write_text("".join(map(_line, state.log_history)))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        with self.path.open("a") as file:
            file.write(_line(state.log_history[-1]))


def _line(record: dict[str, Any]) -> str:
    infinite = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    return json.dumps(record | dict.fromkeys(infinite), allow_nan=False) + "\n"  # JSON has no NaN and no infinity


class StopOnSignal(TrainerCallback):
    """Ctrl-C, SIGTERM or a lost terminal: finish the update, write a checkpoint, leave. A second one ends at once.

    It also knows how far the run is: whether the training `began`, and how many `updates` it has made since.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = self.stopped = False
        self.updates = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.began, self.is_main = True, state.is_world_process_zero
        self.before: dict[int, Any] = {number: signal.signal(number, self._stop) for number in SIGNALS}

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        if self.is_main:
            self.console.print("Stopping after this update, with a checkpoint; once more ends at once.")
        signal.signal(number, self.before[number])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.updates += 1
        if args.world_size > 1:  # the signal may reach ranks at different updates
            flag = torch.tensor([float(self.stopped)], device=args.device)
            torch.distributed.all_reduce(flag)
            self.stopped = bool(flag.item())
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class OwnFolder(TrainerCallback):
    """Ends a run whose folder was deleted, before it writes into what may be another run's."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.lock.require()


class AtTheEnd(TrainerCallback):
    """Calls a function when the training has reached its last update, before trackers end; it must come first."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            self.action()
