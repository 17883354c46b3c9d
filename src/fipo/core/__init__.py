"""The mathematics: pure functions of tensors; torch alone."""

from fipo.core.credit import TokenCredit, future_kl, influence_weights, token_credit
from fipo.core.head import head_logps
from fipo.core.loss import FIPOOutput, fipo_loss, token_mean

__all__ = [
    "FIPOOutput",
    "TokenCredit",
    "fipo_loss",
    "future_kl",
    "head_logps",
    "influence_weights",
    "token_credit",
    "token_mean",
]
