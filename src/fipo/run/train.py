"""A whole run of `fipo train`, top to bottom."""

import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from trl import get_peft_config, get_quantization_config

from fipo.errors import FIPOError, InvalidParameterError
from fipo.report import render_report
from fipo.run import console as view
from fipo.run.arguments import ModelArguments, RunArguments
from fipo.run.evaluate import Evaluation, evaluate
from fipo.run.model import load_model
from fipo.run.output_folder import checkpoint_to_resume, make_room
from fipo.run.prompts import Prompts, prompts_of, short_enough
from fipo.run.rewards import Reward, load_rewards
from fipo.run_folder import REPORT_FILE
from fipo.trainer.config import FIPOConfig
from fipo.trainer.trainer import FIPOTrainer


def train(run: RunArguments, config: FIPOConfig, model_args: ModelArguments) -> int:
    """Trains as the recipe says and returns the exit code: 0, or 130 after Ctrl-C.

    Raises:
        FIPOError: Something in the recipe cannot work; raised before the model is loaded wherever possible.
    """
    started = time.monotonic()
    console = Console(highlight=False)
    checkpoint = checkpoint_to_resume(run, config)
    rewards = load_rewards(run.rewards, max_completion_length=config.max_completion_length)
    _refuse_what_recipes_replace(config)
    config.reward_weights = [reward.weight for reward in rewards]
    prompts = prompts_of(run, config)
    if not model_args.model_name_or_path:
        raise InvalidParameterError("model_name_or_path is empty, but training needs a model; name one.")
    if run.dry_run:
        updates = config.updates_per_rollout
        console.print(f"{len(prompts.train)} prompts; a rollout feeds {updates} updates; nothing was run.")
        return 0

    trainer = build_trainer(run, config, model_args, prompts, rewards)
    make_room(config, checkpoint)
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
        train_dataset=short_enough(prompts.train, tokenizer, run, config, model.config),
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
