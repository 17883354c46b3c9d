"""Which releases of verl the plugin was written for."""

import re

from fipo.errors import FIPOError

OLDEST, NEWEST = (0, 7), (0, 9)


def check() -> None:
    """Raises a FIPOError where verl is missing or is a release that the plugin does not know."""
    try:
        from verl import __version__ as installed
    except ModuleNotFoundError as missing:
        if missing.name != "verl":
            raise
        raise FIPOError("verl is not installed in this Python; run `pip install verl==0.9.1` on every node.") from None
    release = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if not OLDEST <= release <= NEWEST:
        raise FIPOError(
            f"verl is {installed}, but fipo knows 0.7 to 0.9; run `pip install verl==0.9.1` on every node, or take a "
            "fipo that knows your release."
        )
