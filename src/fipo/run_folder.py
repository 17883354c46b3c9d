"""A run's folder: what lies where, files that are whole or absent, and one run at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fipo.errors import DataError

METRICS_FILE = "metrics.jsonl"  # a JSON object a line, as the trainer logged it
TRACES_FOLDER = "traces"  # Parquet, see fipo.traces
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"  # locked as long as a run is under way, whatever ends its process


def trace_file(rollout: int, step: int, rank: int) -> str:
    """The name of the file with the traces of one micro-batch: the rollout's `step`-th on this rank."""
    return f"rollout_{rollout:06d}_step_{step:04d}_rank_{rank}.parquet"


def trace_files_of(rollout: int) -> str:
    """A pattern for the names of all of a rollout's traces."""
    return f"rollout_{rollout:06d}_*.parquet"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a place beside `path` to write to, and renames it to `path` once the block has ended well.

    Raises:
        DataError: `path` is a folder.
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
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock. Raises a DataError where another process does, or no folder can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise DataError(f"output_dir is {folder}, which cannot be written to ({error}); choose another.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder} belongs to a run that is under way in another process; wait for it, or choose another "
                "output_dir."
            ) from error
        yield
