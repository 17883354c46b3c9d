"""What several importers need."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fipo.core import token_credit
from fipo.params import FIPOParams
from fipo.traces.columns import trace_columns

UNUSABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # of hostile input
DAPO_CLIP = (0.2, 0.28)  # dumps do not tell PPO's

BytesOf = Callable[[int], bytes]  # from a token id


def use_lines(dump: Path, pattern: str, use: Callable[[Path, Any], None], problems: list[str]) -> None:
    """Calls `use` with the file and the JSON value of every line of the dump's files.

    A line that `use` cannot use is left out. A file has one sentence in `problems`, however much of it is damaged.
    """
    for file in [dump] if dump.is_file() else sorted(dump.glob(f"**/{pattern}")):
        unusable, reason = [], ""
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        use(file, json.loads(line))
                    except UNUSABLE as error:
                        reason = reason or f"{type(error).__name__}: {str(error)[:200]}"
                        unusable.append(number)
        except OSError as error:
            problems.append(f"{file} was left out: {error}.")
        if unusable:
            more = f" and {len(unusable) - 5} more" if len(unusable) > 5 else ""
            named = ", ".join(map(str, unusable[:5])) + more
            problems.append(f"{file}, line {named} was left out; the first because of {reason}.")


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
