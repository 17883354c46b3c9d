"""Checkpoints that are whole or absent, and resuming that continues as if nothing had happened."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Sampler
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from fipo.errors import DataError, InvalidParameterError

STAGING = "checkpoint.partial"  # no "checkpoint-<step>", so that nobody resumes from it


class ExactResume(GRPOTrainer):
    """GRPOTrainer that resumes exactly.

    TRL forgets the rollout in use when it resumes, and shuffles a later epoch like the first. Here the checkpoint also
    holds the rollout and the position in it, and an epoch's order depends on the seed and the epoch alone. A checkpoint
    is written beside its final place and renamed when complete, before older ones are deleted: a full disk or a kill
    leaves the last good one.
    """

    _staging = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's. Raises an InvalidParameterError where machines would each write a part of every checkpoint."""
        if self.accelerator.num_processes > 1 and self.args.save_strategy != SaveStrategy.NO:
            self._require_a_shared_folder()
        return super().train(*args, **kwargs)

    def _require_a_shared_folder(self) -> None:
        """A checkpoint holds the rollout of every process, and all of them need it to resume."""
        folder = Path(self.args.output_dir)
        (name,) = broadcast_object_list([f".shared-{uuid.uuid4().hex}"])
        if self.args.process_index == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        self.accelerator.wait_for_everyone()
        seen = self.accelerator.gather(torch.tensor([(folder / name).exists()], device=self.accelerator.device))
        if self.args.process_index == 0:
            (folder / name).unlink()
        if not seen.all():
            raise InvalidParameterError(
                f"output_dir is {folder}, which {int((~seen).sum())} of {len(seen)} processes do not share with the "
                "first, but checkpoints hold a part of every process; put it on a disk that all machines see, or set "
                "save_strategy to 'no'."
            )

    def _get_output_dir(self, trial: Any) -> str:
        run = super()._get_output_dir(trial=trial)
        return os.path.join(run, STAGING) if self._staging else run

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = run / STAGING / name
        if self.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
            self._save_rollout(staged)
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(staged, run / name)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not from the staging folder, which is renamed while the upload runs."""
        if not self._staging:
            super()._push_from_checkpoint(checkpoint_folder)

    def _publish(self, staged: Path, final: Path) -> None:
        state, args = self.state, self.args
        if state.best_model_checkpoint is not None and Path(state.best_model_checkpoint) == staged:
            state.best_model_checkpoint = str(final)
            state.save_to_json(str(staged / "trainer_state.json"))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(staged, final)
        shutil.rmtree(staged.parent, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(final.parent),
            save_total_limit=args.save_total_limit,
            best_model_checkpoint=state.best_model_checkpoint,
            use_mtime=True,
        )

    def _rollout_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"rollout_{self.accelerator.process_index}.pt"

    def _save_rollout(self, checkpoint: Path) -> None:
        checkpoint.mkdir(parents=True, exist_ok=True)  # transformers' other ranks may not have made it yet
        torch.save(self._resume_state(), self._rollout_file(checkpoint))

    def _resume_state(self) -> dict[str, Any]:
        """What one rank needs to resume exactly; subclasses add theirs. Tensors and plain values alone."""
        return {"step": self._step, "rollout": self._buffered_inputs, "shape": self._rollout_shape}

    def _load_resume_state(self, state: dict[str, Any]) -> None:
        self._step, self._buffered_inputs = state["step"], state["rollout"]

    @property
    def _rollout_shape(self) -> dict[str, int]:
        """What must not change while a rollout is in use."""
        names = ("per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps", "num_iterations")
        shape = {name: getattr(self.args, name) for name in (*names, "num_generations")}
        return {"processes": self.accelerator.num_processes, **shape}

    def _require_whole(self, checkpoint: Path) -> None:
        """transformers goes on without what is missing, and so with a fresh optimizer or other random numbers."""
        rank = f"_{self.accelerator.process_index}" if self.accelerator.num_processes > 1 else ""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # their optimizers lie in folders
        needed = [self._rollout_file(checkpoint).name, f"rng_state{rank}.pth"]
        needed += [] if sharded else [OPTIMIZER_NAME, SCHEDULER_NAME]
        missing = next((name for name in needed if not (checkpoint / name).exists()), None)
        if missing:
            raise DataError(
                f"{checkpoint / missing} is missing, but resuming needs it; resume with as many processes as saved the "
                "checkpoint, or from another one that FIPOTrainer wrote."
            )
        self._load_rng_state(str(checkpoint))  # to fail here, if it does: the training loads it again

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._require_whole(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = self._rollout_file(Path(checkpoint))
        device = self.accelerator.device
        place = "cpu" if device.type == "cpu" else device  # gloo calls it "cpu:0", which torch.load does not know
        state = torch.load(file, map_location=place, weights_only=True)
        if state["shape"] != self._rollout_shape:
            changed = [
                f"{name} {state['shape'].get(name)}, now {value}"
                for name, value in self._rollout_shape.items()
                if state["shape"].get(name) != value
            ]
            raise DataError(
                f"{checkpoint} was saved with {'; '.join(changed)}, but a rollout in use cannot change its shape; "
                "resume with what it was saved with, or start a new run from its model."
            )
        self._load_resume_state(state)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with the mean loss of the whole run at its end: transformers forgets what was before resuming."""
        losses = [(entry["step"], entry["loss"]) for entry in self.state.log_history if "loss" in entry]
        if "train_loss" in logs and losses:
            starts = [0, *(step for step, _ in losses[:-1])]
            total = sum(loss * (step - start) for (step, loss), start in zip(losses, starts, strict=True))
            logs = {**logs, "train_loss": total / losses[-1][0]}
        super().log(logs, start_time)

    def _run_epoch(self, **kwargs: Any) -> None:
        """Not beyond the last update: transformers looks for the end only after an update."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        plain = super()._get_train_sampler(dataset)
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        arguments = {name: getattr(plain, name) for name in names}
        return EpochRepeatSampler(**arguments, epoch=lambda: int(self.state.epoch or 0))


class EpochRepeatSampler(RepeatSampler):
    """TRL's RepeatSampler with an order that depends on the seed and the epoch alone, so that resuming can find it.

    It asks for the epoch: accelerate's `set_epoch` does not reach it in a resumed loader that is sharded over ranks.
    """

    def __init__(self, *, epoch: Callable[[], int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self._epoch())
        return super().__iter__()
