"""JSONL with numbers for every token: the FIPO authors' verl, and prime-rl."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fipo.params import FIPOParams
from fipo.traces.importers.common import bytes_by_id, credit, files_of, floats, records_of
from fipo.traces.schema import FLAGS, Trace
from fipo.traces.store import TraceSet

FORK_FILES = "negative_approx_kl_global_step_*.jsonl"
FORK_GAPS = (
    "The dump tells tokens and their Δ log p alone. Advantages are unknown, so neither the safety cap nor the dual "
    "clip is in the weights; the loss mask is unknown, so every token counts as trained, with the Δ of 0 that masked "
    "ones have there; which update a line belongs to is unknown, so a line is a group."
)
SAMPLER_IS_OLD = (
    "prime-rl's π_old is the inference engine's policy, so the log-ratios hold its numerical noise, and the updates "
    "since, alike; rewards and groups are not in the dump."
)


def import_fork(source: Path, found: TraceSet, tokenizer: Any) -> None:
    """A micro-batch a line: `negative_approx_kl`, Δ log p (B, L) times the loss mask, and `responses`, ids (B, L)."""
    bytes_of, params = bytes_by_id(tokenizer), found.params or FIPOParams()
    for file in files_of(source, FORK_FILES):
        step = re.search(r"(\d+)\.jsonl$", file.name)
        rollout, start = int(step[1]) if step else 0, len(found.traces)

        def read(row: dict[str, Any], rollout: int = rollout, start: int = start) -> None:
            group = found.traces[-1].group + 1 if len(found.traces) > start else 0
            for ids, log_ratio in _responses(row):
                columns = credit(log_ratio, 0 * log_ratio, 0 * log_ratio, np.ones(len(ids)), params)
                del columns["dropped"]  # needs advantages
                trace = Trace(
                    token_ids=ids,
                    token_bytes=[bytes_of(int(index)) for index in ids],
                    trained=np.ones(len(ids), dtype=bool),
                    run="fipo-fork",
                    rollout=rollout,
                    update=-1,
                    group=group,
                    sample=len(found.traces) - start,
                    **columns,
                )
                found.traces.append(trace)

        records_of(file, found, read)
    found.problems.append(FORK_GAPS)


def _responses(row: dict[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and Δ of every response. Padding is not marked: of a repeated last token with Δ 0 the first is kept."""
    if "response" in row:
        batch, changes = [row["response"]], [row["negative_approx_kl"]]
    else:
        batch, changes = row["responses"], row["negative_approx_kl"]
    for response, change in zip(batch, changes, strict=True):
        ids, log_ratio = np.array(response, dtype="int32"), floats(change)
        if ids.ndim != 1 or ids.shape != log_ratio.shape:
            raise ValueError(f"{ids.shape} token ids have {log_ratio.shape} values of negative_approx_kl")
        other = np.flatnonzero((ids != ids[-1]) | (log_ratio != 0)) if len(ids) else np.array([], dtype=int)
        ends = other[-1] + 1 if len(other) else 0
        keep = ends if ends and ids[ends - 1] == ids[-1] else ends + 1
        yield ids[:keep], log_ratio[:keep]


def import_prime_rl(source: Path, found: TraceSet, tokenizer: Any) -> None:
    """A whole sequence a line, schema version 1: `token_ids, loss_mask, advantages, inference_logprobs, …`."""
    bytes_of, params = bytes_by_id(tokenizer), found.params or FIPOParams()

    def read(row: dict[str, Any]) -> None:
        if row["schema_version"] != 1:
            raise ValueError(f"schema_version is {row['schema_version']}, but this fipo reads 1")
        ids, trained = np.array(row["token_ids"], dtype="int32"), np.array(row["loss_mask"], dtype=bool)
        start = int(trained.argmax())  # prompts are not trained on
        names = {"old_logps": "inference_logprobs", "logps": "trainer_logprobs"}
        names |= {"advantages": "advantages", "entropy": "entropy"}
        columns: dict[str, Any] = {ours: floats(row[theirs])[start:] for ours, theirs in names.items()}
        trained = trained[start:]
        weights = credit(columns["logps"], columns["old_logps"], columns["advantages"], trained, params)
        del weights["dropped"]  # prime-rl has no PPO clip and no sequence drop
        weights["flags"] &= FLAGS["outside"] | FLAGS["safety_capped"]
        trace = Trace(
            token_ids=ids[start:],
            token_bytes=[bytes_of(int(index)) for index in ids[start:]],
            trained=trained,
            run="prime-rl",
            rollout=int(row["step"]),
            update=-1,
            group=len(found.traces),
            sample=len(found.traces),
            prompt=b"".join(bytes_of(int(index)) for index in ids[:start]).decode(errors="replace"),
            **weights,
            **columns,
        )
        found.traces.append(trace)

    for file in files_of(source, "rank_*.jsonl"):
        records_of(file, found, read)
    found.problems.append(SAMPLER_IS_OLD)
