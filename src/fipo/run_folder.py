"""A run's folder: what lies where, files that are whole or absent, and one run at a time."""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from fipo.errors import DataError

METRICS_FILE = "metrics.jsonl"  # a JSON object a line, as the trainer logged it
TRACES_FOLDER = "traces"  # Parquet, see fipo.traces
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"  # locked as long as a run is under way, whatever ends its process; then it says how that ended
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # what it says at the end; before, RUNNING
MISSING, UNKNOWN, RUNNING, KILLED = "missing", "unknown", "running", "killed"
_TRACE_FILE = re.compile(r"rollout_(\d{6,9})_step_(\d{4,9})_rank_(\d{1,9})\.parquet")


def traces_folder(run: Path) -> Path:
    """Where a run's traces lie: in its own folder for them, or, as slime's and verl's, in the folder itself."""
    inner = run / TRACES_FOLDER
    return inner if inner.is_dir() else run


def trace_file(rollout: int, step: int, rank: int) -> str:
    """The name of the file with the traces of one micro-batch: the rollout's `step`-th on this rank."""
    return f"rollout_{rollout:06d}_step_{step:04d}_rank_{rank}.parquet"


def trace_files_of(rollout: int) -> str:
    """A pattern for the names of all of a rollout's traces."""
    return f"rollout_{rollout:06d}_*.parquet"


def place_of(trace_file: str) -> tuple[int, int, int] | None:
    """Rollout, step and rank of a file of that name; None of any other."""
    found = _TRACE_FILE.fullmatch(trace_file)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a place beside `path` to write to, and renames it to `path` once the block has ended well.

    Raises a DataError where `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, but must be a file to write; name one in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[str], None]]:
    """Makes the folder, holds its lock, and gives a function that notes in the lock's file how the run stands.

    Raises a DataError where another process holds the lock, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a")
    except (OSError, ValueError) as error:
        raise DataError(f"output_dir is {folder}, which cannot be written to ({error}); choose another.") from error
    with file:
        if not _acquire(file):
            remedy = "wait for it, or choose another output_dir"
            raise DataError(f"{folder} belongs to a run that is under way in another process; {remedy}.")

        def note(status: str) -> None:
            with suppress(OSError):  # a full disk costs the note, not the run
                file.truncate(0)  # it is open for appending
                file.write(status)
                file.flush()

        note(RUNNING)
        try:
            yield note
        except BaseException:
            note(FAILED)
            raise


def _acquire(file: TextIO) -> bool:
    """Whether the lock could be had; `status_of` holds it for a moment when it looks."""
    for attempt in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02 * attempt)
    return False


def status_of(folder: Path) -> str:
    """How a run of `fipo train` stands: one of the names above; MISSING without a folder, UNKNOWN without a lock."""
    path = folder / LOCK_FILE
    try:
        if not path.is_file():  # a pipe would block
            return UNKNOWN if folder.exists() else MISSING
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            said = file.read(20)
    except BlockingIOError:
        return RUNNING
    except (OSError, ValueError):
        return UNKNOWN
    return {RUNNING: KILLED, FINISHED: FINISHED, STOPPED: STOPPED, FAILED: FAILED}.get(said, UNKNOWN)
