"""Other stacks' dumps as traces. What a dump does not tell stays None: nothing is guessed, and nothing is unpickled."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fipo.core import fipo_loss
from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.traces.schema import Trace, flags_of
from fipo.traces.store import TraceSet
from fipo.traces.tokens import byte_decoder

NO_POLICY = (
    "The dump's log_probs are those of the old policy, so log-ratios and weights cannot be recovered; dump a run with "
    "--use-rollout-logprobs and fipo's loss, and import it with --current-logprobs."
)
TEXT_ONLY = "The dump holds text without log-probs, so log-ratios and weights cannot be recovered."


def import_dump(
    kind: str, source: Path, *, tokenizer: Any = None, params: FIPOParams | None = None, current_logprobs: bool = False
) -> TraceSet:
    """Reads a dump.

    Args:
        kind: "slime": a folder with both debug dumps, `rollout_*.pt` and `train_*.pt`. "trl": a completions Parquet.
            "verl": a JSONL of `trainer.rollout_data_dir`. The last two may be folders of files.
        source: Where it is.
        tokenizer: A fast Hugging Face tokenizer, for token bytes; without it, slime's tokens show as their ids, and
            texts are split into words.
        params: The knobs for the weights; the defaults by default.
        current_logprobs: slime only: `log_probs` are the current policy's, and `rollout_log_probs` π_old's.

    Returns:
        A TraceSet; `problems` says what could not be recovered or read.

    Raises:
        DataError: The kind is unknown, or nothing could be read.
    """
    if kind not in IMPORTERS:
        raise DataError(f"The kind of dump is {kind!r}, but must be one of {', '.join(IMPORTERS)}; choose one.")
    if not source.exists():
        raise DataError(f"{source} does not exist; check the path.")
    found = TraceSet(params=params or FIPOParams())
    if kind == "slime":
        _import_slime(source, found, tokenizer, current_logprobs)
    else:
        IMPORTERS[kind](source, found, tokenizer)
        found.problems.append(TEXT_ONLY)
    if not found.traces:
        raise DataError(f"{source} holds no {kind} dump that could be read: {'; '.join(found.problems)}")
    return found


def _import_slime(source: Path, found: TraceSet, tokenizer: Any, current: bool) -> None:
    bytes_of = byte_decoder(tokenizer) if tokenizer else lambda index: f"⟨{index}⟩".encode()
    rollouts: dict[int, dict[int, Any]] = {}
    for file in sorted(source.glob("**/*rollout*.pt")):
        dump = _load(file, found)
        if dump and "samples" in dump:
            rollouts[dump["rollout_id"]] = {sample["index"]: sample for sample in dump["samples"]}
    for file in sorted(source.glob("**/*train*.pt")):
        dump = _load(file, found)
        if dump is None or dump.get("format_version") != 2:
            if dump is not None:
                found.problems.append(
                    f"{file} was left out: its format_version is {dump.get('format_version')}, but this fipo reads 2."
                )
            continue
        known = rollouts.get(dump["rollout_id"], {})
        for sample in dump["samples"]:
            about = known.get(int(sample["sample_index"]), {})
            found.traces.append(_slime_trace(dump["rollout_id"], sample, about, bytes_of, current, found.params))
    if found.traces and not current:
        found.problems.append(NO_POLICY)


def _load(file: Path, found: TraceSet) -> dict[str, Any] | None:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)  # never unpickles code
    except Exception as error:
        found.problems.append(f"{file} was left out: {str(error).splitlines()[0]}")
        return None


def _slime_trace(
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
    columns = {"old_logps": old, "advantages": sample["advantages"]} | (
        {"logps": sample["log_probs"]} if current else {}
    )
    known: dict[str, Any] = {name: value.float().numpy() for name, value in columns.items()}
    if current:
        known |= _credit(sample, params or FIPOParams())
    return Trace(
        token_ids=np.array(ids, dtype="int32"),
        token_bytes=[bytes_of(index) for index in ids],
        trained=sample["loss_masks"].bool().numpy(),
        run="slime",
        rollout=rollout,
        group=int(about.get("group_index", sample["sample_index"])),
        sample=int(sample["sample_index"]),
        prompt=about.get("prompt") or b"".join(bytes_of(index) for index in prompt).decode(errors="replace"),
        reward=reward,
        rewards={"reward": reward},
        truncated=bool(sample.get("truncated", 0)),
        stop_reason=str(about.get("status", "")),
        **known,
    )


def _credit(sample: dict[str, Any], params: FIPOParams) -> dict[str, Any]:
    """What fipo gives these log-probs; PPO's clip range is DAPO's."""
    columns = ("log_probs", "rollout_log_probs", "advantages", "loss_masks")
    logps, old_logps, advantages, mask = (sample[name][None] for name in columns)
    out = fipo_loss(logps.float(), old_logps.float(), advantages.float(), mask.bool(), params)
    names = ("log_ratio", "future_kl", "raw_weight", "weight")
    arrays: dict[str, Any] = {name: getattr(out, name)[0].numpy() for name in names}
    return arrays | {"flags": flags_of(out, mask.bool())[0].numpy(), "dropped": bool(out.dropped[0])}


def _import_trl(source: Path, found: TraceSet, tokenizer: Any) -> None:
    """`step, prompt, completion, advantage` and a column a reward, as GRPOTrainer's `log_completions` writes them."""
    for file in _files(source, "*.parquet"):
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            found.problems.append(f"{file} was left out: {error}")
            continue
        missing = {"step", "prompt", "completion", "advantage"} - set(table.column_names)
        if missing:
            found.problems.append(f"{file} was left out: it lacks the columns {sorted(missing)} of TRL's completions.")
            continue
        numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
        for index, row in enumerate(table.to_pylist()):
            rewards = {name: row[name] for name in numbers if name != "advantage" and row[name] is not None}
            prompt, text = _text_of(row["prompt"]), _text_of(row["completion"])
            found.traces.append(
                _text_trace(prompt, text, tokenizer, rewards, row["step"], index, "trl", row["advantage"])
            )


def _import_verl(source: Path, found: TraceSet, tokenizer: Any) -> None:
    """`input, output, score, step` a line, as `trainer.rollout_data_dir` writes them."""
    for file in _files(source, "*.jsonl"):
        for index, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                row = json.loads(line)
                prompt, text, score = row["input"], row["output"], float(row["score"])
            except (ValueError, KeyError, TypeError) as error:
                found.problems.append(
                    f"{file}, line {index + 1} was left out: {error!r}; verl writes input, output, score."
                )
                continue
            trace = _text_trace(prompt, text, tokenizer, {"score": score}, int(row.get("step", 0)), index, "verl", None)
            found.traces.append(trace)


def _files(source: Path, pattern: str) -> Iterator[Path]:
    yield from [source] if source.is_file() else sorted(source.glob(f"**/{pattern}"))


def _text_of(value: Any) -> str:
    """A completion is text, or a list of chat messages."""
    if isinstance(value, str):
        return value
    return "\n".join(str(message.get("content", "")) for message in value or ())


def _text_trace(
    prompt: str,
    text: str,
    tokenizer: Any,
    rewards: dict[str, float],
    rollout: int,
    index: int,
    run: str,
    advantage: float | None,
) -> Trace:
    if tokenizer:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [byte_decoder(tokenizer)(i) for i in ids]
    else:
        pieces = [piece.encode(errors="replace") for piece in re.findall(r"\s*\S+|\s+$", text)]
        ids = [-1] * len(pieces)
    n = len(ids)
    return Trace(
        token_ids=np.array(ids, dtype="int32"),
        token_bytes=pieces,
        trained=np.ones(n, dtype=bool),
        run=run,
        rollout=rollout,
        group=index,
        sample=index,
        prompt=prompt,
        advantages=None if advantage is None else np.full(n, advantage, dtype="float32"),
        reward=sum(rewards.values()) if rewards else None,
        rewards=rewards,
    )


IMPORTERS: dict[str, Callable[..., None]] = {"slime": _import_slime, "trl": _import_trl, "verl": _import_verl}
