"""What several importers need."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fipo.core import token_credit
from fipo.params import FIPOParams
from fipo.traces.columns import trace_columns
from fipo.traces.schema import Trace
from fipo.traces.tokens import byte_decoder, in_brackets

UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # of hostile input
DAPO_CLIP = (0.2, 0.28)  # dumps do not tell PPO's
TEXT_ONLY = "The dump holds text without log-probs, so log-ratios and weights cannot be recovered."


Splitter = Callable[[str], tuple[list[int], list[bytes]]]


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the user knows of a dump; `import_dump` describes each."""

    tokenizer: Any = None
    params: FIPOParams | None = None
    current_logprobs: bool = False

    @cached_property
    def bytes_of(self) -> Callable[[int], bytes]:
        """The bytes of a token; without a tokenizer its id in brackets."""
        return byte_decoder(self.tokenizer) if self.tokenizer else in_brackets


def files_of(source: Path, pattern: str) -> Iterator[Path]:
    yield from [source] if source.is_file() else sorted(source.glob(f"**/{pattern}"))


def lines_of(file: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """Number and text of every line; a file that cannot be read adds to the problems."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        problems.append(f"{file} was left out: {error}.")


@dataclass(slots=True)
class Skipped:
    """The records of one file that cannot be used: `with skipped.unless_usable(number): …` around what reads one."""

    file: Path
    kind: str  # what is numbered: "line", "row", "sample"
    numbers: list[int] = field(default_factory=list)
    reason: str = ""  # of the first

    @contextmanager
    def unless_usable(self, number: int) -> Iterator[None]:
        try:
            yield
        except UNUSABLE as error:
            self.reason = self.reason or f"{type(error).__name__}: {str(error)[:200]}"
            self.numbers.append(number)

    @property
    def problems(self) -> list[str]:
        """One for the file, so that a damaged one does not fill the screen; none if all was usable."""
        if not self.numbers:
            return []
        more = f" and {len(self.numbers) - 5} more" if len(self.numbers) > 5 else ""
        named = ", ".join(map(str, self.numbers[:5])) + more
        return [f"{self.file}, {self.kind} {named} was left out; the first because of {self.reason}."]


def credit(logps: Any, old_logps: Any, advantages: Any, trained: Any, params: FIPOParams | None) -> dict[str, Any]:
    """The columns that fipo gives one completion's (T,) log-probs."""
    logps, old_logps, advantages = (torch.as_tensor(column).float()[None] for column in (logps, old_logps, advantages))
    mask = torch.as_tensor(trained).bool()[None]
    found = token_credit(logps, old_logps, advantages, mask, params or FIPOParams())
    columns = trace_columns(found, mask, DAPO_CLIP, advantages=advantages)
    names = ("log_ratio", "future_kl", "raw_weight", "weight", "flags")
    return {name: columns[name][0].numpy() for name in names} | {"dropped": bool(found.dropped[0])}


def floats(values: list[float | None]) -> np.ndarray:
    """float32; a null, which JSON has in place of NaN and infinities, is NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype="float32")


def text_of(value: Any) -> str:
    """A prompt or completion is text, or a list of chat messages."""
    if isinstance(value, str):
        return value
    return "\n".join(str(message.get("content", "")) for message in value or ())


def splitter(tokenizer: Any) -> Splitter:
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


def text_trace(prompt: str, text: str, split: Splitter, rewards: dict[str, float], **place: Any) -> Trace:
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
