"""FIPO as a custom loss of slime; slime stays as it is. docs/engines.md has both ways to start."""

from fipo.engines.slime.hooks import before_train_step
from fipo.engines.slime.loss import credit_of, fipo_loss_function
from fipo.engines.slime.traced_samples import note_rollout

__all__ = ["before_train_step", "credit_of", "fipo_loss_function", "note_rollout"]
