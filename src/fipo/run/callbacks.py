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

from fipo.run_folder import METRICS_FILE, whole_file

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class MetricsFile(TrainerCallback):
    """Appends every log to RUN/metrics.jsonl, as one JSON object a line; on the main process.

    A resumed run first cuts off what the killed one wrote after its last checkpoint.
    """

    def __init__(self, run: str) -> None:
        self.path = Path(run) / METRICS_FILE

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            with whole_file(self.path) as partial:
                partial.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= state.global_step))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: Any) -> None:
        record = {"step": state.global_step, **extra["logs"]}
        infinite = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
        with self.path.open("a") as file:  # JSON has no NaN and no infinity
            file.write(json.dumps(record | dict.fromkeys(infinite), allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the half line of a killed run
        return math.inf


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


class AtTheEnd(TrainerCallback):
    """Calls a function when the training has reached its last update, before trackers end; it must come first."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            self.action()
