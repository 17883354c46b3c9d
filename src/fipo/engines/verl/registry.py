"""The name under which verl finds the loss. verl's own registry overwrites silently; this one asks who is there."""

from collections.abc import Callable
from typing import Any

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, register_policy_loss

from fipo.errors import FIPOError

NAME = "fipo"
_HOME = "fipo.engines.verl.loss"


def register(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Registers the loss; registering it again (a reload) is fine, over somebody else's loss is a FIPOError."""
    if NAME in POLICY_LOSS_REGISTRY:
        check_owner()
    return register_policy_loss(NAME)(loss)


def check_owner() -> None:
    """Raises a FIPOError that names whoever has taken the name."""
    loss = POLICY_LOSS_REGISTRY[NAME]
    owner = getattr(loss, "__module__", type(loss).__module__)
    if owner != _HOME:
        raise FIPOError(
            f"verl's policy loss {NAME!r} belongs to {getattr(loss, '__qualname__', loss)!r} of {owner}, not to "
            f"{_HOME}; rename or uninstall that one."
        )
