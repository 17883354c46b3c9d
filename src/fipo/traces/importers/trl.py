"""TRL's completions: text, rewards and advantages, without log-probs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fipo.traces.importers.common import TEXT_ONLY, ImportOptions, Skipped, files_of, splitter, text_of, text_trace
from fipo.traces.store import TraceSet


def read(dump: Path, options: ImportOptions) -> TraceSet:
    """`step, prompt, completion, advantage` and a column a reward, as GRPOTrainer's `log_completions` writes them."""
    found, split = TraceSet(params=options.params), splitter(options.tokenizer)
    groups: dict[tuple[int, str], int] = {}  # the completions of one prompt in one step
    for file in files_of(dump, "*.parquet"):
        skipped = Skipped(file, "row")
        for index, row in enumerate(_rows(file, found.problems)):
            with skipped.unless_usable(index):
                rewards = {name: cell for name, cell in row.items() if isinstance(cell, float) and name != "advantage"}
                prompt, step = text_of(row["prompt"]), int(row["step"])
                group = groups.setdefault((step, prompt), len(groups))
                place = {"run": "trl", "rollout": step, "group": group, "sample": index}
                trace = text_trace(prompt, text_of(row["completion"]), split, rewards, **place)
                trace.advantages = np.full(len(trace.token_ids), row["advantage"], dtype="float32")
                found.traces.append(trace)
        found.problems += skipped.problems
    found.problems.append(TEXT_ONLY)
    return found


def _rows(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(file)
        missing = {"step", "prompt", "completion", "advantage"} - set(table.column_names)
        if not missing:
            rows: list[dict[str, Any]] = table.to_pylist()
            return rows
        problems.append(f"{file} was left out: it lacks the columns {sorted(missing)} of TRL's completions.")
    except (pa.ArrowException, OSError, ValueError) as error:
        problems.append(f"{file} was left out: {error}")
    return []
