"""Traces on disk: Parquet files that are whole or absent, with their hyper-parameters in the metadata."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.run_folder import traces_folder, whole_file
from fipo.traces.schema import PER_TOKEN, SCHEMA, SCHEMA_VERSION, Trace

VERSION_KEY, PARAMS_KEY = b"fipo.schema_version", b"fipo.params"
CONTROL_KEY, UPDATES_KEY = b"fipo.control", b"fipo.updates_per_rollout"
ROUNDING_KEY = b"fipo.log_ratio_error"
REQUIRED = ("token_ids", "token_bytes", "trained")
ROW_GROUP_TOKENS = 2**17  # about 5 MB on disk: the least that can be read of a file
FLOATS = [f"{name}.list.element" for name, kind in PER_TOKEN.items() if kind == pa.float32()]  # paths inside Parquet
REPEATED = ["run", "prompt", "stop_reason", "token_ids.list.element", "token_bytes.list.element"]
ENCODING = {"use_byte_stream_split": FLOATS, "use_dictionary": REPEATED}  # a dictionary of floats only adds to them
BATCH_ROWS = 64  # decoded at once, so that a file of one large row group needs little more than its traces do
UNREADABLE = (pa.ArrowException, OSError, DataError, ValueError, TypeError)  # what a damaged file raises


@dataclass(slots=True)
class TraceSet(Sequence[Trace]):
    """Traces, their hyper-parameters where known, and a sentence for every file that could not be read.

    `control` is the fipo_control or fipo_rule whose weights the loss used in place of FIPO's: `weight` holds these.
    With `updates_per_rollout`, a trace belongs to step rollout · updates_per_rollout + update + 1 of the run's metrics;
    with 0, as in verl, whose metrics have one step a rollout, to step rollout. `log_ratio_error` is the expected
    |error| of a log-ratio in nats, from the precision of the forward; None where that is unknown.
    """

    traces: list[Trace] = field(default_factory=list)
    params: FIPOParams | None = None
    control: str | None = None
    updates_per_rollout: int | None = None
    log_ratio_error: float | None = None
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
    updates_per_rollout: int | None = None,
    log_ratio_error: float | None = None,
) -> Path:
    """Writes one Parquet file, whole or not at all, in row groups of about ROW_GROUP_TOKENS tokens; returns its path.

    Args:
        traces: Any number of Trace; a generator is consumed one row group at a time.
        path: The file; its folder is made. An existing file is replaced.
        params: The hyper-parameters of the weights, for what-if analysis.
        control: The `fipo_control`, the `fipo_rule` or both that gave the loss its weights, if FIPO did not.
        updates_per_rollout: Of the run, 0 if its metrics have one step a rollout: for the report's curves.
        log_ratio_error: The expected |error| of a log-ratio in nats, as in `fipo.core.rounding`, for the report's band.
    """
    known: dict[bytes, Any] = {VERSION_KEY: SCHEMA_VERSION, CONTROL_KEY: control, UPDATES_KEY: updates_per_rollout}
    known |= {ROUNDING_KEY: log_ratio_error, PARAMS_KEY: None if params is None else json.dumps(asdict(params))}
    schema = SCHEMA.with_metadata({key: str(value) for key, value in known.items() if value is not None})
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd", **ENCODING) as writer:
        for rows in _row_groups(traces):
            columns = [pa.array([getattr(row, column.name) for row in rows], column.type) for column in schema]
            writer.write_table(pa.table(columns, schema=schema))
    return Path(path)


def _row_groups(traces: Iterable[Trace]) -> Iterator[list[Trace]]:
    rows, tokens = list[Trace](), 0
    for trace in traces:
        if rows and tokens + len(trace.token_ids) > ROW_GROUP_TOKENS:
            yield rows
            rows, tokens = [], 0
        rows.append(trace)
        tokens += len(trace.token_ids)
    if rows:
        yield rows


def read_traces(path: str | os.PathLike[str], pattern: str = "*.parquet", *, max_bytes: int | None = None) -> TraceSet:
    """Reads a Parquet file, or those in a folder or in its `traces` folder, by run, rollout, group, sample, update.

    A file that cannot be read is left out and named in `problems`.

    Args:
        path: A run, a folder or a file.
        pattern: Which files of a folder; the trainer's are named `rollout_NNNNNN_step_NNNN_rank_N.parquet`.
        max_bytes: As many of the last row groups as fit are read, at least one; `problems` says what was left out.

    Raises:
        DataError: There is no trace at all.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist, but must be a run, its traces or a trace file; check the path.")
    files = [path] if path.is_file() else sorted(traces_folder(path).glob(pattern))
    found = TraceSet()
    for file, first in [(file, 0) for file in files] if max_bytes is None else _last(files, max_bytes, found.problems):
        try:
            _read_file(file, first, found)
        except UNREADABLE as error:
            found.problems.append(f"{file} was left out: {error}")
    if not found.traces:
        nothing = f"none of its {pattern} files has a row" if files else f"it holds no {pattern} file"
        why = "; ".join(found.problems) or f"{nothing}; train with fipo_trace_every above 0"
        raise DataError(f"{path} holds no readable trace: {why.removesuffix('.')}.")
    found.problems = list(dict.fromkeys(found.problems))
    found.traces.sort(key=lambda trace: (trace.run, trace.rollout, trace.group, trace.sample, trace.update))
    return found


def updates_per_rollout(file: Path) -> int | None:
    """What the footer of a trace file says of it; None where that is missing or cannot be read."""
    try:
        text = (pq.read_schema(file).metadata or {}).get(UPDATES_KEY, b"")
    except UNREADABLE:
        return None
    return int(text) if text.isdigit() and len(text) < 10 else None


def _last(files: list[Path], max_bytes: int, problems: list[str]) -> list[tuple[Path, int]]:
    """As many of the last row groups as fit, at least one: the files, each with the first of its row groups to read."""
    room, kept, traces = max_bytes, dict[Path, int](), 0
    for file, group, size, rows in _row_groups_from_the_last(files):
        if kept and size > max(room, 0):
            problems.append(
                f"{file if len(files) == 1 else file.parent} holds more than the {max_bytes:,} bytes of traces that "
                f"are read at once: these are the last {traces} traces, from {[*kept][-1].name} on; name a file to see "
                "another, or read all with fipo.traces.read_traces."
            )
            break
        kept[file], room, traces = group, room - size, traces + rows
    return [*kept.items()][::-1]


def _row_groups_from_the_last(files: list[Path]) -> Iterator[tuple[Path, int, int, int]]:
    """The file, its place there, bytes on disk and rows of each; a damaged file counts as an empty one."""
    for file in reversed(files):
        try:
            metadata, size = pq.read_metadata(file), file.stat().st_size
            groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        except UNREADABLE:
            yield file, 0, 0, 0  # to be named where it is read
            continue
        # By its share of the uncompressed bytes: asking a damaged footer for a column's compressed size aborts Python.
        scale = size / max(1, sum(group.total_byte_size for group in groups))
        for index in reversed(range(len(groups))):
            yield file, index, int(groups[index].total_byte_size * scale), groups[index].num_rows


def _read_file(file: Path, first: int, found: TraceSet) -> None:
    with pq.ParquetFile(file) as parquet:
        metadata, names = parquet.schema_arrow.metadata or {}, parquet.schema_arrow.names
        version = metadata.get(VERSION_KEY, b"missing").decode()
        if version != str(SCHEMA_VERSION):
            remedy = "convert it with `fipo import`" if version == "missing" else "read it with the fipo that wrote it"
            raise DataError(f"its schema version is {version}, but this fipo reads {SCHEMA_VERSION}; {remedy}.")
        if missing := sorted(set(SCHEMA.names) - set(names)):
            raise DataError(f"it lacks the columns {', '.join(missing)}; write it with fipo.traces.write_traces.")
        try:
            params = FIPOParams(**json.loads(metadata[PARAMS_KEY])) if PARAMS_KEY in metadata else None
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"its fipo.params are not FIPOParams: {error}; write the file again.") from error
        groups = list(range(first, parquet.num_row_groups))
        batches = parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=SCHEMA.names)
        found.traces += [trace for batch in batches for trace in _traces_of(batch)]
    if CONTROL_KEY in metadata:
        found.control = metadata[CONTROL_KEY].decode()
        found.problems.append(
            f"The run was trained with the weights of {found.control} in place of FIPO's, and these are shown; under "
            "other hyper-parameters they are what FIPO would have given."
        )
    updates = updates_per_rollout(file)
    found.updates_per_rollout = found.updates_per_rollout if updates is None else updates
    if ROUNDING_KEY in metadata:
        found.log_ratio_error = float(metadata[ROUNDING_KEY])
        if not 0 <= found.log_ratio_error < math.inf:
            raise DataError(f"its log_ratio_error is {found.log_ratio_error}, but must be from 0 on; write it again.")
    if params and found.params and params != found.params:
        found.problems.append(f"The traces were made with several settings; what is recomputed takes {params}.")
    found.params = params or found.params


def _traces_of(batch: pa.RecordBatch) -> Iterator[Trace]:
    """Arrays are slices of the batch's columns; equal token bytes are one object."""
    batch.validate(full=True)  # damaged offsets would be read outside their buffer
    table = pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA)
    columns = {name: _cells(name, table.column(name).combine_chunks()) for name in PER_TOKEN}
    for number, row in enumerate(table.drop_columns(list(PER_TOKEN)).to_pylist()):
        found = {name: cells[number] for name, cells in columns.items()}
        found |= {"rewards": dict(row["rewards"] or ()), "token_bytes": found["token_bytes"].tolist()}
        yield Trace(**row | found)


def _cells(name: str, column: pa.ListArray) -> list[Any]:
    """The column's cells as numpy arrays, None for a null."""
    flat = column.flatten()
    nulls = flat.null_count if name in REQUIRED or flat.type != pa.float32() else 0
    if nulls or (name in REQUIRED and column.null_count):
        raise DataError(f"its column {name} holds a null, but every token needs a value; write the file again.")
    if name == "token_bytes":
        encoded = flat.dictionary_encode()
        values = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)[encoded.indices.to_numpy()]
    else:
        values = flat.to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().fill_null(0).to_numpy()
    cells = np.split(values, np.cumsum(lengths)[:-1])
    return [cell if known else None for cell, known in zip(cells, column.is_valid().to_pylist(), strict=True)]
