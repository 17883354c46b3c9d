"""A whole run of `fipo train`, top to bottom."""

import atexit
import errno
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback
from trl import get_peft_config, get_quantization_config

from fipo.errors import DataError, FIPOError, InvalidParameterError
from fipo.report import render_report
from fipo.run import console as view
from fipo.run.arguments import ModelArguments, RunArguments, parse
from fipo.run.callbacks import AtTheEnd, MetricsFile, StopOnSignal
from fipo.run.doctor import require_vllm
from fipo.run.evaluate import Accuracy
from fipo.run.model import end_at, load_model
from fipo.run.output_folder import checkpoint_before, checkpoint_to_resume, make_room, require_usable
from fipo.run.prompts import Prompts, forms_of, prompts_of, ready_for
from fipo.run.rewards import Reward, load_rewards
from fipo.run_folder import FINISHED, LOCK_FILE, METRICS_FILE, REPORT_FILE, STOPPED, locked
from fipo.terminal import one_line
from fipo.trainer.config import FIPOConfig
from fipo.trainer.trainer import FIPOTrainer

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def train(recipe: dict[str, Any], flags: list[str]) -> int:
    """Trains as the recipe and the flags say and returns the exit code: 0, or 130 after Ctrl-C.

    Raises:
        FIPOError: Something that was asked for cannot work, whoever found it before the first update; or the disk is
            full. Other errors after the first update, and mistakes of fipo's own, stay what they are.
    """
    console = Console(highlight=False)
    stop = StopOnSignal(console)
    try:
        run, config, model_args = parse(recipe, flags)
        require_usable(Path(config.output_dir))
        if run.dry_run or config.process_index > 0:
            code = _train(run, config, model_args, stop, console)
        else:
            with locked(Path(config.output_dir)) as lock:  # before it is looked at
                code = _train(run, config, model_args, stop, console)
                lock.end(STOPPED if code else FINISHED)
    except FIPOError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise DataError(
                f"{one_line(error)}; the last whole checkpoint is untouched: make room and go on with --resume true."
            ) from error
        if stop.updates or _is_fipos_own(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(".")
        raise InvalidParameterError(f"The run cannot start: {reason}; change what it names.") from error
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if config.world_size > 1:
        _leave(code)
    return code


def _is_fipos_own(error: Exception) -> bool:
    """Whether fipo's own Python raised it: torch's C++ raises RuntimeErrors from there too."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("fipo.") and not isinstance(error, RuntimeError | OSError)


def _leave(code: int) -> NoReturn:
    """Ends a rank's process without Python's own end, where a thread of gloo's may drop a tensor and so abort."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(
    run: RunArguments, config: FIPOConfig, model_args: ModelArguments, stop: StopOnSignal, console: Console
) -> int:
    started = time.monotonic()
    checkpoint = checkpoint_to_resume(run, config)
    if config.use_vllm:
        require_vllm()
    _refuse_what_recipes_replace(config)
    rewards = load_rewards(run.rewards, max_completion_length=config.max_completion_length)
    config.reward_weights = [reward.weight for reward in rewards]
    prompts = prompts_of(run, config)
    if not model_args.model_name_or_path:
        raise InvalidParameterError("model_name_or_path is empty, but training needs a model; name one.")
    first = prompts.train[0]
    scores = [reward.try_on(first, forms_of(first["prompt"], run), strict=run.dry_run) for reward in rewards]
    if prompts.held_out is not None:
        _try_on_held_out(rewards[0], prompts.held_out[0], run)
    if run.dry_run:
        console.print(view.dry_run(config, len(prompts.train), first, rewards, scores))
        return 0
    trainer, prompts = build_trainer(run, config, model_args, prompts, rewards)
    make_room(config, checkpoint)

    main = trainer.is_world_process_zero()
    trainer.remove_callback(PrinterCallback)
    display = view.Display(console, trainer, model_args.model_name_or_path, run.sample_every)
    accuracy = Accuracy(trainer, prompts.held_out, rewards[0], run)
    for callback in (stop, *((display, MetricsFile(config.output_dir)) if main else ()), accuracy):
        trainer.add_callback(callback)

    def finish() -> None:
        _save(trainer, config)
        accuracy.measure()

    trainer.callback_handler.callbacks.insert(0, AtTheEnd(finish))
    try:
        _run_training(trainer, checkpoint, stop)
    finally:
        display.close()
        trainer.end()
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        if main:
            console.print(
                f"Stopped at update {trainer.state.global_step}, with a checkpoint; go on with --resume true."
            )
        return 130
    if main:
        _show_the_end(console, config, prompts, accuracy, time.monotonic() - started)
    return 0


def _try_on_held_out(reward: Reward, first: dict[str, Any], run: RunArguments) -> None:
    try:
        reward.try_on(first, forms_of(first["prompt"], run), strict=run.dry_run)
    except InvalidParameterError as error:
        raise InvalidParameterError(f"On the held-out prompts: {error}") from error


def _run_training(trainer: FIPOTrainer, checkpoint: str | None, stop: StopOnSignal) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except FIPOError:
        raise
    except Exception as error:
        _require_folder(trainer)
        if not _weights_are_finite(trainer):
            raise DataError(
                "The model has diverged: its weights are inf or nan; lower learning_rate, or go on from an earlier "
                "checkpoint with --resume_from_checkpoint."
            ) from error
        if checkpoint is not None and not stop.began:
            raise DataError(
                f"{checkpoint} cannot be loaded ({type(error).__name__}: {one_line(error)}); "
                f"{checkpoint_before(checkpoint)}."
            ) from error
        raise
    trainer.scores.require_some()


def _weights_are_finite(trainer: FIPOTrainer) -> bool:
    """Of this rank's part."""
    weights = (p.data.to_local() if isinstance(p.data, DTensor) else p.data for p in trainer.model.parameters())
    return all(bool(weight.isfinite().all()) for weight in weights)


def _require_folder(trainer: FIPOTrainer) -> None:
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero() and not (folder / LOCK_FILE).exists():
        raise DataError(f"{folder} was deleted while the run was under way, so its model is lost; start it again.")


def _save(trainer: FIPOTrainer, config: FIPOConfig) -> None:
    """The model, in output_dir."""
    _require_folder(trainer)
    if trainer.is_fsdp_enabled:  # else nothing is saved where the state is sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(config.output_dir)


def _show_the_end(console: Console, config: FIPOConfig, prompts: Prompts, accuracy: Accuracy, seconds: float) -> None:
    before = _shares_before(config.output_dir)
    console.print(view.summary(before, accuracy.latest, seconds, config.output_dir), markup=False, soft_wrap=True)
    if prompts.held_out is not None and accuracy.before and accuracy.latest:
        shown = view.before_and_after(prompts.held_out["prompt"], accuracy.before, accuracy.latest)
        console.print(shown, markup=False, soft_wrap=True)
    console.print(write_report(config.output_dir), markup=False, soft_wrap=True)


def _shares_before(output_dir: str) -> dict[str, float]:
    """Held-out accuracy before the first update, which a resumed run finds in its metrics."""
    try:
        with (Path(output_dir) / METRICS_FILE).open() as file:
            first = json.loads(file.readline())
        evaluated = {name.removeprefix("eval_"): value for name, value in first.items() if name.startswith("eval_")}
    except (OSError, ValueError, AttributeError):  # none was written, or somebody wrote into it
        return {}
    return {name: value for name, value in evaluated.items() if first.get("step") == 0 and value is not None}


def write_report(output_dir: str) -> str:
    """Writes the run's report and says where it is. A trained model is not lost over a report that cannot be."""
    try:
        report = render_report(output_dir, Path(output_dir) / REPORT_FILE)
    except (FIPOError, OSError) as error:
        return f"No report was written: {error} Once that is mended, `fipo report {output_dir}` writes it."
    return f"Every token's credit, and the curves: {report}"


def _refuse_what_recipes_replace(config: FIPOConfig) -> None:
    if config.reward_weights is not None:
        raise InvalidParameterError(
            f"reward_weights is {config.reward_weights}, but a recipe's rewards carry their own; write them there, as "
            "in {overlong: {weight: 0.5}}."
        )
    if config.model_init_kwargs is not None:
        raise InvalidParameterError(
            f"model_init_kwargs is {config.model_init_kwargs}, but fipo loads the model itself; set dtype, "
            "attn_implementation, model_revision and the like as keys of their own."
        )
    if config.max_completion_length is None:
        raise InvalidParameterError("max_completion_length is None, but a rollout needs a limit; set it.")
    if config.eval_strategy != "no":
        raise InvalidParameterError(
            f"eval_strategy is {config.eval_strategy.value!r}, but fipo evaluates accuracy itself; set eval_every to "
            "the updates between two evaluations."
        )


def build_trainer(
    run: RunArguments, config: FIPOConfig, model_args: ModelArguments, prompts: Prompts, rewards: list[Reward]
) -> tuple[FIPOTrainer, Prompts]:
    """Loads the model and makes the trainer, on the prompts that are short enough, which are returned too."""
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
    if run.stop_character:
        ends = end_at(run.stop_character, model, tokenizer)
        if config.use_vllm:  # it does not read the loaded model's
            config.generation_kwargs = {**(config.generation_kwargs or {}), "stop_token_ids": ends}
    if run.chat_template:
        tokenizer.chat_template = _read_template(run.chat_template)
    if config.beta and model_args.model_revision != "main":  # TRL loads the reference by the model's name
        config.model_init_kwargs = {"revision": model_args.model_revision}
    config.disable_tqdm = True
    prompts = ready_for(tokenizer, prompts, run, config, model.config)
    trainer = FIPOTrainer(
        model,
        rewards,
        config,
        train_dataset=prompts.train,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    return trainer, prompts


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The chat template {path} is no text in UTF-8 ({error}); convert it.") from error
