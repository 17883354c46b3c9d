"""prime-rl's token exports: numbers for every token of a sequence."""

from pathlib import Path
from typing import Any

import numpy as np

from fipo.params import FIPOParams
from fipo.traces.columns import FLAGS
from fipo.traces.importers.common import BytesOf, credit, floats, use_lines
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet

SAMPLER_IS_OLD = (
    "prime-rl's π_old is the inference engine's policy, so the log-ratios hold its numerical noise, and the updates "
    "since, alike; rewards and groups are not in the dump."
)


def read(dump: Path, bytes_of: BytesOf, params: FIPOParams | None) -> TraceSet:
    """A whole sequence a line, schema version 1: `token_ids, loss_mask, advantages, inference_logprobs, …`."""
    found = TraceSet(params=params)

    def use(_: Path, row: dict[str, Any]) -> None:
        if row["schema_version"] != 1:
            raise ValueError(f"schema_version is {row['schema_version']}, but this fipo reads 1")
        ids, trained = np.array(row["token_ids"], dtype="int32"), np.array(row["loss_mask"], dtype=bool)
        start = int(trained.argmax())  # prompts are not trained on
        names = {"old_logps": "inference_logprobs", "logps": "trainer_logprobs"}
        names |= {"advantages": "advantages", "entropy": "entropy"}
        columns: dict[str, Any] = {ours: floats(row[theirs])[start:] for ours, theirs in names.items()}
        columns |= {"trained": trained[start:], "rollout": int(row["step"]), "group": len(found), "sample": len(found)}
        weights = credit(columns["logps"], columns["old_logps"], columns["advantages"], trained[start:], params)
        del weights["dropped"]  # prime-rl has no PPO clip and no sequence drop
        weights["flags"] &= FLAGS["outside"] | FLAGS["safety_capped"]
        pieces = [bytes_of(int(index)) for index in ids]
        prompt = b"".join(pieces[:start]).decode(errors="replace")
        columns |= {"token_ids": ids[start:], "token_bytes": pieces[start:], "prompt": prompt}
        found.traces.append(Trace(run="prime-rl", update=-1, **columns, **weights))

    use_lines(dump, "rank_*.jsonl", use, found.problems)
    found.problems.append(SAMPLER_IS_OLD)
    return found
