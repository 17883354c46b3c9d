"""Which releases of verl the plugin was written for."""

import re

from fipo.errors import FIPOError

OLDEST, NEWEST = (0, 7), (0, 9)
REMEDY = "run `pip install verl==0.9.1` on every node"


def check() -> None:
    """Raises a FIPOError where verl is missing or is a release that the plugin does not know."""
    try:
        known = OLDEST <= release() <= NEWEST
    except ModuleNotFoundError as missing:
        if missing.name != "verl":
            raise
        raise FIPOError(f"verl is not installed in this Python; {REMEDY}.") from None
    if not known:
        raise FIPOError(
            f"verl is {'.'.join(map(str, release()))}, but fipo knows 0.7 to 0.9; {REMEDY}, or take a fipo that knows "
            "your release."
        )


def release() -> tuple[int, ...]:
    """The installed release's first two numbers."""
    from verl import __version__

    return tuple(int(number) for number in re.findall(r"\d+", __version__)[:2])
