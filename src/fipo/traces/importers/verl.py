"""verl's rollouts: text and scores, without log-probs."""

import json
from pathlib import Path
from typing import Any

from fipo.traces.importers.common import TEXT_ONLY, ImportOptions, Skipped, files_of, lines_of, splitter, text_trace
from fipo.traces.store import TraceSet


def read(dump: Path, options: ImportOptions) -> TraceSet:
    """`input, output, score, step` a line, as `trainer.rollout_data_dir` writes them."""
    found, split = TraceSet(params=options.params), splitter(options.tokenizer)
    groups: dict[tuple[int, str], int] = {}  # the completions of one prompt in one step
    for file in files_of(dump, "[0-9]*.jsonl"):
        skipped = Skipped(file, "line")
        for number, line in lines_of(file, found.problems):
            with skipped.unless_usable(number):
                row = json.loads(line)
                place: dict[str, Any] = {"run": "verl", "rollout": int(row.get("step", 0)), "sample": len(found.traces)}
                place["group"] = groups.setdefault((place["rollout"], str(row["input"])), len(groups))
                rewards = {"score": float(row["score"])}
                found.traces.append(text_trace(row["input"], row["output"], split, rewards, **place))
        found.problems += skipped.problems
    found.problems.append(TEXT_ONLY)
    return found
