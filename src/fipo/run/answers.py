"""What counts as a row's answer, and as a number: one grammar for rewards, for `fipo init` and for the data."""

import math
import re
from fractions import Fraction
from typing import Any

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
# A sign counts where no term ends before it: 8-5 holds 8 and 5. A mixed number, a fraction, or a decimal.
NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[-+−])?"
    rf"(?<![0-9/])(?:(?P<whole>{_DIGITS})[ ])?(?P<top>{_DIGITS})/(?P<bottom>{_DIGITS})(?![0-9/])"
    r"|(?:(?<![\w.)\]}])[-+−])?"
    rf"(?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9]))?"
)
FRACTION = re.compile(r"([0-9]?)\\[dt]?frac\{([-+−]?[0-9,]+)\}\{([0-9,]+)\}")
LONGEST = 1000  # characters of a number; a longer one is none


def answers_of(value: Any) -> list[str]:
    """The texts that are right, of a text, a number, or a list of either; none where there is no answer.

    Raises a ValueError, whose message begins with what the value is, where it is something else.
    """
    if isinstance(value, list | tuple):
        return [text for one in value for text in answers_of(one)]
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        what = "an object" if isinstance(value, dict) else f"{value!r:.80}"
        raise ValueError(f"{what}, but an answer is a text, a number, or a list of these")
    return [str(value)]


def last_number(text: str) -> Fraction | None:
    """The exact value of the last number in a text; None where it holds none."""
    found = None
    for match in NUMBER.finditer(_without_latex(text)):
        found = match
    return None if found is None else _value(found)


def is_number(text: str) -> bool:
    """Whether the whole text is one number."""
    return NUMBER.fullmatch(_without_latex(text).strip()) is not None


def _without_latex(text: str) -> str:
    """\\frac{1}{2} as 1/2, and 3\\frac{1}{2} as 3 1/2."""
    return FRACTION.sub(lambda found: f"{found[1]}{' ' * bool(found[1])}{found[2]}/{found[3]}", text)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > LONGEST:
        return None
    parts = {name: (digits or "").replace(",", "") for name, digits in match.groupdict().items()}
    if parts["decimal"]:
        value = Fraction(parts["decimal"]) * Fraction(10) ** int(parts["exponent"] or 0)
    elif int(parts["bottom"]) == 0:
        return None
    else:
        value = int(parts["whole"] or 0) + Fraction(int(parts["top"]), int(parts["bottom"]))
    return -value if match[0][0] in "-−" else value
