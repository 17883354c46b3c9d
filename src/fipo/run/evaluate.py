"""Accuracy on held-out prompts: greedy, avg@k and pass@k."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from fipo.run.arguments import RunArguments
from fipo.run.rewards import Reward, as_completion
from fipo.trainer.trainer import FIPOTrainer

CORRECT = 1.0  # a completion is correct when the recipe's first reward gives it at least this

Scored = tuple[str, float | None]  # a completion and its score; None where scoring raised


@dataclass(frozen=True)
class Evaluation:
    """Shares of held-out prompts or samples, in [0, 1], and the first sampled completion of each prompt with its score.

    Completions whose scoring raised are counted in `failed` alone; shares of none are NaN.
    """

    shares: dict[str, float]  # greedy, avg@k, pass@k
    failed: int
    completions: list[Scored]


def evaluate(trainer: FIPOTrainer, prompts: Dataset, reward: Reward, k: int) -> Evaluation:
    """Generates with the trainer's engine, greedily and k times sampled at the training temperature.

    All ranks must call it; each takes its share of the prompts. The trainer's random state is left as it was, so that
    evaluating changes nothing about the training.
    """
    was_training = trainer.model.training
    trainer.model.eval()
    numbered = list(enumerate(prompts))
    with trainer.accelerator.split_between_processes(numbered, apply_padding=True) as local, torch.random.fork_rng():
        torch.manual_seed(trainer.args.seed + trainer.accelerator.process_index)
        rows = [row for _, row in local]
        with _greedy(trainer):
            greedy = _score(trainer, rows, reward, 1)
        sampled = _score(trainer, rows, reward, k)
    trainer.model.train(was_training)
    mine = list(zip((index for index, _ in local), greedy, sampled, strict=True))
    results = {index: scores for index, *scores in gather_object(mine)}  # the last rank's padding repeats an index
    ordered = [results[index] for index in sorted(results)]
    correct = [rights for _, samples in ordered if (rights := _correct(samples))]
    shares = {"greedy": _mean(right for samples, _ in ordered for right in _correct(samples))}
    return Evaluation(
        shares | {f"avg@{k}": _mean(map(_mean, correct)), f"pass@{k}": _mean(map(any, correct))},
        failed=sum(score is None for pair in ordered for samples in pair for _, score in samples),
        completions=[samples[0] for _, samples in ordered],
    )


class Accuracy(TrainerCallback):
    """Held-out accuracy before, during and after the training. It is not measured before a run that is resumed."""

    def __init__(self, trainer: FIPOTrainer, prompts: Dataset | None, reward: Reward, run: RunArguments) -> None:
        self.trainer, self.prompts, self.reward, self.run = trainer, prompts, reward, run
        self.before: Evaluation | None = None
        self.latest: Evaluation | None = None

    def measure(self) -> None:
        """A collective; does nothing without held-out prompts."""
        if self.prompts is None:
            return
        trainer = self.trainer
        self.latest = evaluate(trainer, self.prompts, self.reward, self.run.eval_k)
        due, training = trainer.control.should_log, trainer.model.training
        trainer.model.eval()  # TRL logs under the mode of the model
        trainer.log({f"eval_{name}": share for name, share in self.latest.shares.items()})
        trainer.model.train(training)
        trainer.control.should_log = due  # logging here must not use up the update's own log

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 0:  # not earlier: FSDP and DeepSpeed have placed the model by now
            self.measure()
            self.before = self.latest

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = self.run.eval_every and state.global_step % self.run.eval_every == 0
        if due and state.global_step < state.max_steps:
            self.measure()


def _score(trainer: FIPOTrainer, rows: list[dict[str, Any]], reward: Reward, k: int) -> list[list[Scored]]:
    """For every row its k completions."""
    size = len(rows) if trainer.use_vllm else max(trainer.args.per_device_eval_batch_size // k, 1)
    groups = []
    for start in range(0, len(rows), size):
        batch = [row for row in rows[start : start + size] for _ in range(k)]
        prompts = [row["prompt"] for row in batch]
        ids, _ = trainer._generate_single_turn(*trainer._tokenize_prompts(prompts), k)
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        scores = reward(
            prompts=prompts,
            completions=[as_completion(text, prompt) for text, prompt in zip(texts, prompts, strict=True)],
            completion_ids=ids,
            trainer_state=trainer.state,
            **dict.fromkeys(("log_extra", "log_metric"), lambda *_: None),  # as in training, but nothing is logged
            **{name: [row[name] for row in batch] for name in rows[0] if name != "prompt"},
        )
        scored = list(zip(texts, scores, strict=True))
        groups += [scored[i : i + k] for i in range(0, len(scored), k)]
    return groups


def _correct(samples: list[Scored]) -> list[bool]:
    return [score >= CORRECT for _, score in samples if score is not None]


def _mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values), dtype=torch.float64).mean().item()  # NaN of none


@contextmanager
def _greedy(trainer: FIPOTrainer) -> Iterator[None]:
    owner, name, greedy = trainer.vllm_generation if trainer.use_vllm else trainer, "temperature", 0.0
    if not trainer.use_vllm:
        name, greedy = "generation_config", copy(trainer.generation_config)
        greedy.do_sample, greedy.temperature, greedy.top_p, greedy.top_k = False, None, None, None
    before = getattr(owner, name)
    setattr(owner, name, greedy)
    try:
        yield
    finally:
        setattr(owner, name, before)
