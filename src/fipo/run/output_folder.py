"""A run's folder when the run begins: the checkpoint to go on from, and files of other runs."""

import shutil
import stat
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from fipo.errors import DataError, InvalidParameterError
from fipo.run.arguments import RunArguments
from fipo.run_folder import METRICS_FILE, REPORT_FILE, TRACES_FOLDER, place_of
from fipo.trainer.config import FIPOConfig


def checkpoint_to_resume(run: RunArguments, config: FIPOConfig) -> str | None:
    """The checkpoint to go on from. A folder with another run in it is refused, unless asked for."""
    folder = Path(config.output_dir)
    if run.resume:
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise DataError(
                f"{folder} holds no checkpoint to resume; check output_dir, or start without --resume (and with "
                "--overwrite true, where a run ended before its first checkpoint)."
            )
        return last
    checkpoint = config.resume_from_checkpoint
    if checkpoint and not (Path(checkpoint) / TRAINER_STATE_NAME).is_file():
        raise DataError(
            f"resume_from_checkpoint is {checkpoint}, which holds no {TRAINER_STATE_NAME}; name a folder checkpoint-… "
            "of a run, or use --resume true for the last one."
        )
    in_the_way = other_runs_files(folder, checkpoint)
    if in_the_way and not run.overwrite and not run.dry_run:
        go_on = "go on from it with --resume true, " if in_the_way[0].name.startswith(PREFIX_CHECKPOINT_DIR) else ""
        raise DataError(
            f"{folder} holds {in_the_way[0].name}, which this run would not continue; {go_on}delete it with "
            "--overwrite true, or choose another output_dir."
        )
    return checkpoint


def require_usable(folder: Path) -> None:
    """Raises a FIPOError where output_dir was not given, is a file, or is no path at all."""
    if str(folder) == "trainer_output":
        raise InvalidParameterError(
            "output_dir is trainer_output, which TRL takes where none is given; name a folder of the run's own."
        )
    try:
        reason = None if stat.S_ISDIR(folder.stat().st_mode) else "it is a file"
    except FileNotFoundError:
        reason = None
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", error))
    if reason is not None:
        raise DataError(f"output_dir is {str(folder)[:40]}, which cannot be a folder ({reason}); choose another.")


def other_runs_files(folder: Path, checkpoint: str | None) -> list[Path]:
    """What a run that starts at `checkpoint` does not continue: later checkpoints, or all where that lies elsewhere."""
    checkpoints = _checkpoints(folder)
    if checkpoint and _lies_in(checkpoint, folder):
        return [path for path in checkpoints if _step_of(path) > _step_of(Path(checkpoint))]
    traces = [folder / TRACES_FOLDER] if any(folder.glob(f"{TRACES_FOLDER}/*.parquet")) else []
    metrics = [folder / METRICS_FILE] if (folder / METRICS_FILE).exists() else []
    return checkpoints + metrics + traces


def checkpoint_before(checkpoint: str) -> str:
    """What to do instead of resuming from a damaged checkpoint."""
    path = Path(checkpoint)
    before = next((other for other in _checkpoints(path.parent) if _step_of(other) < _step_of(path)), None)
    if before is None:
        return "there is none before it: start again with --overwrite true"
    return f"go on from the one before with --resume_from_checkpoint {before}"


def _checkpoints(folder: Path) -> list[Path]:
    """The last one first."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step_of(path) >= 0]
    return sorted(found, key=_step_of, reverse=True)


def _lies_in(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def _step_of(checkpoint: Path) -> int:
    step = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(step) if step.isdecimal() else -1


def make_room(config: FIPOConfig, checkpoint: str | None) -> None:
    """Deletes what the run does not continue; only called once everything else is ready."""
    if config.process_index == 0:
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        stale = [*other_runs_files(folder, checkpoint), *_later_traces(folder, checkpoint, config)]
        for path in [*stale, folder / REPORT_FILE]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _later_traces(folder: Path, checkpoint: str | None, config: FIPOConfig) -> list[Path]:
    """Traces of rollouts that begin after the checkpoint: of a branch that this run abandons, or writes again."""
    if checkpoint is None or not _lies_in(checkpoint, folder):
        return []
    first = -(-_step_of(Path(checkpoint)) // config.updates_per_rollout)
    return [path for path in (folder / TRACES_FOLDER).glob("*") if (place_of(path.name) or (-1,))[0] >= first]
