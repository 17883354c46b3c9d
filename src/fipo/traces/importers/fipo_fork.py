"""The FIPO authors' verl: Δ log p for every token."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fipo.params import FIPOParams
from fipo.traces.importers.common import BytesOf, credit, floats, use_lines
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet

FORK_FILES = "negative_approx_kl_global_step_*.jsonl"
FORK_GAPS = (
    "The dump tells tokens and their Δ log p alone. Advantages are unknown, so neither the safety cap nor the dual "
    "clip is in the weights; the loss mask is unknown, so every token counts as trained, with the Δ of 0 that masked "
    "ones have there; which update a line belongs to is unknown, so a line is a group."
)


def read(dump: Path, bytes_of: BytesOf, params: FIPOParams | None) -> TraceSet:
    """A micro-batch a line: `negative_approx_kl`, Δ log p (B, L) times the loss mask, and `responses`, ids (B, L)."""
    found = TraceSet(params=params)

    def use(file: Path, row: dict[str, Any]) -> None:
        step = re.search(r"(\d+)\.jsonl$", file.name)
        rollout, last = int(step[1]) if step else 0, found[-1] if found else None
        group, first = (last.group + 1, last.sample + 1) if last and last.rollout == rollout else (0, 0)
        traces = []
        for sample, (ids, log_ratio) in enumerate(_responses(row), start=first):
            trained, unknown = np.ones(len(ids), dtype=bool), np.zeros_like(log_ratio)
            columns: dict[str, Any] = credit(log_ratio, unknown, unknown, trained, params)
            del columns["dropped"]  # needs advantages
            columns |= {"token_ids": ids, "token_bytes": [bytes_of(int(index)) for index in ids], "trained": trained}
            place: dict[str, Any] = {"rollout": rollout, "update": -1, "group": group, "sample": sample}
            traces.append(Trace(run="fipo-fork", **place, **columns))
        found.traces += traces

    use_lines(dump, FORK_FILES, use, found.problems)
    found.problems.append(FORK_GAPS)
    return found


def _responses(row: dict[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and Δ of every response, without its padding, which the dump does not mark."""
    if "response" in row:
        batch, changes = [row["response"]], [row["negative_approx_kl"]]
    else:
        batch, changes = row["responses"], row["negative_approx_kl"]
    for response, change in zip(batch, changes, strict=True):
        ids, log_ratio = np.array(response, dtype="int32"), floats(change)
        if ids.ndim != 1 or ids.shape != log_ratio.shape:
            raise ValueError(f"{ids.shape} token ids have {log_ratio.shape} values of negative_approx_kl")
        yield ids[: (keep := _length(ids, log_ratio))], log_ratio[:keep]


def _length(ids: np.ndarray, log_ratio: np.ndarray) -> int:
    """The tokens before the padding: of a last token that is repeated with Δ 0, the first is kept.

    This is right because verl pads with one token id on the right, and multiplies Δ by the loss mask, so that padding
    is exactly a run of one id with Δ 0 at the end. Where the pad token also ends a response, as it does for many
    models, its first occurrence is that end. A response whose own last tokens are equal and did not move loses some,
    but they add 0 to every future_kl: no credit changes.
    """
    other = np.flatnonzero((ids != ids[-1:]) | (log_ratio != 0))
    ends = int(other[-1]) + 1 if len(other) else 0
    return ends if ends and ids[ends - 1] == ids[-1] else ends + 1
