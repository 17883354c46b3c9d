"""FIPO as a custom loss of slime; slime stays as it is. docs/engines.md has both ways to start."""

from fipo.engines.slime.hooks import before_train_step, note_rollout
from fipo.engines.slime.loss import credit_of, fipo_loss_function

__all__ = ["before_train_step", "credit_of", "fipo_loss_function", "note_rollout"]
