"""One trace: everything about every token of one completion at one update. docs/traces.md describes the columns."""

from dataclasses import dataclass, field, fields
from numbers import Integral

import numpy as np
import pyarrow as pa

from fipo.errors import InvalidInputError
from fipo.traces.columns import FLAGS

__all__ = ["FLAGS", "PER_SAMPLE", "PER_TOKEN", "SCHEMA", "SCHEMA_VERSION", "Trace"]

SCHEMA_VERSION = 2
READABLE = ("1", "2")  # versions: 2 added true_advantage
PER_TOKEN = {  # column → what Parquet holds a token
    "token_ids": pa.int32(),
    "token_bytes": pa.binary(),
    "trained": pa.bool_(),
    "old_logps": pa.float32(),
    "logps": pa.float32(),
    "log_ratio": pa.float32(),
    "future_kl": pa.float32(),
    "raw_weight": pa.float32(),
    "weight": pa.float32(),
    "advantages": pa.float32(),
    "entropy": pa.float32(),
    "rollout_logps": pa.float32(),
    "true_advantage": pa.float32(),
    "flags": pa.uint8(),
}
OPTIONAL = {"rollout_logps", "true_advantage"}  # columns that files of earlier versions of fipo do not have
PER_SAMPLE = {
    "run": pa.string(),
    "rollout": pa.int32(),
    "update": pa.int16(),
    "group": pa.int32(),
    "sample": pa.int32(),
    "prompt": pa.string(),
    "reward": pa.float32(),
    "rewards": pa.map_(pa.string(), pa.float32()),
    "dropped": pa.bool_(),
    "truncated": pa.bool_(),
    "stop_reason": pa.string(),
}
SCHEMA = pa.schema(list(PER_SAMPLE.items()) + [(name, pa.list_(kind)) for name, kind in PER_TOKEN.items()])


@dataclass(slots=True, kw_only=True)
class Trace:
    """One completion of T tokens at one update. Arrays are (T,); None means that the source does not tell.

    Raises:
        InvalidInputError: The columns differ in length, or a field has another type or is too large.
    """

    token_ids: np.ndarray  # int32
    token_bytes: list[bytes]  # exact: joined, they are the completion in UTF-8 or whatever the model wrote
    trained: np.ndarray  # bool
    run: str = ""
    rollout: int = 0
    update: int = 0  # within the rollout, from 0; −1: the source does not tell
    group: int = 0  # completions of one prompt share it
    sample: int = 0  # within the rollout; with `rollout` and `update` it names the trace
    prompt: str = ""
    old_logps: np.ndarray | None = None  # float32, like all that follow
    logps: np.ndarray | None = None
    log_ratio: np.ndarray | None = None
    future_kl: np.ndarray | None = None
    raw_weight: np.ndarray | None = None
    weight: np.ndarray | None = None
    advantages: np.ndarray | None = None
    entropy: np.ndarray | None = None  # nats
    rollout_logps: np.ndarray | None = None  # of the engine that sampled, where π_old is another's
    true_advantage: np.ndarray | None = None  # V(y≤t) − V(y<t) under π_old, where somebody measured it
    flags: np.ndarray | None = None  # uint8, the bits of FLAGS
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict)  # by name, before weighting
    dropped: bool | None = None
    truncated: bool | None = None
    stop_reason: str = ""

    def __post_init__(self) -> None:
        for name in ("run", "prompt", "stop_reason"):
            if not isinstance(value := getattr(self, name), str):
                raise InvalidInputError(f"{name} is a {type(value).__name__}, but must be text; give text.")
            setattr(self, name, value.encode(errors="replace").decode())  # a lone surrogate is no UTF-8
        for name, bits in {"rollout": 31, "update": 15, "group": 31, "sample": 31}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InvalidInputError(f"{name} is a {type(value).__name__}, but must be an integer; give a number.")
            if not -(2**bits) <= value < 2**bits:
                raise InvalidInputError(f"{name} is {str(value)[:30]}, but must fit {bits + 1} bits; renumber it.")
        for name in PER_TOKEN:
            value = getattr(self, name)
            if value is not None and len(value) != len(self.token_ids):
                raise InvalidInputError(
                    f"{name} has {len(value)} entries, but token_ids has {len(self.token_ids)}; give one a token."
                )
            if getattr(value, "ndim", 1) != 1:
                raise InvalidInputError(
                    f"{name} has {value.ndim} dimensions, but must have one; give one entry a token."
                )

    @property
    def text(self) -> str:
        """The completion; bytes that are no UTF-8 show as U+FFFD."""
        return b"".join(self.token_bytes).decode("utf-8", errors="replace")


assert {entry.name for entry in fields(Trace)} == set(SCHEMA.names)
