"""A whole run of `fipo train`, top to bottom."""

import errno
import gc
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback
from trl import get_peft_config, get_quantization_config

from fipo.errors import DataError, FIPOError, InvalidParameterError
from fipo.messages import one_line
from fipo.report import render_report
from fipo.run import console as view
from fipo.run.arguments import ModelArguments, RunArguments, parse
from fipo.run.callbacks import AtTheEnd, MetricsFile, OwnFolder, StopOnSignal
from fipo.run.doctor import require_vllm
from fipo.run.evaluate import Accuracy
from fipo.run.model import end_at, load_model, require_an_end, resolved
from fipo.run.output_folder import checkpoint_before, checkpoint_to_resume, make_room
from fipo.run.prompts import Prompts, forms_of, prompts_of, ready_for
from fipo.run.rewards import Reward, load_rewards
from fipo.run_folder import FINISHED, REPORT_FILE, STOPPED, Lock, locked
from fipo.trainer.config import FIPOConfig
from fipo.trainer.trainer import FIPOTrainer

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REPLACED = {  # settings of TRL's that a recipe says in another way → what to do
    "reward_weights": "a recipe's rewards carry their own; write them there, as in {overlong: {weight: 0.5}}.",
    "model_init_kwargs": "fipo loads the model itself; set dtype, attn_implementation and the like as keys.",
    "eval_strategy": "fipo evaluates accuracy itself; set eval_every to the updates between two evaluations.",
}


def train(recipe: dict[str, Any], flags: list[str]) -> int:
    """Trains as the recipe and the flags say and returns the exit code: 0, or 130 after Ctrl-C.

    What cannot work is a FIPOError, whoever found it before the first update, and so is a full disk. Other errors after
    the first update, and mistakes of fipo's own, stay what they are.
    """
    console = Console(highlight=False)
    stop = StopOnSignal(console)
    try:
        run, config, model_args = parse(recipe, flags)
        _refuse_what_cannot_work(config, model_args)
        writes = not run.dry_run and config.process_index == 0
        with locked(Path(config.output_dir)) if writes else nullcontext() as lock:  # before it is looked at
            code = _train(run, config, model_args, stop, console, lock)
            if lock is not None:
                lock.note(STOPPED if code else FINISHED)
    except FIPOError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            remedy = "the last whole checkpoint is untouched: make room and go on with --resume true"
            raise DataError(f"{one_line(error)}; {remedy}.") from error
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        is_fipos_own = frame.f_globals["__name__"].startswith("fipo.") and not isinstance(error, RuntimeError | OSError)
        if stop.updates or is_fipos_own:  # torch's C++ raises RuntimeErrors from fipo's lines too
            raise
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(".")
        raise InvalidParameterError(f"The run cannot start: {reason}; change what it names.") from error
    gc.collect()  # of the trainer, whose DDP keeps threads of gloo's, which may abort Python at its end
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


def _refuse_what_cannot_work(config: FIPOConfig, model_args: ModelArguments) -> None:
    if config.use_vllm:
        require_vllm()
    for name, remedy in REPLACED.items():
        value = getattr(config, name)
        if value not in (None, "no"):
            raise InvalidParameterError(f"{name} is {getattr(value, 'value', value)!r}, but {remedy}")
    needed = {
        "max_completion_length": config.max_completion_length,
        "model_name_or_path": model_args.model_name_or_path,
        "output_dir": config.output_dir != "trainer_output",  # TRL's, where none is given
    }
    for name, value in needed.items():
        if not value:
            raise InvalidParameterError(f"{name} is not given, but every run needs one; set it.")


def _train(
    run: RunArguments,
    config: FIPOConfig,
    model_args: ModelArguments,
    stop: StopOnSignal,
    console: Console,
    lock: Lock | None,
) -> int:
    started = time.monotonic()
    checkpoint = checkpoint_to_resume(run, config)
    rewards = load_rewards(run.rewards, max_completion_length=config.max_completion_length)
    config.reward_weights = [reward.weight for reward in rewards]
    prompts = prompts_of(run, config)
    scores = _try_on(rewards, prompts, run)
    if run.dry_run:
        console.print(view.dry_run(config, prompts.train, rewards, scores))
        return 0
    trainer, prompts = build_trainer(run, config, model_args, prompts, rewards)
    make_room(config, checkpoint)

    main = trainer.is_world_process_zero()
    trainer.remove_callback(PrinterCallback)
    display = view.Display(console, trainer, model_args.model_name_or_path, run.sample_every)
    accuracy = Accuracy(trainer, prompts.held_out, rewards[0], run)
    of_main = (display, MetricsFile(config.output_dir)) if main else ()
    for callback in (*((OwnFolder(lock),) if lock else ()), stop, *of_main, accuracy):
        trainer.add_callback(callback)

    def finish() -> None:
        _save(trainer, lock)
        accuracy.measure()

    trainer.callback_handler.callbacks.insert(0, AtTheEnd(finish))
    try:
        _run_training(trainer, checkpoint, stop, lock)
    finally:
        display.close()
        trainer.end()
    updates = trainer.state.global_step
    stopped = stop.stopped and updates < trainer.state.max_steps
    if main and stopped:
        console.print(f"Stopped at update {updates}, with a checkpoint; go on with --resume true.")
    elif main:
        before = [log for log in trainer.state.log_history if log["step"] == 0]  # a resumed run's too
        lines = [view.summary(before, accuracy.latest, time.monotonic() - started, config.output_dir)]
        if prompts.held_out is not None and accuracy.before and accuracy.latest:
            lines.append(view.before_and_after(prompts.held_out["prompt"], accuracy.before, accuracy.latest))
        console.print(*lines, write_report(config.output_dir), sep="\n", markup=False, soft_wrap=True)
    return 130 if stopped else 0


def _try_on(rewards: list[Reward], prompts: Prompts, run: RunArguments) -> list[float | None]:
    """What the rewards say of the first prompt's own answer; the first reward must also take a held-out prompt."""

    def tried(reward: Reward, row: dict[str, Any]) -> float | None:
        return reward.try_on(row, forms_of(row["prompt"], run), strict=run.dry_run)

    scores = [tried(reward, prompts.train[0]) for reward in rewards]
    try:
        if prompts.held_out is not None:
            tried(rewards[0], prompts.held_out[0])
    except InvalidParameterError as error:
        raise InvalidParameterError(f"On the held-out prompts: {error}") from error
    return scores


def build_trainer(
    run: RunArguments, config: FIPOConfig, model_args: ModelArguments, prompts: Prompts, rewards: list[Reward]
) -> tuple[FIPOTrainer, Prompts]:
    """Loads the model; the trainer trains on the prompts that are short enough, which are returned too."""
    model_args.dtype = resolved(model_args.dtype, adapters=model_args.use_peft)  # quantization reads it too
    model, tokenizer = load_model(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        adapters=model_args.use_peft,
        revision=model_args.model_revision,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )
    if run.stop_character:
        ends = end_at(run.stop_character, model, tokenizer)
        if config.use_vllm:  # it does not read the loaded model's
            config.generation_kwargs = {**(config.generation_kwargs or {}), "stop_token_ids": ends}
    require_an_end(model, tokenizer)
    if run.chat_template:
        tokenizer.chat_template = Path(run.chat_template).read_text(encoding="utf-8")
    if config.beta and model_args.model_revision != "main":  # TRL loads the reference by the model's name
        config.model_init_kwargs = {"revision": model_args.model_revision}
    config.disable_tqdm = True
    prompts = ready_for(model, tokenizer, prompts, run, config)
    data = {"train_dataset": prompts.train, "processing_class": tokenizer}
    peft_config = None if isinstance(model, PeftModel) else get_peft_config(model_args)  # it has an adapter already
    return FIPOTrainer(model, rewards, config, peft_config=peft_config, **data), prompts


def _run_training(trainer: FIPOTrainer, checkpoint: str | None, stop: StopOnSignal, lock: Lock | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except FIPOError:
        raise
    except Exception as error:
        if lock is not None:
            lock.require()
        weights = (p.data.to_local() if isinstance(p.data, DTensor) else p.data for p in trainer.model.parameters())
        if not all(bool(weight.isfinite().all()) for weight in weights):
            remedy = "lower learning_rate, or go on from an earlier checkpoint with --resume_from_checkpoint"
            raise DataError(f"The model has diverged: its weights are inf or nan; {remedy}.") from error
        if checkpoint is not None and not stop.began:
            reason = f"{checkpoint} cannot be loaded ({type(error).__name__}: {one_line(error)})"
            raise DataError(f"{reason}; {checkpoint_before(checkpoint)}.") from error
        raise
    trainer.scores.require_some()


def _save(trainer: FIPOTrainer, lock: Lock | None) -> None:
    if lock is not None:
        lock.require()
    if trainer.is_fsdp_enabled:  # else nothing is saved where the state is sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        trainer.save_model(trainer.args.output_dir)
    except Exception as error:  # a full disk has no error number in safetensors' words
        reason = f"The model cannot be written to {trainer.args.output_dir} ({one_line(error)})"
        raise DataError(f"{reason}; make room, or mend what is said, and --resume true writes it.") from error


def write_report(output_dir: str) -> str:
    """Writes the run's report and says where it is. A trained model is not lost over a report that cannot be."""
    try:
        report = render_report(output_dir, Path(output_dir) / REPORT_FILE)
    except (FIPOError, OSError) as error:
        return f"No report was written: {error} Once that is mended, `fipo report {output_dir}` writes it."
    return f"Every token's credit, and the curves: {report}"
