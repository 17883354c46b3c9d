"""A run's folder: what lies where, and files that are whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

METRICS_FILE = "metrics.jsonl"  # a JSON object a line, as the trainer logged it
TRACES_FOLDER = "traces"  # Parquet, see fipo.traces
REPORT_FILE = "report.html"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a place beside `path` to write to, and renames it to `path` once the block has ended well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
