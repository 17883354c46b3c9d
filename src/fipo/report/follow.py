"""A run that is under way, looked at again and again: how it stands, its metrics so far, which rollouts have traces.

Nothing is read twice: of metrics.jsonl what was appended, of traces the names, and a rollout's traces when it is shown.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fipo.errors import DataError
from fipo.report.curves import Metrics, add_lines
from fipo.report.pack import pack_traces
from fipo.run_folder import METRICS_FILE, MISSING, TRACES_FOLDER, UNKNOWN, status_of, trace_files_of
from fipo.traces import read_traces

NOT_STARTED, DELETED = "not started", "deleted"  # beside what status_of says
MAX_ROLLOUT_BYTES = 100_000_000  # of Parquet that a browser is given at once
_TRACE_FILE = re.compile(r"rollout_(\d{6,9})_.*\.parquet")


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
    _read: tuple[int, int] = (0, 0)  # the inode of metrics.jsonl, and the bytes of it that were read
    _seen: bool = False

    def look(self) -> None:
        """Looks at the folder; nothing that lies there, or does not, is an error."""
        self._read_metrics()
        self.rollouts = self._find_rollouts()
        if self.updates is None and self.rollouts:
            self.updates = self._read_updates()
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
        found = read_traces(self.path, trace_files_of(rollout), max_bytes=MAX_ROLLOUT_BYTES)
        return {"blocks": pack_traces([(self.label, found)]), "problems": found.problems}

    def _read_metrics(self) -> None:
        """Of a file that only grew, what was appended; of another file in its place, or a shorter one, all."""
        path = self.path / METRICS_FILE
        try:
            with path.open("rb") as file:
                inode = path.stat().st_ino
                known, at = self._read
                if inode != known or path.stat().st_size < at:
                    self.metrics, at = Metrics(self.label), 0
                file.seek(at)
                appended = file.read()
        except OSError:
            self.metrics, self._read = Metrics(self.label), (0, 0)
            return
        whole = appended[: appended.rfind(b"\n") + 1]  # a line may be half written
        if whole or at == 0:
            add_lines(self.metrics, whole.splitlines())
            self.version += bool(whole)
        self._read = (inode, at + len(whole))

    def _read_updates(self) -> int | None:
        try:
            return read_traces(self.path, trace_files_of(max(self.rollouts)), max_bytes=1).updates_per_rollout
        except DataError:
            return None

    def _find_rollouts(self) -> dict[int, str]:
        folder = self.path / TRACES_FOLDER if (self.path / TRACES_FOLDER).is_dir() else self.path
        files: dict[int, list[tuple[int, int]]] = defaultdict(list)  # rollout → time in ns and size
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            return {}
        for entry in entries:
            found = _TRACE_FILE.fullmatch(entry.name)
            if found is None:
                continue
            try:
                facts = entry.stat()
            except OSError:  # removed meanwhile
                continue
            files[int(found[1])].append((facts.st_mtime_ns, facts.st_size))
        self.written = max(max(parts)[0] for parts in files.values()) / 1e9 if files else None
        return {
            number: f"{len(parts)}-{max(parts)[0]}-{sum(size for _, size in parts)}"
            for number, parts in sorted(files.items())
        }


def follow(paths: list[Path], labels: list[str]) -> list[FollowedRun]:
    """Raises a DataError for what is no folder; a folder that does not exist yet may come."""
    for path in paths:
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is a file, but must be a run's folder; `fipo report` shows single files.")
    return [FollowedRun(path, label, Metrics(label)) for path, label in zip(paths, labels, strict=True)]
