"""FIPO, Future-KL Influenced Policy Optimization: every token of a rollout gets its own credit. Needs torch alone."""

from fipo.core import (
    FIPOOutput,
    LMHead,
    Objective,
    StreamingOutput,
    TokenBatch,
    fipo_loss,
    future_kl,
    influence_weights,
    streaming_fipo_loss,
    streaming_logps,
    streaming_loss,
    token_mean,
)
from fipo.errors import DataError, FIPOError, InvalidInputError, InvalidParameterError
from fipo.params import FIPOParams

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "FIPOError",
    "FIPOOutput",
    "FIPOParams",
    "InvalidInputError",
    "InvalidParameterError",
    "LMHead",
    "Objective",
    "StreamingOutput",
    "TokenBatch",
    "fipo_loss",
    "future_kl",
    "influence_weights",
    "streaming_fipo_loss",
    "streaming_logps",
    "streaming_loss",
    "token_mean",
]
