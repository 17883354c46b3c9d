"""Traces on disk: Parquet files that are whole or absent, with the knobs that made them in their metadata."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.run_folder import TRACES_FOLDER, whole_file
from fipo.traces.schema import PER_TOKEN, SCHEMA, SCHEMA_VERSION, Trace

VERSION_KEY, PARAMS_KEY = b"fipo.schema_version", b"fipo.params"


@dataclass(slots=True)
class TraceSet(Sequence[Trace]):
    """Traces, the knobs they were made with where known, and a sentence for every file that could not be read."""

    traces: list[Trace] = field(default_factory=list)
    params: FIPOParams | None = None
    problems: list[str] = field(default_factory=list)

    def __getitem__(self, index: Any) -> Any:
        return self.traces[index]

    def __len__(self) -> int:
        return len(self.traces)


def write_traces(traces: Iterable[Trace], path: str | os.PathLike[str], params: FIPOParams | None = None) -> Path:
    """Writes one Parquet file, whole or not at all.

    Args:
        traces: Any number of Trace.
        path: The file; its folder is made. An existing file is replaced.
        params: The knobs that made the weights; kept in the file's metadata for what-if analysis.

    Returns:
        The path.
    """
    metadata = {VERSION_KEY: str(SCHEMA_VERSION)}
    if params is not None:
        metadata[PARAMS_KEY] = json.dumps(asdict(params))
    rows = list(traces)
    columns = [pa.array([_cell(getattr(row, name)) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names]
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata(metadata)), partial, compression="zstd")
    return Path(path)


def read_traces(path: str | os.PathLike[str], pattern: str = "*.parquet") -> TraceSet:
    """Reads a Parquet file, or those in a folder or in its `traces` folder, by rollout, update and sample.

    A file that cannot be read is left out and named in `problems`, like traces of several tokenizers.

    Args:
        path: A run, a folder or a file.
        pattern: Which files of a folder; the trainer's are named `rollout_NNNNNN_step_NNNN_rank_N.parquet`.

    Raises:
        DataError: There is no trace at all.
    """
    found = TraceSet()
    for file in _files(Path(path), pattern):
        try:
            _read_file(file, found)
        except (pa.ArrowException, OSError, DataError, ValueError) as error:
            found.problems.append(f"{file} was left out: {error}")
    if not found.traces:
        why = "; ".join(found.problems) or f"it holds no {pattern} file; train with fipo_trace_every above 0"
        raise DataError(f"{path} holds no readable trace: {why}.")
    found.problems += mixed_tokenizers(found.traces)
    found.traces.sort(key=lambda trace: (trace.run, trace.rollout, trace.group, trace.sample, trace.update))
    return found


def _files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / TRACES_FOLDER if (path / TRACES_FOLDER).is_dir() else path
    return sorted(folder.glob(pattern))


def _read_file(file: Path, found: TraceSet) -> None:
    table = pq.read_table(file)
    metadata = table.schema.metadata or {}
    version = int(metadata.get(VERSION_KEY, 0))
    if version != SCHEMA_VERSION:
        raise DataError(
            f"its schema version is {version or 'missing'}, but this fipo reads {SCHEMA_VERSION}; "
            + ("update fipo." if version > SCHEMA_VERSION else "convert it with `fipo import`.")
        )
    if PARAMS_KEY in metadata:
        found.params = FIPOParams(**json.loads(metadata[PARAMS_KEY]))
    for row in table.to_pylist():
        row["rewards"] = dict(row["rewards"] or ())
        for name, kind in PER_TOKEN.items():
            if name != "token_bytes" and row[name] is not None:
                row[name] = np.array(row[name], dtype=kind.to_pandas_dtype())
        found.traces.append(Trace(**row))


def mixed_tokenizers(traces: Iterable[Trace]) -> list[str]:
    """A sentence if one token id stands for different bytes: ids of two tokenizers must not be compared."""
    known: dict[int, tuple[bytes, str]] = {}
    for trace in traces:
        for index, piece in dict(zip(trace.token_ids.tolist(), trace.token_bytes, strict=True)).items():
            first, run = known.setdefault(index, (piece, trace.run))
            if index >= 0 and piece != first:  # an importer without a tokenizer gives −1
                return [
                    f"The traces mix tokenizers: token {index} is {first!r} in run {run!r} and {piece!r} in run "
                    f"{trace.run!r}; all are shown, but compare tokens within one run only."
                ]
    return []


def _cell(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value
