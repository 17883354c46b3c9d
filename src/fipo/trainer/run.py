"""A whole run of `fipo train`, top to bottom."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from rich.console import Console
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging
from trl import get_peft_config, get_quantization_config

from fipo.errors import DataError, InvalidParameterError
from fipo.trainer import console as view
from fipo.trainer.arguments import ModelArguments, RunArguments
from fipo.trainer.config import FIPOConfig
from fipo.trainer.data import load_prompts
from fipo.trainer.evaluate import Evaluation, evaluate
from fipo.trainer.model import load_model
from fipo.trainer.rewards import Reward, load_rewards
from fipo.trainer.trainer import FIPOTrainer

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Prompts:
    train: Dataset
    held_out: Dataset | None


def train(run: RunArguments, config: FIPOConfig, model_args: ModelArguments) -> int:
    """Trains as the recipe says and returns the exit code: 0, or 130 after Ctrl-C.

    Raises:
        FIPOError: Something in the recipe cannot work; raised before the model is loaded wherever possible.
    """
    started = time.monotonic()
    console = Console(highlight=False)
    checkpoint = _checkpoint_to_resume(run, config)
    rewards = load_rewards(run.rewards, max_completion_length=config.max_completion_length)
    config.reward_weights = [reward.weight for reward in rewards]
    prompts = load_data(run, config, rewards)
    if not model_args.model_name_or_path:
        raise InvalidParameterError("model_name_or_path is empty, but training needs a model; name one.")
    if run.dry_run:
        updates = config.updates_per_rollout
        console.print(f"{len(prompts.train)} prompts; a rollout feeds {updates} updates; nothing was run.")
        return 0

    trainer = build_trainer(run, config, model_args, prompts, rewards)
    stop = view.StopOnSignal()
    trainer.add_callback(stop)
    if trainer.is_world_process_zero():
        _add_view(trainer, run, console)
        console.print(view.header(trainer, model_args.model_name_or_path), markup=False, soft_wrap=True)
    before = after = None
    if prompts.held_out is not None:
        if checkpoint is None:
            before = _evaluate(trainer, prompts.held_out, rewards[0], run.eval_k)
        trainer.add_callback(EvaluateEvery(trainer, prompts.held_out, rewards[0], run))
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped:
        console.print(f"Stopped at update {trainer.state.global_step}, with a checkpoint; go on with --resume.")
        return 130
    trainer.save_model(config.output_dir)
    if prompts.held_out is not None:
        after = _evaluate(trainer, prompts.held_out, rewards[0], run.eval_k)
    if trainer.is_world_process_zero():
        console.print(
            view.summary(before, after, time.monotonic() - started, config.output_dir), markup=False, soft_wrap=True
        )
        if prompts.held_out is not None and before and after:
            prompt = prompts.held_out[0]["prompt"]
            pair = view.before_and_after(prompt, before.completions[0], after.completions[0])
            console.print(pair, markup=False, soft_wrap=True)
    trainer.end()
    return 0


def load_data(run: RunArguments, config: FIPOConfig, rewards: list[Reward]) -> Prompts:
    """Training and held-out prompts; without an eval_dataset the held-out ones are taken from the training data."""
    if not run.dataset:
        raise InvalidParameterError(
            "dataset is empty, but training needs prompts; name a file, a hub dataset or rg:task."
        )
    options: dict[str, Any] = {
        "config": run.dataset_config,
        "split": run.dataset_split,
        "prompt_column": run.prompt_column,
        "answer_column": run.answer_column,
        "system_prompt": run.system_prompt,
        "seed": config.data_seed or config.seed,
    }
    train = load_prompts(run.dataset, **options)
    held_out = None
    if run.eval_size and run.eval_dataset:
        held_out = load_prompts(run.eval_dataset, **options)
        held_out = held_out.select(range(min(run.eval_size, len(held_out))))
    elif run.eval_size:
        size = min(run.eval_size, len(train) // 5)
        parts = train.train_test_split(test_size=size, seed=0) if size else {"train": train, "test": None}
        train, held_out = parts["train"], parts["test"]
    per_rollout = config.generation_batch_size // config.num_generations
    if len(train) < per_rollout:
        raise DataError(
            f"{run.dataset} leaves {len(train)} training prompts, but a rollout takes {per_rollout}; give more prompts "
            "or lower eval_size, per_device_train_batch_size or steps_per_generation."
        )
    return Prompts(train, held_out)


def build_trainer(
    run: RunArguments, config: FIPOConfig, model_args: ModelArguments, prompts: Prompts, rewards: list[Reward]
) -> FIPOTrainer:
    """Loads the model and makes the trainer, on the prompts that are short enough."""
    quantization = get_quantization_config(model_args)
    kwargs = {"quantization_config": quantization} if quantization else {}
    model, tokenizer = load_model(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        revision=model_args.model_revision,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=model_args.attn_implementation,
        **kwargs,
    )
    if run.chat_template:
        tokenizer.chat_template = Path(run.chat_template).read_text()
    peft_config: PeftConfig | None = get_peft_config(model_args)
    config.disable_tqdm = True
    return FIPOTrainer(
        model,
        rewards,
        config,
        train_dataset=_short_enough(prompts.train, tokenizer, run, config),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


class EvaluateEvery(TrainerCallback):
    """Held-out accuracy every `eval_every` updates."""

    def __init__(self, trainer: FIPOTrainer, prompts: Dataset, reward: Reward, run: RunArguments) -> None:
        self.trainer, self.prompts, self.reward, self.run = trainer, prompts, reward, run

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = self.run.eval_every and state.global_step % self.run.eval_every == 0
        if due and state.global_step < state.max_steps:
            _evaluate(self.trainer, self.prompts, self.reward, self.run.eval_k)


def _evaluate(trainer: FIPOTrainer, prompts: Dataset, reward: Reward, k: int) -> Evaluation:
    evaluation = evaluate(trainer, prompts, reward, k)
    due = trainer.control.should_log  # logging here must not use up the update's own log
    trainer.model.eval()  # TRL logs under the mode of the model
    trainer.log({f"eval_{name}": share for name, share in evaluation.shares().items()})
    trainer.model.train()
    trainer.control.should_log = due
    return evaluation


def _add_view(trainer: FIPOTrainer, run: RunArguments, console: Console) -> None:
    trainer.remove_callback(PrinterCallback)
    display = view.Display(console, run.sample_every)
    display.trainer = trainer
    trainer.add_callback(display)
    trainer.add_callback(view.MetricsFile(trainer.args.output_dir))


def _checkpoint_to_resume(run: RunArguments, config: FIPOConfig) -> str | None:
    """The checkpoint to go on from. A folder with another run's checkpoints is refused, unless asked for."""
    folder = Path(config.output_dir)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if config.resume_from_checkpoint:
        return config.resume_from_checkpoint
    if run.resume:
        if last is None:
            raise DataError(f"{folder} holds no checkpoint to resume; check output_dir, or start without --resume.")
        return last
    if last and not run.overwrite:
        raise DataError(
            f"{folder} holds the checkpoint {Path(last).name} of another run; go on with --resume, delete it with "
            "--overwrite, or choose another output_dir."
        )
    if run.overwrite and config.process_index == 0:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        (folder / view.METRICS_FILE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return None


def _short_enough(
    prompts: Dataset, tokenizer: PreTrainedTokenizerBase, run: RunArguments, config: FIPOConfig
) -> Dataset:
    template = config.chat_template_kwargs or {}

    def fits(row: dict[str, Any]) -> bool:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True, **template)
        return len(ids["input_ids"]) <= run.max_prompt_length

    short = prompts.filter(fits)
    if len(short) < len(prompts):
        logger.warning(
            f"{len(prompts) - len(short)} of {len(prompts)} prompts are longer than max_prompt_length "
            f"({run.max_prompt_length} tokens) and left out."
        )
    if len(short) < config.generation_batch_size // config.num_generations:
        raise DataError(
            f"{len(short)} prompts are within max_prompt_length ({run.max_prompt_length} tokens), but a rollout takes "
            f"{config.generation_batch_size // config.num_generations}; raise max_prompt_length."
        )
    return short
