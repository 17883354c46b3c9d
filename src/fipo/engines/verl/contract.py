"""Which releases of verl the plugin was written for, and the name under which verl finds the loss."""

import re

from fipo.errors import FIPOError

NAME, HOME = "fipo", "fipo.engines.verl.loss"
OLDEST, NEWEST = (0, 7), (0, 9)
REMEDY = "run `pip install verl==0.9.1` on every node"


def check_release() -> None:
    """Raises a FIPOError where verl is missing or is a release that the plugin does not know."""
    try:
        found = release()
    except ModuleNotFoundError as missing:
        if missing.name != "verl":
            raise
        raise FIPOError(f"verl is not installed in this Python; {REMEDY}.") from None
    if not OLDEST <= found <= NEWEST:
        raise FIPOError(
            f"verl is {'.'.join(map(str, found))}, but fipo knows 0.7 to 0.9; {REMEDY}, or take a fipo that knows your "
            "release."
        )


def release() -> tuple[int, ...]:
    """The installed release's first two numbers."""
    from verl import __version__

    return tuple(int(number) for number in re.findall(r"\d+", __version__)[:2])


def check_owner() -> None:
    """Raises a FIPOError that names whoever else has taken the name, over whom verl would let us register."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    loss = POLICY_LOSS_REGISTRY[NAME]
    owner = getattr(loss, "__module__", type(loss).__module__)
    if owner != HOME:
        raise FIPOError(
            f"verl's policy loss {NAME!r} belongs to {getattr(loss, '__qualname__', loss)!r} of {owner}, not to "
            f"{HOME}; rename or uninstall that one."
        )
