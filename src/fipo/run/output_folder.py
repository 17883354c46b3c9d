"""A run's folder when the run begins: the checkpoint to go on from, and files of other runs."""

import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fipo.errors import DataError
from fipo.run.arguments import RunArguments
from fipo.run_folder import METRICS_FILE, REPORT_FILE, TRACES_FOLDER, place_of
from fipo.trainer.config import FIPOConfig


def checkpoint_to_resume(run: RunArguments, config: FIPOConfig) -> str | None:
    """The checkpoint to go on from. A folder with another run in it is refused, unless asked for."""
    folder = Path(config.output_dir)
    if run.resume:
        if not (checkpoints := _checkpoints(folder)):
            raise DataError(
                f"{folder} holds no checkpoint to resume; check output_dir, or start without --resume (and with "
                "--overwrite true, where a run ended before its first checkpoint)."
            )
        return str(checkpoints[max(checkpoints)])
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


def other_runs_files(folder: Path, checkpoint: str | None) -> list[Path]:
    """What a run that starts at `checkpoint` does not continue: later checkpoints, or all where that lies elsewhere."""
    checkpoints, start = _checkpoints(folder), _start(folder, checkpoint)
    if start is not None:
        return [path for step, path in checkpoints.items() if step > start]
    traces = {path.parent for path in folder.glob(f"{TRACES_FOLDER}/*.parquet")}
    return [*checkpoints.values(), *folder.glob(METRICS_FILE), *traces]


def make_room(config: FIPOConfig, checkpoint: str | None) -> None:
    """Deletes what the run does not continue; only called once everything else is ready."""
    if config.process_index > 0:
        return
    folder = Path(config.output_dir)
    stale = [*other_runs_files(folder, checkpoint), *folder.glob(REPORT_FILE)]
    start = _start(folder, checkpoint)
    if start is not None:  # traces of rollouts after it are of a branch that is left, or written again
        first = -(-start // config.updates_per_rollout)
        stale += [path for path in folder.glob(f"{TRACES_FOLDER}/*") if (place_of(path.name) or (-1,))[0] >= first]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def checkpoint_before(checkpoint: str) -> str:
    """What to do instead of resuming from a damaged checkpoint."""
    folder = Path(checkpoint).parent
    start = _start(folder, checkpoint) or 0
    for step, other in _checkpoints(folder).items():
        if step < start:
            return f"go on from the one before with --resume_from_checkpoint {other}"
    return "there is none before it: start again with --overwrite true"


def _checkpoints(folder: Path) -> dict[int, Path]:
    """By their updates, the last one first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = {path.name.removeprefix(prefix): path for path in folder.glob(f"{prefix}*") if path.is_dir()}
    return {int(step): found[step] for step in sorted(filter(str.isdecimal, found), key=int, reverse=True)}


def _start(folder: Path, checkpoint: str | None) -> int | None:
    """The update at which a run that continues its own folder starts."""
    steps = {path.resolve(): step for step, path in _checkpoints(folder).items()}
    return None if checkpoint is None else steps.get(Path(checkpoint).resolve())
