"""Dumps of text without log-probs: TRL's completions and verl's rollouts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fipo.traces.importers.common import each_of, files_of, records_of, text_of
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet
from fipo.traces.tokens import byte_decoder

Splitter = Callable[[str], tuple[list[int], list[bytes]]]
TEXT_ONLY = "The dump holds text without log-probs, so log-ratios and weights cannot be recovered."


def import_trl(source: Path, found: TraceSet, tokenizer: Any) -> None:
    """`step, prompt, completion, advantage` and a column a reward, as GRPOTrainer's `log_completions` writes them."""
    split = _splitter(tokenizer)
    groups: dict[tuple[int, str], int] = {}  # the completions of one prompt in one step

    def read(index: int, row: dict[str, Any]) -> None:
        rewards = {name: value for name, value in row.items() if isinstance(value, float) and name != "advantage"}
        prompt, place = text_of(row["prompt"]), {"run": "trl", "rollout": int(row["step"]), "sample": index}
        place["group"] = groups.setdefault((row["step"], prompt), len(groups))
        trace = _trace(prompt, text_of(row["completion"]), split, rewards, **place)
        trace.advantages = np.full(len(trace.token_ids), row["advantage"], dtype="float32")
        found.traces.append(trace)

    for file in files_of(source, "*.parquet"):
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            found.problems.append(f"{file} was left out: {error}")
            continue
        missing = {"step", "prompt", "completion", "advantage"} - set(table.column_names)
        if missing:
            found.problems.append(f"{file} was left out: it lacks the columns {sorted(missing)} of TRL's completions.")
            continue
        each_of(file, "row", enumerate(table.to_pylist()), found, read)
    found.problems.append(TEXT_ONLY)


def import_verl(source: Path, found: TraceSet, tokenizer: Any) -> None:
    """`input, output, score, step` a line, as `trainer.rollout_data_dir` writes them."""
    split = _splitter(tokenizer)
    groups: dict[tuple[int, str], int] = {}

    def read(row: dict[str, Any]) -> None:
        place: dict[str, Any] = {"run": "verl", "rollout": int(row.get("step", 0)), "sample": len(found.traces)}
        place["group"] = groups.setdefault((place["rollout"], str(row["input"])), len(groups))
        trace = _trace(row["input"], row["output"], split, {"score": float(row["score"])}, **place)
        found.traces.append(trace)

    for file in files_of(source, "[0-9]*.jsonl"):
        records_of(file, found, read)
    found.problems.append(TEXT_ONLY)


def _splitter(tokenizer: Any) -> Splitter:
    """Text as tokens, ids and bytes; without a tokenizer as words, whose id is −1."""
    if tokenizer is None:
        return _words
    decode = byte_decoder(tokenizer)

    def tokens(text: str) -> tuple[list[int], list[bytes]]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, [decode(index) for index in ids]

    return tokens


def _words(text: str) -> tuple[list[int], list[bytes]]:
    pieces = [piece.encode(errors="replace") for piece in re.findall(r"\s*\S+|\s+$", text)]
    return [-1] * len(pieces), pieces


def _trace(prompt: str, text: str, split: Splitter, rewards: dict[str, float], **place: Any) -> Trace:
    ids, pieces = split(text)
    return Trace(
        token_ids=np.array(ids, dtype="int32"),
        token_bytes=pieces,
        trained=np.ones(len(ids), dtype=bool),
        prompt=prompt,
        reward=next(iter(rewards.values())) if len(rewards) == 1 else None,  # the weights of several are not told
        rewards=rewards,
        **place,
    )
