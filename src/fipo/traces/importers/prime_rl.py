"""prime-rl's token exports: numbers for every token of a sequence."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fipo.params import FIPOParams
from fipo.traces.columns import FLAGS, credit_of_dump
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet
from fipo.traces.tokens import BytesOf

NAMES = {  # a column of the trace → the dump's
    "old_logps": "inference_logprobs",
    "logps": "trainer_logprobs",
    "advantages": "advantages",
    "entropy": "entropy",
}
SAMPLER_IS_OLD = (
    "prime-rl's π_old is the inference engine's policy, so the log-ratios hold its numerical noise, and the updates "
    "since, alike; rewards and groups are not in the dump."
)


def read(dump: Path, bytes_of: BytesOf, params: FIPOParams | None) -> TraceSet:
    """A whole sequence a line, schema version 1: `token_ids, loss_mask, advantages, inference_logprobs, …`.

    A line that cannot be used is left out. A file has one sentence in `problems`, however much of it is damaged.
    """
    found = TraceSet(params=params)
    for file in [dump] if dump.is_file() else sorted(dump.glob("**/rank_*.jsonl")):
        unusable, reason = [], ""
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        found.traces.append(_trace(json.loads(line), len(found), bytes_of, params))
                    except Exception as error:  # whatever a line of another form raises
                        reason = reason or f"{type(error).__name__}: {str(error)[:200]}"
                        unusable.append(number)
        except OSError as error:
            found.problems.append(f"{file} was left out: {error}.")
        if unusable:
            named = ", ".join(map(str, unusable[:5])) + (" …" if len(unusable) > 5 else "")
            found.problems.append(f"{file}, line {named} was left out; the first because of {reason}.")
    found.problems.append(SAMPLER_IS_OLD)
    return found


def _trace(row: dict[str, Any], number: int, bytes_of: BytesOf, params: FIPOParams | None) -> Trace:
    if row["schema_version"] != 1:
        raise ValueError(f"schema_version is {row['schema_version']}, but this fipo reads 1")
    ids, trained = np.array(row["token_ids"], dtype="int32"), np.array(row["loss_mask"], dtype=bool)
    start = int(trained.argmax())  # prompts are not trained on
    pieces = [bytes_of(int(index)) for index in ids]
    # As float32 None, which JSON has in place of NaN and infinities, is NaN.
    columns: dict[str, Any] = {ours: np.array(row[theirs], "float32")[start:] for ours, theirs in NAMES.items()}
    columns |= credit_of_dump(columns["logps"], columns["old_logps"], columns["advantages"], trained[start:], params)
    del columns["dropped"]  # prime-rl has no PPO clip and no sequence drop
    columns["flags"] &= FLAGS["outside"] | FLAGS["safety_capped"]
    return Trace(
        run="prime-rl",
        rollout=int(row["step"]),
        update=-1,
        group=number,
        sample=number,
        prompt=b"".join(pieces[:start]).decode(errors="replace"),
        token_ids=ids[start:],
        token_bytes=pieces[start:],
        trained=trained[start:],
        **columns,
    )
