"""FIPO as a custom loss of slime; slime stays as it is. docs/engines.md has both ways to start."""

from fipo.engines.slime.loss import fipo_loss_function, token_credit
from fipo.engines.slime.noise import before_train_step
from fipo.engines.slime.tracing import note_rollout

__all__ = ["before_train_step", "fipo_loss_function", "note_rollout", "token_credit"]
