"""The mathematics: pure functions of tensors; torch alone."""

from fipo.core.lm_head import LMHead
from fipo.core.loss import FIPOOutput, fipo_loss, future_kl, influence_weights
from fipo.core.objective import Objective, TokenBatch
from fipo.core.reduce import token_mean
from fipo.core.streaming import StreamingOutput, streaming_fipo_loss, streaming_logps, streaming_loss

__all__ = [
    "FIPOOutput",
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
