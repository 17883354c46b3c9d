"""What a person sees of a run in a terminal or a log file."""

import math
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fipo.messages import printable
from fipo.run.evaluate import Evaluation
from fipo.run.rewards import Reward, text_of
from fipo.run_folder import METRICS_FILE
from fipo.trainer.config import FIPOConfig
from fipo.trainer.trainer import FIPOTrainer


def header(trainer: FIPOTrainer, model_name: str, updates: int) -> str:
    """One line: model, parameters trained, prompts × samples, updates per rollout and their size, device, dtype."""
    args: FIPOConfig = trainer.args
    parameters = list(trainer.model.parameters())
    trained, total = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (False, True))
    sequences = args.generation_batch_size * args.num_iterations // args.updates_per_rollout
    state = trainer.accelerator.state
    kind = state.distributed_type.value  # accelerate may have chosen another way than its configuration says
    if kind == "DEEPSPEED":
        kind += f" ZeRO-{state.deepspeed_plugin.zero_stage}"
    elif kind == "FSDP":
        kind += str(state.fsdp_plugin.fsdp_version)
    processes = f" × {state.num_processes} by {kind}" if state.num_processes > 1 else ""
    return (
        f"{model_name}: {trained / 1e6:.1f} M of {total / 1e6:,.1f} M parameters trained · a rollout is "
        f"{args.generation_batch_size // args.num_generations} prompts × {args.num_generations} samples and feeds "
        f"{args.updates_per_rollout} updates of {sequences} completions, each at most "
        f"{args.max_completion_length:,} tokens · {updates} updates · {trainer.accelerator.device}{processes}, "
        f"{str(parameters[0].dtype).removeprefix('torch.')}"
    )


def dry_run(config: FIPOConfig, prompts: Dataset, rewards: list[Reward], scores: list[float | None]) -> str:
    """What is known without a model: the first prompt, what the rewards say of its own answer, and the updates."""
    shown = ["does not apply" if score is None else f"{score:g}" for score in scores]
    scored = ", ".join(f"{reward.__name__} {score}" for reward, score in zip(rewards, shown, strict=True))
    first = prompts[0]
    given = f"its answer {_one_line(str(first['answer']))!r}" if "answer" in first else "an empty completion"
    return (
        f"First prompt: {_last(first['prompt'])}\n  rewards of {given}: {scored}\n"
        f"{len(prompts)} prompts; a rollout feeds {config.updates_per_rollout} updates; nothing was run."
    )


def summary(before: list[dict[str, float]], after: Evaluation | None, seconds: float, run: str) -> str:
    """The end of a run: accuracy before, as far as that was logged, and after, and where things lie."""
    lines = [f"Finished in {seconds / 60:.1f} minutes. Model, checkpoints and {METRICS_FILE}: {run}"]
    for name, end in after.shares.items() if after else ():
        start = next((log[f"eval_{name}"] for log in before if f"eval_{name}" in log), math.nan)
        known = (
            f"{end:6.1%}" if math.isnan(start) else f"{start:6.1%} → {end:6.1%}  ({100 * (end - start):+.1f} points)"
        )
        lines.append(f"  held-out {name:>8}  {known}")
    if after and after.failed:
        lines.append(f"  {after.failed} completions could not be scored and do not count.")
    return "\n".join(lines)


def before_and_after(prompts: Sequence[Any], before: Evaluation, after: Evaluation) -> str:
    """The first held-out prompt whose sampled completion's score went where their sum went, or the first prompt."""
    pairs = list(zip(before.completions, after.completions, strict=True))
    changes = [0 if old is None or new is None else new - old for (_, old), (_, new) in pairs]
    gain = sum(changes)
    shown = next((place for place, change in enumerate(changes) if change * gain > 0), 0)
    (old, _), (new, _) = pairs[shown]
    return f"Prompt:  {_last(prompts[shown])}\n  before  {_one_line(old)}\n  after   {_one_line(new)}"


class Display(TrainerCallback):
    """One progress bar with the run's vital signs, and a sampled completion now and then; on the main process."""

    def __init__(self, console: Console, trainer: FIPOTrainer, model_name: str, sample_every: int) -> None:
        self.console, self.trainer, self.model_name, self.sample_every = console, trainer, model_name, sample_every
        self.seen: dict[str, Any] = {}
        self.task: TaskID | None = None
        signs = TextColumn("{task.fields[signs]}")
        self.bar = Progress(
            MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn(), signs, console=console
        )

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._print(header(self.trainer, self.model_name, state.max_steps))
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, signs="first rollout …")
        self.bar.start()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: Any) -> None:
        self.seen |= {name: value for name, value in extra["logs"].items() if value is not None}
        if self.task is None:  # the evaluation after training
            return
        self.bar.update(self.task, completed=state.global_step, signs=self._signs())
        if "loss" not in extra["logs"]:
            return
        if not self.console.is_terminal:  # a log file has no bar
            self._print(f"update {state.global_step}/{state.max_steps} · {self._signs()}")
            self.seen = {name: value for name, value in self.seen.items() if not name.startswith("eval_")}
        logs = self.trainer._logs
        if self.sample_every and state.global_step % self.sample_every == 0 and logs["completion"]:
            prompt, completion = _last(logs["prompt"][-1]), _one_line(text_of(logs["completion"][-1]))
            self.console.print(f"[dim]sample:[/] {escape(prompt)} [bold]→[/] {escape(completion)}", soft_wrap=True)

    def close(self) -> None:
        """Gives the terminal back, however the training ended."""
        self.bar.stop()
        self.task = None

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def _signs(self) -> str:
        seen = self.seen
        signs = [f"reward {seen['reward']:.2f}"] if "reward" in seen else []
        signs += [f"accuracy {share:.0%}" for name, share in seen.items() if name.startswith("eval_avg@")]
        if "fipo/length_p50" in seen:
            signs.append(f"length {seen['fipo/length_p50']:.0f}")
        if "fipo/weight_min" in seen:
            signs.append(f"weight {seen['fipo/weight_min']:.2f}–{seen['fipo/weight_max']:.2f}")
        return " · ".join(signs)


def _last(prompt: Any) -> str:
    """The last message of a chat, or the last line of a text: what comes before it may be examples."""
    if not isinstance(prompt, str):
        return _one_line(prompt[-1]["content"])
    lines = prompt.rstrip().splitlines() or [""]
    return ("… " if len(lines) > 1 else "") + _one_line(lines[-1])


def _one_line(text: str, limit: int = 160) -> str:
    shown = printable(text.rstrip("\n"))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
