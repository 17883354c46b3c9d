"""Checkpoints that are whole or absent, and resuming that continues as if nothing had happened."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from fipo.errors import DataError, InvalidParameterError
from fipo.messages import one_line

STAGING = "checkpoint.partial"  # no "checkpoint-<step>", so that nobody resumes from it
SHAPE = ("per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps", "num_iterations")


class WholeCheckpoints:
    """Makes a GRPOTrainer's checkpoints whole; `trainer` is the FIPOTrainer that it works for.

    TRL forgets the rollout in use when it resumes, and shuffles a later epoch like the first. Here the checkpoint also
    holds the rollout and the position in it, and an epoch's order depends on the seed and the epoch alone. A checkpoint
    is written beside its final place and renamed when complete, before older ones are deleted: a full disk or a kill
    leaves the last good one.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.staging = False  # while transformers writes one

    def require_a_shared_folder(self) -> None:
        """Raises an InvalidParameterError where machines would each write a part of every checkpoint, for it holds the
        rollout of every process, and all of them need it to resume."""
        accelerator, args = self.trainer.accelerator, self.trainer.args
        if accelerator.num_processes == 1 or args.save_strategy == SaveStrategy.NO:
            return
        (name,) = broadcast_object_list([f".shared-{uuid.uuid4().hex}"])
        marker = Path(args.output_dir, name)
        if args.process_index == 0:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        accelerator.wait_for_everyone()
        seen = accelerator.gather(torch.tensor([marker.exists()], device=accelerator.device))
        if args.process_index == 0:
            marker.unlink()
        if not seen.all():
            raise InvalidParameterError(
                f"output_dir is {args.output_dir}, which {int((~seen).sum())} of {len(seen)} processes do not share "
                "with the first, but checkpoints hold a part of every process; put it on a disk that all machines see, "
                "or set save_strategy to 'no'."
            )

    def save(self, run: Path, write: Callable[[], None]) -> None:
        """Lets transformers `write` a checkpoint of the `run`, completes it and puts it in its place."""
        trainer, wait = self.trainer, self.trainer.accelerator.wait_for_everyone
        name = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        staged = run / STAGING / name
        if trainer.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)
        wait()
        self.staging = True
        try:
            write()
            staged.mkdir(parents=True, exist_ok=True)  # transformers' other ranks may not have made it yet
            fresh = None if trainer.fresh_groups is None else trainer.fresh_groups.drawn
            state = {"step": trainer._step, "rollout": trainer._buffered_inputs, "fresh_prompts": fresh}
            torch.save(state | {"shape": self._rollout_shape()}, self._rollout_file(staged))  # plain values and tensors
        except Exception as error:  # a full disk has no error number in torch's and safetensors' words
            raise DataError(
                f"{run / name} cannot be written ({one_line(error)}); the last whole checkpoint is untouched: make "
                "room on the disk, or mend what is said, and go on with --resume true."
            ) from error
        finally:
            self.staging = False
        wait()
        if trainer.args.should_save:
            self._publish(staged, run / name)
        wait()
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(run / name))

    def _publish(self, staged: Path, final: Path) -> None:
        state, args = self.trainer.state, self.trainer.args
        if state.best_model_checkpoint is not None and Path(state.best_model_checkpoint) == staged:
            state.best_model_checkpoint = str(final)
            state.save_to_json(str(staged / "trainer_state.json"))
        shutil.rmtree(final, ignore_errors=True)
        _sync(staged)
        os.replace(staged, final)
        _sync(final.parent, files=False)
        shutil.rmtree(staged.parent, ignore_errors=True)
        keep = {"save_total_limit": args.save_total_limit, "best_model_checkpoint": state.best_model_checkpoint}
        rotate_checkpoints(output_dir=str(final.parent), **keep)  # by step: clocks may go back

    def _rollout_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"rollout_{self.trainer.accelerator.process_index}.pt"

    def _rollout_shape(self) -> dict[str, int]:
        """What must not change while a rollout is in use."""
        shape = {name: getattr(self.trainer.args, name) for name in (*SHAPE, "num_generations")}
        return {"processes": self.trainer.accelerator.num_processes, **shape}

    def require_whole(self, checkpoint: Path) -> None:
        """Raises a DataError if a file is missing: transformers would go on with a fresh optimizer or random state."""
        trainer = self.trainer
        rank = f"_{trainer.accelerator.process_index}" if trainer.accelerator.num_processes > 1 else ""
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # their optimizers lie in folders
        needed = [self._rollout_file(checkpoint).name, f"rng_state{rank}.pth"]
        needed += [] if sharded else [OPTIMIZER_NAME, SCHEDULER_NAME]
        for name in needed + ([] if trainer.accelerator.scaler is None else [SCALER_NAME]):
            if not (checkpoint / name).exists():
                raise DataError(
                    f"{checkpoint / name} is missing, but resuming needs it; resume with as many processes as saved "
                    "the checkpoint, or from another one that FIPOTrainer wrote."
                )
        trainer._load_rng_state(str(checkpoint))  # to fail here, if it does: the training loads it again

    def resume(self, checkpoint: Path) -> None:
        """Goes on in the rollout that was in use. Raises a DataError if that now has another shape."""
        trainer = self.trainer
        device = trainer.accelerator.device
        place = "cpu" if device.type == "cpu" else device  # gloo calls it "cpu:0", which torch.load does not know
        state = torch.load(self._rollout_file(checkpoint), map_location=place, weights_only=True)
        shape, now = state["shape"], self._rollout_shape()
        if shape != now:
            changed = (f"{name} {shape.get(name)}, now {now[name]}" for name in now if shape.get(name) != now[name])
            raise DataError(
                f"{checkpoint} was saved with {'; '.join(changed)}, but a rollout in use cannot change its shape; "
                "resume with what it was saved with, or start a new run from its model."
            )
        trainer._step, trainer._buffered_inputs = state["step"], state["rollout"]
        if trainer.fresh_groups is not None:
            trainer.fresh_groups.drawn = state["fresh_prompts"] or 0

    def mean_loss(self, history: list[dict[str, Any]]) -> dict[str, float]:
        """The mean loss of the whole run, for its end: transformers forgets what was before resuming."""
        losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        if not losses:
            return {}
        total = sum(loss * (step - before) for (before, _), (step, loss) in pairwise([(0, 0.0), *losses]))
        return {"train_loss": total / losses[-1][0]}


def _sync(folder: Path, *, files: bool = True) -> None:
    """Waits until a folder, and the files in it, are on the disk: a power cut must not leave names without content."""
    for path in [*(filter(Path.is_file, folder.rglob("*")) if files else ()), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        except OSError:  # file systems that cannot sync what is open for reading
            pass
        finally:
            os.close(file)


class EpochRepeatSampler(RepeatSampler):
    """TRL's RepeatSampler with an order that depends on the seed and the epoch alone, so that resuming can find it.

    It asks for the epoch: accelerate's `set_epoch` does not reach it in a resumed loader that is sharded over ranks.
    """

    def __init__(self, plain: RepeatSampler, epoch: Callable[[], int]) -> None:
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        super().__init__(**{name: getattr(plain, name) for name in names})
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self._epoch())
        return super().__iter__()
