"""One trace: everything about every token of one completion at one update. docs/traces.md describes the columns."""

from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa

from fipo.errors import InvalidInputError

SCHEMA_VERSION = 2
FLOATS = pa.list_(pa.float32())  # one a token


def _column(kind: pa.DataType, **default: Any) -> Any:
    return field(metadata={"kind": kind}, **default)


@dataclass(slots=True, kw_only=True)
class Trace:
    """One completion of T tokens at one update. Arrays are (T,); None: the source does not record it.

    Raises:
        InvalidInputError: The columns differ in length, or a field has another type or is too large.
    """

    run: str = _column(pa.string(), default="")
    rollout: int = _column(pa.int32(), default=0)
    update: int = _column(pa.int16(), default=0)  # within the rollout, from 0; −1: the source does not record it
    group: int = _column(pa.int32(), default=0)  # completions of one prompt share it
    sample: int = _column(pa.int32(), default=0)  # within the rollout; with `rollout` and `update` it names the trace
    prompt: str = _column(pa.string(), default="")
    reward: float | None = _column(pa.float32(), default=None)
    rewards: dict[str, float] = _column(pa.map_(pa.string(), pa.float32()), default_factory=dict)  # before weighting
    dropped: bool | None = _column(pa.bool_(), default=None)
    truncated: bool | None = _column(pa.bool_(), default=None)
    stop_reason: str = _column(pa.string(), default="")
    token_ids: np.ndarray = _column(pa.list_(pa.int32()))
    token_bytes: list[bytes] = _column(pa.list_(pa.binary()))  # exact: joined, they are the completion
    trained: np.ndarray = _column(pa.list_(pa.bool_()))
    old_logps: np.ndarray | None = _column(FLOATS, default=None)
    logps: np.ndarray | None = _column(FLOATS, default=None)
    log_ratio: np.ndarray | None = _column(FLOATS, default=None)
    future_kl: np.ndarray | None = _column(FLOATS, default=None)
    raw_weight: np.ndarray | None = _column(FLOATS, default=None)
    weight: np.ndarray | None = _column(FLOATS, default=None)
    advantages: np.ndarray | None = _column(FLOATS, default=None)
    entropy: np.ndarray | None = _column(FLOATS, default=None)  # nats
    # Of the engine that sampled, where π_old is another's.
    rollout_logps: np.ndarray | None = _column(FLOATS, default=None)
    # V(y≤t) − V(y<t) under π_old, where it was measured.
    true_advantage: np.ndarray | None = _column(FLOATS, default=None)
    flags: np.ndarray | None = _column(pa.list_(pa.uint8()), default=None)  # the bits of FLAGS

    def __post_init__(self) -> None:
        for name in ("run", "prompt", "stop_reason"):
            if not isinstance(value := getattr(self, name), str):
                raise InvalidInputError(f"{name} is a {type(value).__name__}, but must be text; give text.")
            setattr(self, name, value.encode(errors="replace").decode())  # a lone surrogate is no UTF-8
        for name in ("rollout", "update", "group", "sample"):
            value, bits = getattr(self, name), SCHEMA.field(name).type.bit_width
            is_integer = isinstance(value, Integral) and not isinstance(value, bool)
            if not is_integer or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                raise InvalidInputError(f"{name} is {value!r:.30}, but must be an integer of {bits} bits; renumber it.")
        for name in PER_TOKEN:
            if (value := getattr(self, name)) is None:
                continue
            shape, tokens = getattr(value, "shape", (len(value),)), len(self.token_ids)
            if shape != (tokens,):
                raise InvalidInputError(
                    f"{name} has the shape {shape}, but token_ids has {tokens} entries; give one a token."
                )

    @property
    def text(self) -> str:
        """The completion; bytes that are no UTF-8 show as U+FFFD."""
        return b"".join(self.token_bytes).decode("utf-8", errors="replace")


SCHEMA = pa.schema([(column.name, column.metadata["kind"]) for column in fields(Trace)])
PER_TOKEN = {column.name: column.type.value_type for column in SCHEMA if pa.types.is_list(column.type)}
