"""slime's debug dumps: `--save-debug-rollout-data` and `--save-debug-train-data`, format version 2."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fipo.traces.importers.common import UNUSABLE, ImportOptions, credit, text_of
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet

FORMAT_VERSION = 2
NO_POLICY = (
    "The dump's log_probs are those of the old policy, so log-ratios and weights cannot be recovered; dump a run with "
    "--use-rollout-logprobs and fipo's loss, and import it with --current-logprobs."
)


def read(dump: Path, options: ImportOptions) -> TraceSet:
    """Joins every train dump in the folder with its rollout dump."""
    found, strangers = TraceSet(params=options.params), 0
    rollouts = _rollouts(dump, found.problems)
    for file in sorted(dump.glob("**/*train*.pt")):
        held = _train_dump(file, found.problems)
        for number, sample in enumerate(held.get("samples", ())):
            try:
                about = rollouts.get(held["rollout_id"], {}).get(int(sample["sample_index"]), {})
                trace = _trace(held["rollout_id"], sample, about, options)
                strangers += options.tokenizer is not None and str(about.get("response") or "") not in trace.text
                found.traces.append(trace)
            except UNUSABLE as error:
                found.problems.append(f"{file}, sample {number} was left out: {error!r}.")
    if strangers:
        found.problems.append(
            f"{strangers} of {len(found)} completions do not decode to the dump's own text, so their bytes are wrong; "
            "give the tokenizer that the run used."
        )
    if found.traces and not options.current_logprobs:
        found.problems.append(NO_POLICY)
    return found


def _rollouts(folder: Path, problems: list[str]) -> dict[int, dict[int, Any]]:
    """What the rollout dumps tell of every sample, by rollout and index."""
    rollouts: dict[int, dict[int, Any]] = {}
    for file in sorted(folder.glob("**/*rollout*.pt")):
        dump = _load(file, problems)
        try:
            if "samples" in dump:
                rollouts[dump["rollout_id"]] = {sample["index"]: sample for sample in dump["samples"]}
        except UNUSABLE as error:
            problems.append(f"{file} was left out: it is no rollout dump ({error!r}).")
    return rollouts


def _train_dump(file: Path, problems: list[str]) -> dict[str, Any]:
    dump = _load(file, problems)
    version = dump.get("format_version")
    if dump and (not isinstance(version, int) or version != FORMAT_VERSION):
        problems.append(
            f"{file} was left out: its format_version is {str(version)[:50]}, but this fipo reads {FORMAT_VERSION}."
        )
        return {}
    return dump if isinstance(dump.get("samples"), list) else {}


def _load(file: Path, problems: list[str]) -> dict[str, Any]:
    """Empty if the file cannot be used."""
    try:
        dump = torch.load(file, map_location="cpu", weights_only=True)  # never unpickles code
        if not isinstance(dump, dict):
            raise TypeError(f"it holds a {type(dump).__name__}, but slime writes a dict.")
        return dump
    except Exception as error:
        problems.append(f"{file} was left out: {(str(error).splitlines() or [repr(error)])[0]}")
        return {}


def _trace(rollout: int, sample: dict[str, Any], about: dict[str, Any], options: ImportOptions) -> Trace:
    """`sample` is the train dump's, `about` the rollout dump's with the same index, or empty."""
    length = int(sample["response_lengths"])
    tokens = [int(index) for index in sample["tokens"]]
    prompt, ids = tokens[: len(tokens) - length], tokens[len(tokens) - length :]
    old = sample["rollout_log_probs"] if options.current_logprobs else sample["log_probs"]
    scored = about.get("reward")  # the train dump's is less the group's mean, over its deviation
    reward = float(scored if isinstance(scored, int | float) else sample["rewards"])
    columns = {"old_logps": old, "advantages": sample["advantages"]}
    known: dict[str, Any] = {}
    if not options.current_logprobs and sample.get("rollout_log_probs") is not None:
        columns["rollout_logps"] = sample["rollout_log_probs"]
    if options.current_logprobs:
        columns["logps"] = sample["log_probs"]
        known = credit(sample["log_probs"], old, sample["advantages"], sample["loss_masks"], options.params)
    return Trace(
        token_ids=np.array(ids, dtype="int32"),
        token_bytes=[options.bytes_of(index) for index in ids],
        trained=sample["loss_masks"].bool().numpy(),
        run="slime",
        rollout=rollout,
        update=-1,
        group=int(about.get("group_index", sample["sample_index"])),
        sample=int(sample["sample_index"]),
        prompt=text_of(about.get("prompt"))
        or b"".join(options.bytes_of(index) for index in prompt).decode(errors="replace"),
        reward=reward,
        rewards={"reward": reward},
        truncated=bool(sample.get("truncated", 0)),
        stop_reason=str(about.get("status", "")),
        **known,
        **{name: value.float().numpy() for name, value in columns.items()},
    )
