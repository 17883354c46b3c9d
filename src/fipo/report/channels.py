"""What colours the tokens of the report. The page's keys, legend, scales, help and CSV come from CHANNELS.

To add a channel, add it here; what the source has to record for it is a field of `fipo.traces.schema.Trace`. A test
holds the table in docs/report.md to this one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fipo.traces import Trace


def _mismatch(trace: Trace) -> np.ndarray | None:
    if trace.old_logps is None or trace.rollout_logps is None:
        return None
    return np.where(trace.trained, trace.old_logps - trace.rollout_logps, 0)


@dataclass(frozen=True, slots=True)
class Channel:
    """A number for every token, with what a reader and a colour scale need to know of it."""

    name: str  # in the address, in the CSV, and of its column
    label: str
    dtype: str  # of its column in the report; "": web/model/channels.js computes it from others
    help: str
    unit: str = ""
    neutral: float | None = 0.0  # the value without a colour; None: all values lie on one side of 0
    scale: str = "linear"  # to the 99th percentile; or "log", or "bounds": to the bounds of the weight
    values: Callable[[Trace], np.ndarray | None] | None = None  # where it is no column of the trace

    def of(self, trace: Trace) -> np.ndarray | None:
        return self.values(trace) if self.values else getattr(trace, self.name)


CHANNELS = (
    Channel("log_ratio", "log_ratio", "<f4", "log π_θ − log π_old of the token"),
    Channel("future_kl", "future_kl", "<f4", "the discounted sum of log_ratio from the token on"),
    Channel("weight", "weight", "<f4", "the factor on the advantage", neutral=1.0, scale="bounds"),
    Channel("advantage_weight", "advantage × weight", "", "the advantage that the loss used"),
    Channel("entropy", "entropy", "<f2", "of the policy's next token", unit="nats", neutral=None),
    Channel("ratio", "ratio", "", "π_θ / π_old of the token", neutral=1.0, scale="log"),
    Channel("true_advantage", "true advantage", "<f4", unit="(of a right answer's probability)",
            help="by how much the token changed the probability of a right answer, where somebody measured it"),
    Channel("mismatch", "trainer − engine", "<f4", unit="(log-probs when it was sampled)", values=_mismatch,
            help="the trainer's log-probability less the rollout engine's, when it was sampled; 0 if not trained"),
)  # fmt: skip
