"""What several importers need."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fipo.core import fipo_loss
from fipo.params import FIPOParams
from fipo.traces.schema import flags_of
from fipo.traces.store import TraceSet
from fipo.traces.tokens import byte_decoder

UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # of hostile input


def files_of(source: Path, pattern: str) -> Iterator[Path]:
    yield from [source] if source.is_file() else sorted(source.glob(f"**/{pattern}"))


def records_of(file: Path, found: TraceSet, read: Callable[[dict[str, Any]], None]) -> None:
    """Calls `read` with the JSON object of every line, as `each_of` does."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        each_of(file, "line", enumerate(lines, start=1), found, lambda _, line: read(json.loads(line)))


def each_of(
    file: Path, kind: str, numbered: Iterable[tuple[int, Any]], found: TraceSet, read: Callable[[int, Any], None]
) -> None:
    """Calls `read` with every number and record; those that it cannot use are named once, with the first reason."""
    bad: list[int] = []
    reason = ""
    for number, record in numbered:
        try:
            read(number, record)
        except UNUSABLE as error:
            reason = reason or f"{type(error).__name__}: {str(error)[:200]}"
            bad.append(number)
    if bad:
        named = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        found.problems.append(f"{file}, {kind} {named} was left out; the first because of {reason}.")


def bytes_by_id(tokenizer: Any) -> Callable[[int], bytes]:
    """The bytes of a token; without a tokenizer its id in brackets."""
    return byte_decoder(tokenizer) if tokenizer else lambda index: f"⟨{index}⟩".encode()


def credit(logps: Any, old_logps: Any, advantages: Any, trained: Any, params: FIPOParams) -> dict[str, Any]:
    """The columns that fipo gives one completion's (T,) log-probs; PPO's clip range is DAPO's."""
    logps, old_logps, advantages = (torch.as_tensor(column).float()[None] for column in (logps, old_logps, advantages))
    mask = torch.as_tensor(trained).bool()[None]
    out = fipo_loss(logps, old_logps, advantages, mask, params)
    names = ("log_ratio", "future_kl", "raw_weight", "weight")
    arrays: dict[str, Any] = {name: getattr(out, name)[0].numpy() for name in names}
    return arrays | {"flags": flags_of(out, mask)[0].numpy(), "dropped": bool(out.dropped[0])}


def floats(values: list[float | None]) -> np.ndarray:
    """float32; a null, which JSON has in place of NaN and infinities, is NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype="float32")


def text_of(value: Any) -> str:
    """A prompt or completion is text, or a list of chat messages."""
    if isinstance(value, str):
        return value
    return "\n".join(str(message.get("content", "")) for message in value or ())
