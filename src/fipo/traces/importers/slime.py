"""slime's debug dumps: `--save-debug-rollout-data` and `--save-debug-train-data`, format version 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fipo.params import FIPOParams
from fipo.traces.importers.common import UNUSABLE, bytes_by_id, credit, text_of
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet

FORMAT_VERSION = 2
NO_POLICY = (
    "The dump's log_probs are those of the old policy, so log-ratios and weights cannot be recovered; dump a run with "
    "--use-rollout-logprobs and fipo's loss, and import it with --current-logprobs."
)


def import_slime(source: Path, found: TraceSet, tokenizer: Any, *, current: bool) -> None:
    """Joins every train dump in the folder with its rollout dump."""
    bytes_of, strangers = bytes_by_id(tokenizer), 0
    rollouts: dict[int, dict[int, Any]] = {}
    for file in sorted(source.glob("**/*rollout*.pt")):
        dump = _load(file, found)
        try:
            if dump and "samples" in dump:
                rollouts[dump["rollout_id"]] = {sample["index"]: sample for sample in dump["samples"]}
        except UNUSABLE as error:
            found.problems.append(f"{file} was left out: it is no rollout dump ({error!r}).")
    for file in sorted(source.glob("**/*train*.pt")):
        dump = _load(file, found)
        if dump is None:
            continue
        version = dump.get("format_version")
        if not isinstance(version, int) or version != FORMAT_VERSION:
            found.problems.append(
                f"{file} was left out: its format_version is {str(version)[:50]}, but this fipo reads {FORMAT_VERSION}."
            )
            continue
        samples = dump.get("samples")
        for number, sample in enumerate(samples if isinstance(samples, list) else []):
            try:
                about = rollouts.get(dump["rollout_id"], {}).get(int(sample["sample_index"]), {})
                trace = _trace(dump["rollout_id"], sample, about, bytes_of, current, found.params)
                strangers += tokenizer is not None and str(about.get("response") or "") not in trace.text
                found.traces.append(trace)
            except UNUSABLE as error:
                found.problems.append(f"{file}, sample {number} was left out: {error!r}.")
    if strangers:
        found.problems.append(
            f"{strangers} of {len(found)} completions do not decode to the dump's own text, so their bytes are wrong; "
            "give the tokenizer that the run used."
        )
    if found.traces and not current:
        found.problems.append(NO_POLICY)


def _load(file: Path, found: TraceSet) -> dict[str, Any] | None:
    try:
        dump = torch.load(file, map_location="cpu", weights_only=True)  # never unpickles code
        if not isinstance(dump, dict):
            raise TypeError(f"it holds a {type(dump).__name__}, but slime writes a dict.")
        return dump
    except Exception as error:
        found.problems.append(f"{file} was left out: {(str(error).splitlines() or [repr(error)])[0]}")
        return None


def _trace(
    rollout: int,
    sample: dict[str, Any],
    about: dict[str, Any],
    bytes_of: Callable[[int], bytes],
    current: bool,
    params: FIPOParams | None,
) -> Trace:
    """`sample` is the train dump's, `about` the rollout dump's with the same index, or empty."""
    length = int(sample["response_lengths"])
    tokens = [int(index) for index in sample["tokens"]]
    prompt, ids = tokens[: len(tokens) - length], tokens[len(tokens) - length :]
    old = sample["rollout_log_probs"] if current else sample["log_probs"]
    reward = float(sample["rewards"])
    columns = {"old_logps": old, "advantages": sample["advantages"]}
    known: dict[str, Any] = {}
    if current:
        columns["logps"] = sample["log_probs"]
        known = credit(sample["log_probs"], old, sample["advantages"], sample["loss_masks"], params or FIPOParams())
    return Trace(
        token_ids=np.array(ids, dtype="int32"),
        token_bytes=[bytes_of(index) for index in ids],
        trained=sample["loss_masks"].bool().numpy(),
        run="slime",
        rollout=rollout,
        update=-1,
        group=int(about.get("group_index", sample["sample_index"])),
        sample=int(sample["sample_index"]),
        prompt=text_of(about.get("prompt")) or b"".join(bytes_of(index) for index in prompt).decode(errors="replace"),
        reward=reward,
        rewards={"reward": reward},
        truncated=bool(sample.get("truncated", 0)),
        stop_reason=str(about.get("status", "")),
        **known,
        **{name: value.float().numpy() for name, value in columns.items()},
    )
