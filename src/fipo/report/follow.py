"""A run that is under way, looked at again and again: how it stands, its metrics so far, which rollouts have traces.

Nothing is read twice: of metrics.jsonl what was appended, of traces the names, and a rollout's traces when it is shown.
"""

import os
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fipo.errors import DataError
from fipo.report.curves import Metrics, add_lines
from fipo.report.pack import pack_traces
from fipo.report.page import MAX_TRACE_BYTES
from fipo.run_folder import METRICS_FILE, MISSING, UNKNOWN, place_of, status_of, trace_files_of, traces_folder
from fipo.traces import read_traces
from fipo.traces.store import updates_per_rollout

NOT_STARTED, DELETED = "not started", "deleted"  # beside what status_of says


@dataclass(slots=True)
class FollowedRun:
    """A run's folder: an `output_dir` of `fipo train`, or a folder where slime or verl write traces."""

    path: Path
    label: str
    metrics: Metrics = field(default_factory=lambda: Metrics(""))
    rollouts: dict[int, str] = field(default_factory=dict)  # number → what changes whenever its traces do
    updates: int | None = None  # of a rollout, where its traces tell
    status: str = MISSING
    written: float | None = None  # when its traces last were, as time.time()
    version: int = 0  # of the metrics
    _read: "ReadPart" = field(default_factory=lambda: ReadPart())  # of metrics.jsonl
    _scanned: tuple[Path, int] | None = None  # the folder of traces, and when it had last changed
    _asked: int | None = None  # the rollout that told `updates`
    _seen: bool = False

    def look(self) -> None:
        """Looks at the folder; nothing that lies there, or does not, is an error."""
        self._read_metrics()
        self.rollouts = self._find_rollouts()
        self._find_updates()
        self.status = status_of(self.path)
        self._seen = self._seen or self.status != MISSING
        if self.status == MISSING and self._seen:
            self.status = DELETED
        elif self.status in (MISSING, UNKNOWN) and not self.rollouts:
            self.status = NOT_STARTED

    def traces(self, rollout: int) -> dict[str, Any]:
        """The data blocks of one rollout's traces, and what could not be read of them.

        Raises:
            DataError: There are none, or none that can be read.
        """
        found = read_traces(self.path, trace_files_of(rollout), max_bytes=MAX_TRACE_BYTES)
        return {"blocks": pack_traces([(self.label, found)]), "problems": found.problems}

    def _find_updates(self) -> None:
        """From the footer of the newest rollout's first file, once a rollout."""
        newest = max(self.rollouts, default=None)
        if newest != self._asked:
            files = sorted(traces_folder(self.path).glob(trace_files_of(newest))) if newest is not None else []
            self._asked, self.updates = newest, updates_per_rollout(files[0]) if files else None

    def _read_metrics(self) -> None:
        """Of a file that only grew, what was appended; of another file in its place, or a changed one, all."""
        path = self.path / METRICS_FILE
        try:
            if not path.is_file():  # a pipe would block
                raise FileNotFoundError(path)
            with path.open("rb") as file:
                at = self._read.at if self._read.is_start_of(file) else 0
                if at == 0:
                    self._forget_metrics()
                file.seek(at)
                appended = file.read()
                whole = appended[: appended.rfind(b"\n") + 1]  # a line may be half written
                self._read = ReadPart.of(file, at + len(whole))
        except OSError:
            self._forget_metrics()
            self._read = ReadPart()
            return
        add_lines(self.metrics, whole.splitlines())
        self.version += bool(whole)

    def _forget_metrics(self) -> None:
        self.version += bool(self.metrics.series)
        self.metrics = Metrics(self.label)

    def _find_rollouts(self) -> dict[int, str]:
        """As before, while no file came or went: a folder may hold thousands."""
        folder = traces_folder(self.path)
        try:
            changed = folder.stat().st_mtime_ns
            if self._scanned == (folder, changed):
                return self.rollouts
            found = _scan(folder)
        except OSError:
            self._scanned, self.written = None, None
            return {}
        settled = time.time_ns() - changed > 2 * 10**9  # what comes within one tick of a clock does not change the time
        self._scanned = (folder, changed) if settled else None
        times = [moment for files in found.values() for moment, _ in files]
        self.written = max(times) / 1e9 if times else None
        return {number: _version(files) for number, files in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class ReadPart:
    """How much of a file was read, and what it ended with."""

    inode: int = 0
    at: int = 0
    tail: bytes = b""

    @classmethod
    def of(cls, file: BinaryIO, at: int) -> "ReadPart":
        return cls(os.fstat(file.fileno()).st_ino, at, _bytes_before(file, at))

    def is_start_of(self, file: BinaryIO) -> bool:
        return os.fstat(file.fileno()).st_ino == self.inode and _bytes_before(file, self.at) == self.tail


def _bytes_before(file: BinaryIO, at: int) -> bytes:
    file.seek(max(0, at - 256))
    return file.read(at - max(0, at - 256))


Files = list[tuple[int, int]]  # when each was written, in ns, and its size


def _scan(folder: Path) -> dict[int, Files]:
    """The files of every rollout."""
    found: dict[int, Files] = defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            place = place_of(entry.name)
            with suppress(OSError):  # removed meanwhile, or a link to nowhere
                if place and entry.is_file():
                    facts = entry.stat()
                    found[place[0]].append((facts.st_mtime_ns, facts.st_size))
    return found


def _version(files: Files) -> str:
    return f"{len(files)}-{max(files)[0]}-{sum(size for _, size in files)}"


def follow(paths: list[Path], labels: list[str]) -> list[FollowedRun]:
    """Raises a DataError for what is no folder; a folder that does not exist yet may come."""
    for path in paths:
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is a file, but must be a run's folder; `fipo report` shows single files.")
    return [FollowedRun(path, label, Metrics(label)) for path, label in zip(paths, labels, strict=True)]
