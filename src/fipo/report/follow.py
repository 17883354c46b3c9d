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

from fipo.report.curves import Metrics, add_lines
from fipo.run_folder import METRICS_FILE, MISSING, UNKNOWN, place_of, status_of, trace_files_of, traces_folder
from fipo.traces.store import updates_per_rollout

NOT_STARTED, DELETED = "not started", "deleted"  # beside what status_of says
NOTHING = (0, 0, b"")


@dataclass(slots=True)
class FollowedRun:
    """A run's folder: an `output_dir` of `fipo train`, or a folder where slime or verl write traces."""

    path: Path
    label: str
    metrics: Metrics = field(default_factory=lambda: Metrics(""))
    rollouts: dict[int, str] = field(default_factory=dict)  # number → what changes whenever its traces do
    updates: int | None = None  # of a rollout, where its traces record it
    status: str = MISSING
    written: float | None = None  # when its traces last were, as time.time()
    version: int = 0  # of the metrics
    _read: tuple[int, int, bytes] = NOTHING  # of metrics.jsonl: its inode, how much was read, and what that ended with
    _scanned: tuple[Path, int] | None = None  # the folder of traces, and when it had last changed
    _asked: int | None = None  # the rollout whose traces were asked for `updates`
    _seen: bool = False

    def look(self) -> dict[str, Any]:
        """Looks at the folder, and says how the run stands; what is missing or odd there is no error."""
        self._read_metrics()
        self.rollouts = self._find_rollouts()
        newest = max(self.rollouts, default=None)
        if newest != self._asked:  # the footer of its first file has it; once a rollout
            files = sorted(traces_folder(self.path).glob(trace_files_of(newest))) if newest is not None else []
            self._asked, self.updates = newest, updates_per_rollout(files[0]) if files else None
        self.status = status_of(self.path)
        self._seen = self._seen or self.status != MISSING
        if self.status == MISSING and self._seen:
            self.status = DELETED
        elif self.status in (MISSING, UNKNOWN) and not self.rollouts:
            self.status = NOT_STARTED
        age = None if self.written is None else max(0, round(time.time() - self.written))
        found = {"label": self.label, "status": self.status, "updates": self.updates, "age": age}
        return found | {"rollouts": list(self.rollouts.items())}

    def _read_metrics(self) -> None:
        """Of a file that only grew, what was appended; of another file in its place, or a changed one, all."""
        path, before, start, appended = self.path / METRICS_FILE, self._read, 0, b""
        self._read = NOTHING
        with suppress(OSError):
            if path.is_file():  # a pipe would block
                with path.open("rb") as file:
                    inode, at = os.fstat(file.fileno()).st_ino, before[1]
                    start = at if before == (inode, at, _before(file, at)) else 0
                    file.seek(start)
                    appended = file.read()
                    appended = appended[: appended.rfind(b"\n") + 1]  # a line may be half written
                    at = start + len(appended)
                    self._read = (inode, at, _before(file, at))
        if start == 0:
            self.version += bool(self.metrics.series)
            self.metrics = Metrics(self.label)
        add_lines(self.metrics, appended.splitlines())
        self.version += bool(appended)

    def _find_rollouts(self) -> dict[int, str]:
        """As before, while no file came or went: a folder may hold thousands."""
        folder = traces_folder(self.path)
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)  # when each file was written, in ns, and its size
        try:
            changed = folder.stat().st_mtime_ns
            if self._scanned == (folder, changed):
                return self.rollouts
            with os.scandir(folder) as entries:
                for entry in entries:
                    place = place_of(entry.name)
                    with suppress(OSError):  # removed meanwhile, or a link to nowhere
                        if place and entry.is_file():
                            found[place[0]].append((entry.stat().st_mtime_ns, entry.stat().st_size))
        except OSError:
            self._scanned, self.written = None, None
            return {}
        settled = time.time_ns() - changed > 2 * 10**9  # what comes within one tick of a clock does not change the time
        self._scanned = (folder, changed) if settled else None
        self.written = max((max(files)[0] / 1e9 for files in found.values()), default=None)
        return {
            number: f"{len(files)}-{max(files)[0]}-{sum(size for _, size in files)}"
            for number, files in sorted(found.items())
        }


def _before(file: BinaryIO, at: int) -> bytes:
    file.seek(max(0, at - 256))
    return file.read(at - max(0, at - 256))
