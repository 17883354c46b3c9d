"""The mathematics: pure functions of tensors; torch alone."""

from fipo.core.loss import FIPOOutput, fipo_loss, future_kl, influence_weights
from fipo.core.reduce import token_mean
from fipo.core.streaming import StreamingOutput, streaming_fipo_loss, streaming_logps

__all__ = [
    "FIPOOutput",
    "StreamingOutput",
    "fipo_loss",
    "future_kl",
    "influence_weights",
    "streaming_fipo_loss",
    "streaming_logps",
    "token_mean",
]
