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

VERSION_KEY, PARAMS_KEY, CONTROL_KEY = b"fipo.schema_version", b"fipo.params", b"fipo.control"
REQUIRED = ("token_ids", "token_bytes", "trained")


@dataclass(slots=True)
class TraceSet(Sequence[Trace]):
    """Traces, the knobs they were made with where known, and a sentence for every file that could not be read.

    `control` is the fipo_control that replaced FIPO's weights in the loss, if one did: `weight` then holds its weights.
    """

    traces: list[Trace] = field(default_factory=list)
    params: FIPOParams | None = None
    control: str | None = None
    problems: list[str] = field(default_factory=list)

    def __getitem__(self, index: Any) -> Any:
        return self.traces[index]

    def __len__(self) -> int:
        return len(self.traces)


def write_traces(
    traces: Iterable[Trace],
    path: str | os.PathLike[str],
    params: FIPOParams | None = None,
    *,
    control: str | None = None,
) -> Path:
    """Writes one Parquet file, whole or not at all.

    Args:
        traces: Any number of Trace.
        path: The file; its folder is made. An existing file is replaced.
        params: The knobs that made the weights; kept in the file's metadata for what-if analysis.
        control: The `fipo_control` that replaced these weights in the loss, if any.

    Returns:
        The path.
    """
    metadata = {VERSION_KEY: str(SCHEMA_VERSION)}
    if params is not None:
        metadata[PARAMS_KEY] = json.dumps(asdict(params))
    if control is not None:
        metadata[CONTROL_KEY] = control
    rows = list(traces)
    columns = [pa.array([_cell(getattr(row, name)) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names]
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata(metadata)), partial, compression="zstd")
    return Path(path)


def read_traces(path: str | os.PathLike[str], pattern: str = "*.parquet", *, max_bytes: int | None = None) -> TraceSet:
    """Reads a Parquet file, or those in a folder or in its `traces` folder, by run, rollout, group, sample, update.

    A file that cannot be read is left out and named in `problems`, like traces of several tokenizers.

    Args:
        path: A run, a folder or a file.
        pattern: Which files of a folder; the trainer's are named `rollout_NNNNNN_step_NNNN_rank_N.parquet`.
        max_bytes: Of a folder whose files are larger together, the last ones by name are read; `problems` says so.

    Raises:
        DataError: There is no trace at all.
    """
    if not Path(path).exists():
        raise DataError(f"{path} does not exist, but must be a run, its traces or a trace file; check the path.")
    files = _files(Path(path), pattern)
    found = TraceSet()
    for file in files if max_bytes is None else _last(files, max_bytes, found):
        try:
            _read_file(file, found)
        except (pa.ArrowException, OSError, DataError, ValueError, TypeError) as error:
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


def _last(files: list[Path], max_bytes: int, found: TraceSet) -> list[Path]:
    """As many of the last files as fit, but at least one."""
    room = max_bytes
    kept: list[Path] = []
    for file in reversed(files):
        room -= file.stat().st_size
        if room < 0 and kept:
            break
        kept.insert(0, file)
    if len(kept) < len(files):
        found.problems.append(
            f"{files[0].parent} holds {len(files)} files of traces, more than the {max_bytes:,} bytes that are read at "
            f"once: these are the last {len(kept)}, from {kept[0].name} on; name a file to see another."
        )
    return kept


def _read_file(file: Path, found: TraceSet) -> None:
    table = pq.read_table(file)
    metadata = table.schema.metadata or {}
    version = metadata.get(VERSION_KEY, b"missing").decode()
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"its schema version is {version}, but this fipo reads {SCHEMA_VERSION}; "
            + ("convert it with `fipo import`." if version == "missing" else "update fipo.")
        )
    missing = sorted(set(SCHEMA.names) - set(table.column_names))
    if missing:
        raise DataError(f"it lacks the columns {', '.join(missing)}; write it with fipo.traces.write_traces.")
    params = _params_of(metadata)
    found.traces += [_trace_of(row) for row in table.select(SCHEMA.names).cast(SCHEMA).to_pylist()]
    if CONTROL_KEY in metadata:
        found.control = metadata[CONTROL_KEY].decode()
        _tell(
            found,
            f"The run was trained with fipo_control {found.control}: its weights are those that this gave the loss; "
            "under other knobs they are what FIPO would have given.",
        )
    if params and found.params and params != found.params:
        _tell(found, f"The traces were made with several settings; what is recomputed takes {params}.")
    found.params = params or found.params


def _trace_of(row: dict[str, Any]) -> Trace:
    row["rewards"] = dict(row["rewards"] or ())
    for name, kind in PER_TOKEN.items():
        if row[name] is None and name not in REQUIRED:
            continue
        if row[name] is None or (name in REQUIRED and None in row[name]):
            raise DataError(f"its column {name} holds a null, but every token needs a value; write the file again.")
        if name != "token_bytes":
            row[name] = np.array(row[name], dtype=kind.to_pandas_dtype())
    return Trace(**row)


def _params_of(metadata: dict[bytes, bytes]) -> FIPOParams | None:
    if PARAMS_KEY not in metadata:
        return None
    try:
        return FIPOParams(**json.loads(metadata[PARAMS_KEY]))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"its fipo.params are not FIPOParams: {error}; write the file again.") from error


def _tell(found: TraceSet, sentence: str) -> None:
    if sentence not in found.problems:
        found.problems.append(sentence)


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
