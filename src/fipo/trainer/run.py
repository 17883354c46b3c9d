"""A whole run of `fipo train`, top to bottom."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from rich.console import Console
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import logging
from trl import get_peft_config, get_quantization_config

from fipo.errors import DataError, FIPOError, InvalidParameterError
from fipo.report import render_report
from fipo.run_folder import METRICS_FILE, REPORT_FILE, TRACES_FOLDER
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
    _refuse_what_recipes_replace(config)
    config.reward_weights = [reward.weight for reward in rewards]
    prompts = load_data(run, config)
    if not model_args.model_name_or_path:
        raise InvalidParameterError("model_name_or_path is empty, but training needs a model; name one.")
    if run.dry_run:
        updates = config.updates_per_rollout
        console.print(f"{len(prompts.train)} prompts; a rollout feeds {updates} updates; nothing was run.")
        return 0

    trainer = build_trainer(run, config, model_args, prompts, rewards)
    _clear(config, checkpoint)
    main = trainer.is_world_process_zero()
    stop = view.StopOnSignal()
    trainer.add_callback(stop)
    trainer.remove_callback(PrinterCallback)
    display = view.Display(console, trainer, model_args.model_name_or_path, run.sample_every)
    if main:
        trainer.add_callback(display)
        trainer.add_callback(view.MetricsFile(config.output_dir))
    accuracy = Accuracy(trainer, prompts.held_out, rewards[0], run)
    trainer.add_callback(accuracy)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        display.close()
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        if main:
            console.print(
                f"Stopped at update {trainer.state.global_step}, with a checkpoint; go on with --resume true."
            )
        return 130
    if trainer.is_fsdp_enabled:  # else nothing is saved where the state is sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(config.output_dir)
    accuracy.measure()
    if main:
        seconds = time.monotonic() - started
        report = view.summary(accuracy.before, accuracy.latest, seconds, config.output_dir)
        console.print(report, markup=False, soft_wrap=True)
        if prompts.held_out is not None and accuracy.before and accuracy.latest:
            before, after = accuracy.before.completions[0], accuracy.latest.completions[0]
            pair = view.before_and_after(prompts.held_out[0]["prompt"], before, after)
            console.print(pair, markup=False, soft_wrap=True)
        console.print(write_page(config.output_dir), markup=False, soft_wrap=True)
    trainer.end()
    return 0


def write_page(output_dir: str) -> str:
    """Writes the run's page and says where it is. A trained model is not lost over a page that cannot be written."""
    try:
        page = render_report(output_dir, Path(output_dir) / REPORT_FILE)
    except (FIPOError, OSError) as error:
        return f"No page was written: {error} Once that is mended, `fipo report {output_dir}` writes it."
    return f"Every token's credit, and the curves: {page}"


def _refuse_what_recipes_replace(config: FIPOConfig) -> None:
    if config.reward_weights is not None:
        raise InvalidParameterError(
            f"reward_weights is {config.reward_weights}, but a recipe's rewards carry their own; write weight=… behind "
            "each, as in overlong?weight=0.5."
        )
    if config.eval_strategy != "no":
        raise InvalidParameterError(
            f"eval_strategy is {config.eval_strategy.value!r}, but fipo evaluates accuracy itself; set eval_every to "
            "the updates between two evaluations."
        )


def load_data(run: RunArguments, config: FIPOConfig) -> Prompts:
    """Training and held-out prompts; without an eval_dataset the held-out ones are taken from the training data."""
    if not run.dataset:
        raise InvalidParameterError(
            "dataset is empty, but training needs prompts; name a file, a hub dataset or rg:task."
        )
    options: dict[str, Any] = {
        "config": run.dataset_config,
        "prompt_column": run.prompt_column,
        "answer_column": run.answer_column,
        "system_prompt": run.system_prompt,
    }
    seed = config.data_seed or config.seed
    train = load_prompts(run.dataset, split=run.dataset_split, seed=seed, **options)
    held_out = None
    if run.eval_size and run.eval_dataset:
        held_out = load_prompts(run.eval_dataset, split=run.eval_split, seed=seed + 1, **options)
        held_out = held_out.select(range(min(run.eval_size, len(held_out))))
        train = _without(train, held_out)
    elif run.eval_size and len(train) >= 2:
        parts = train.train_test_split(test_size=min(run.eval_size, -(-len(train) // 5)), seed=0)
        train, held_out = parts["train"], parts["test"]
    _require_a_rollout(train, config, f"{run.dataset} leaves", "give more prompts, or lower eval_size")
    return Prompts(train, held_out)


def _without(train: Dataset, held_out: Dataset) -> Dataset:
    """The training prompts that are not held out; what is left out is counted."""
    held = {str(prompt) for prompt in held_out["prompt"]}
    rest = train.select([i for i, prompt in enumerate(train["prompt"]) if str(prompt) not in held])
    if len(rest) < len(train):
        logger.warning(f"{len(train) - len(rest)} training prompts are held out too, and are left out of the training.")
    return rest


def _require_a_rollout(prompts: Dataset, config: FIPOConfig, which: str, remedy: str) -> None:
    needed = config.generation_batch_size // config.num_generations
    if len(prompts) < needed:
        raise DataError(
            f"{which} {len(prompts)} training prompts, but a rollout takes {needed}; {remedy}, "
            "per_device_train_batch_size or steps_per_generation."
        )


def build_trainer(
    run: RunArguments, config: FIPOConfig, model_args: ModelArguments, prompts: Prompts, rewards: list[Reward]
) -> FIPOTrainer:
    """Loads the model and makes the trainer, on the prompts that are short enough."""
    quantization = get_quantization_config(model_args)
    kwargs = {"quantization_config": quantization} if quantization else {}
    model, tokenizer = load_model(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        adapters=model_args.use_peft,
        revision=model_args.model_revision,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=model_args.attn_implementation,
        **kwargs,
    )
    if run.chat_template:
        tokenizer.chat_template = Path(run.chat_template).read_text()
    if config.beta and model_args.model_revision != "main":  # TRL loads the reference by the model's name
        config.model_init_kwargs = {**(config.model_init_kwargs or {}), "revision": model_args.model_revision}
    peft_config: PeftConfig | None = get_peft_config(model_args)
    config.disable_tqdm = True
    return FIPOTrainer(
        model,
        rewards,
        config,
        train_dataset=_short_enough(prompts.train, tokenizer, run, config, model.config),
        processing_class=tokenizer,
        peft_config=peft_config,
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
        trainer.log({f"eval_{name}": share for name, share in self.latest.shares().items()})
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


def _checkpoint_to_resume(run: RunArguments, config: FIPOConfig) -> str | None:
    """The checkpoint to go on from. A folder with another run in it is refused, unless asked for."""
    folder = Path(config.output_dir)
    if run.resume:
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise DataError(f"{folder} holds no checkpoint to resume; check output_dir, or start without --resume.")
        return last
    checkpoint = config.resume_from_checkpoint
    if checkpoint and not Path(checkpoint).is_dir():
        raise DataError(
            f"resume_from_checkpoint is {checkpoint}, which is no folder; check the path, or use --resume true for the "
            "last checkpoint."
        )
    in_the_way = _other_runs_files(folder, checkpoint)
    if in_the_way and not run.overwrite:
        raise DataError(
            f"{folder} holds {in_the_way[0].name}, which this run would not continue; go on from it with --resume "
            "true, delete it with --overwrite true, or choose another output_dir."
        )
    return checkpoint


def _other_runs_files(folder: Path, checkpoint: str | None) -> list[Path]:
    """What a run that starts at `checkpoint` does not continue: later checkpoints, or all where that lies elsewhere."""
    checkpoints = sorted(
        (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step_of(path) >= 0),
        key=_step_of,
        reverse=True,
    )
    if checkpoint and Path(checkpoint).resolve().parent == folder.resolve():
        return [path for path in checkpoints if _step_of(path) > _step_of(Path(checkpoint))]
    traces = [folder / TRACES_FOLDER] if any(folder.glob(f"{TRACES_FOLDER}/*.parquet")) else []
    metrics = [folder / METRICS_FILE] if (folder / METRICS_FILE).exists() else []
    return checkpoints + metrics + traces


def _step_of(checkpoint: Path) -> int:
    step = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(step) if step.isdecimal() else -1


def _clear(config: FIPOConfig, checkpoint: str | None) -> None:
    """Room for the run; only called once everything else is ready."""
    if config.process_index == 0:
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for path in _other_runs_files(folder, checkpoint):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _short_enough(
    prompts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    run: RunArguments,
    config: FIPOConfig,
    model_config: PretrainedConfig,
) -> Dataset:
    template = config.chat_template_kwargs or {}

    def length(row: dict[str, Any]) -> int:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True, **template)
        return len(ids["input_ids"])

    lengths = [length(row) for row in prompts]
    fitting = [i for i, tokens in enumerate(lengths) if tokens <= run.max_prompt_length]
    short = prompts.select(fitting)
    if len(short) < len(prompts):
        logger.warning(
            f"{len(prompts) - len(short)} of {len(prompts)} prompts are longer than max_prompt_length "
            f"({run.max_prompt_length} tokens) and left out."
        )
    _require_a_rollout(
        short, config, f"max_prompt_length ({run.max_prompt_length} tokens) leaves", "raise it, or lower"
    )
    _require_room(max(lengths[i] for i in fitting) + (config.max_completion_length or 0), model_config)
    return short


def _require_room(tokens: int, model_config: PretrainedConfig) -> None:
    """A rollout engine cuts responses at the model's limit without a word, which looks like a truncated answer."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InvalidParameterError(
            f"The longest prompt and max_completion_length are {tokens} tokens together, but the model's config.json "
            f"allows {limit}; lower max_completion_length, or raise max_position_embeddings in a copy of the model."
        )
