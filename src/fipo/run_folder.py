"""A run's folder: what lies where, files that are whole or absent, and one run at a time."""

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from fipo.errors import DataError

logger = logging.getLogger(__name__)

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
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another process may write the same file
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class Lock:
    """A run's hold on its folder, in which it notes how it stands."""

    def __init__(self, folder: Path, file: TextIO) -> None:
        self.folder, self.file = folder, file

    def note(self, status: str) -> None:
        with suppress(OSError):  # a full disk costs the note, not the run
            self.file.truncate(0)  # it is open for appending
            self.file.write(status)
            self.file.flush()

    def require(self) -> None:
        """Raises a DataError where the folder was deleted under the run, or is another run's since."""
        own = os.fstat(self.file.fileno())
        try:
            found = os.stat(self.folder / LOCK_FILE)
        except FileNotFoundError:
            raise DataError(f"{self.folder} was deleted while the run was under way; start it again.") from None
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            raise DataError(
                f"{self.folder} was deleted while the run was under way, and another run has begun there; this one "
                "ends, and leaves the folder to it."
            )


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Makes the folder and holds its lock.

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
        lock = Lock(folder, file)
        lock.note(RUNNING)
        try:
            yield lock
        except BaseException:
            lock.note(FAILED)
            raise


def _acquire(file: TextIO) -> bool:
    """Whether the lock could be had; `status_of` holds it for a moment when it looks."""
    for attempt in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02 * attempt)
        except OSError as error:  # Lustre without -o flock, NFS without a lock daemon
            logger.warning(f"{file.name} cannot be locked ({error}), so nothing keeps two runs out of one folder.")
            return True
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
