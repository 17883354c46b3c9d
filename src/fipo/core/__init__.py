"""The mathematics: pure functions of tensors; torch alone."""

from fipo.core.loss import FIPOOutput, fipo_loss, future_kl, influence_weights
from fipo.core.reduce import token_mean

__all__ = ["FIPOOutput", "fipo_loss", "future_kl", "influence_weights", "token_mean"]
