"""slime's debug dumps: `--save-debug-rollout-data` and `--save-debug-train-data`, format version 2."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fipo.params import FIPOParams
from fipo.traces.columns import credit_of_dump
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet
from fipo.traces.tokens import BytesOf, in_brackets

FORMAT_VERSION = 2
NO_POLICY = (
    "The dump's log_probs are those of the old policy, so log-ratios and weights cannot be recovered; dump a run with "
    "--use-rollout-logprobs and fipo's loss, and import it with --current-logprobs."
)


def read(dump: Path, bytes_of: BytesOf, params: FIPOParams | None, *, current_logprobs: bool) -> TraceSet:
    """Joins every train dump in the folder with its rollout dump."""
    found, strangers = TraceSet(params=params), 0
    rollouts: dict[tuple[Any, Any], dict[str, Any]] = {}  # what the rollout dumps hold of a sample
    for file in sorted(dump.glob("**/*rollout*.pt")):
        held = _load(file, found.problems)
        try:
            rollouts |= {(held["rollout_id"], _dict(sample)["index"]): sample for sample in held["samples"]}
        except Exception as error:  # whatever hostile input raises
            found.problems.append(f"{file} was left out: it is no rollout dump ({error!r}).")
    for file in sorted(dump.glob("**/*train*.pt")):
        held = _load(file, found.problems, FORMAT_VERSION)
        for number, sample in enumerate(held["samples"]):
            try:
                about = rollouts.get((held["rollout_id"], int(_dict(sample)["sample_index"])), {})
                sample["rollout_id"] = held["rollout_id"]
                trace = _trace(sample, about, bytes_of, params, current_logprobs)
                strangers += bytes_of is not in_brackets and str(about.get("response") or "") not in trace.text
                found.traces.append(trace)
            except Exception as error:  # likewise
                found.problems.append(f"{file}, sample {number} was left out: {error!r}.")
    if strangers:
        found.problems.append(
            f"{strangers} of {len(found)} completions do not decode to the dump's own text, so their bytes are wrong; "
            "give the tokenizer that the run used."
        )
    if found.traces and not current_logprobs:
        found.problems.append(NO_POLICY)
    return found


def _load(file: Path, problems: list[str], version: int | None = None) -> dict[str, Any]:
    """The dump, whose samples are a list; one that cannot be read, or of another version, is named and has none."""
    try:
        dump = _dict(torch.load(file, map_location="cpu", weights_only=True))  # never unpickles code
        if version is not None and not (isinstance(own := dump.get("format_version"), int) and own == version):
            raise ValueError(f"its format_version is {str(own)[:50]}, but this fipo reads {version}")
        if not isinstance(samples := dump.get("samples"), list):
            raise TypeError(f"its samples are a {type(samples).__name__}, but slime writes a list")
        return dump
    except Exception as error:  # whatever a damaged archive raises
        problems.append(f"{file} was left out: {(str(error).splitlines() or [repr(error)])[0].removesuffix('.')}.")
        return {"samples": []}


def _dict(value: Any) -> dict[str, Any]:
    """`value`; a tensor in its place would take a name for an index."""
    if not isinstance(value, dict):
        raise TypeError(f"it is a {type(value).__name__}, but slime writes a dict")
    return value


def _trace(
    sample: dict[str, Any], about: dict[str, Any], bytes_of: BytesOf, params: FIPOParams | None, current_logprobs: bool
) -> Trace:
    """`sample` is the train dump's, `about` the rollout dump's with the same index, or empty."""
    length = int(sample["response_lengths"])
    tokens = [int(index) for index in sample["tokens"]]
    ids, before = tokens[len(tokens) - length :], tokens[: len(tokens) - length]
    prompt = about.get("prompt") or b"".join(map(bytes_of, before)).decode(errors="replace")
    if isinstance(prompt, list):  # a chat
        prompt = "\n".join(str(message.get("content", "")) for message in prompt)
    scored = about.get("reward")  # the train dump's is less the group's mean, over its deviation
    reward = float(scored if isinstance(scored, int | float) else sample["rewards"])
    trained, advantages, logps, sampled = (
        sample.get(name) for name in ("loss_masks", "advantages", "log_probs", "rollout_log_probs")
    )
    known: dict[str, Any] = {}
    columns = {"advantages": advantages, "old_logps": logps, "rollout_logps": sampled}
    if current_logprobs:
        columns = {"advantages": advantages, "old_logps": sampled, "logps": logps}
        known = credit_of_dump(logps, sampled, advantages, trained, params)
    return Trace(
        token_ids=np.array(ids, dtype="int32"),
        token_bytes=[bytes_of(index) for index in ids],
        trained=sample["loss_masks"].bool().numpy(),
        run="slime",
        rollout=sample["rollout_id"],
        update=-1,
        group=int(about.get("group_index", sample["sample_index"])),
        sample=int(sample["sample_index"]),
        prompt=prompt,
        reward=reward,
        rewards={"reward": reward},
        truncated=bool(sample.get("truncated", 0)),
        stop_reason=str(about.get("status", "")),
        **known,
        **{name: value.float().numpy() for name, value in columns.items() if value is not None},
    )
