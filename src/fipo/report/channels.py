"""What colours the tokens of the report. The page's keys, legend, scales, help and CSV come from CHANNELS.

To add a channel, add it here; what the source has to record for it is a field of `fipo.traces.schema.Trace`. A test
holds the table in docs/report.md to this one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fipo.traces import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A number for every token, with what a reader and a colour scale need to know of it."""

    name: str  # in the address, in the CSV, and of its column
    label: str
    help: str
    dtype: str = ""  # of its column in the report; "": web/model/channels.js computes it from other columns
    unit: str = ""
    neutral: float | None = 0.0  # the value without a colour; None: all values lie on one side of 0
    scale: str = (
        "linear"  # or "log"; "bounds": it ends at the bounds of the weight, and at the 99th percentile elsewhere
    )
    values: Callable[[Trace], np.ndarray | None] | None = None  # where it is no column of the trace


def _mismatch(trace: Trace) -> np.ndarray | None:
    if trace.old_logps is None or trace.rollout_logps is None:
        return None
    return np.where(trace.trained, trace.old_logps - trace.rollout_logps, 0)


CHANNELS = (
    Channel(name="log_ratio", dtype="<f4", label="log_ratio", help="log π_θ − log π_old of the token"),
    Channel(name="future_kl", dtype="<f4", label="future_kl", help="the discounted sum of log_ratio from the token on"),
    Channel(
        name="weight", dtype="<f4", label="weight", neutral=1.0, scale="bounds", help="what multiplies the advantage"
    ),
    Channel(name="advantage_weight", label="advantage × weight", help="the advantage that the loss used"),
    Channel(name="entropy", dtype="<f2", label="entropy", neutral=None, unit="nats", help="of the policy's next token"),
    Channel(name="ratio", label="ratio", neutral=1.0, scale="log", help="π_θ / π_old of the token"),
    Channel(
        name="true_advantage",
        dtype="<f4",
        label="true advantage",
        unit="(of a right answer's probability)",
        help="by how much the token changed the probability of a right answer, where somebody measured it",
    ),
    Channel(
        name="mismatch",
        dtype="<f4",
        label="trainer − engine",
        unit="(log-probs when it was sampled)",
        help="the trainer's log-probability less the rollout engine's, when the token was sampled; 0 if not trained",
        values=_mismatch,
    ),
)


def for_the_page() -> list[dict[str, Any]]:
    """The table as JSON values."""
    return [{name: value for name, value in asdict(channel).items() if name != "values"} for channel in CHANNELS]


def recorded(trace: Trace) -> dict[str, np.ndarray | None]:
    """The columns of the channels that have one."""
    return {
        channel.name: channel.values(trace) if channel.values else getattr(trace, channel.name)
        for channel in CHANNELS
        if channel.dtype
    }
