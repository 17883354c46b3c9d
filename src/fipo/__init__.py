"""FIPO, Future-KL Influenced Policy Optimization: every token of a rollout gets its own credit. Needs torch alone."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # which fipo does not need
    import torch as _  # noqa: F401

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
