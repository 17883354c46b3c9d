"""FIPO's hyper-parameters. Name, default, range and help of each are stated here and nowhere else.

The trainer's options, slime's flags, verl's fields, the sliders of the report and the README's table come from KNOBS.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Literal, get_args

from fipo.errors import InvalidParameterError

Distance = Literal["position", "trained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """What is known of one hyper-parameter. Its type is that of its default."""

    default: Any
    help: str = ""
    low: float = -math.inf  # the range of a number
    high: float = math.inf
    low_open: bool = False  # whether that end itself is excluded
    high_open: bool = False
    choices: tuple[str, ...] = ()

    @property
    def expectation(self) -> str:
        """The values it takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        low = f"{'above' if self.low_open else 'of at least'} {self.low:g}"
        if math.isfinite(self.high):
            return f"{kind} {low} and {'below' if self.high_open else 'at most'} {self.high:g}"
        return f"{kind} {low}" + (" and finite" if self.high_open else "")

    def checked(self, name: str, value: Any) -> Any:
        """`value` as Python's own bool, int, float or str.

        Raises:
            InvalidParameterError: It has another type or lies outside the range; the message calls it `name`.
        """
        found = self._converted(value)
        if found is None or not self._holds(found):
            shown = value if not isinstance(value, int) or abs(value) < 1e9 else f"{str(value)[:9]}…"
            raise InvalidParameterError(f"{name} is {shown!r}, but must be {self.expectation}; change {name}.")
        return found

    def _converted(self, value: Any) -> Any:
        if isinstance(value, bool) or isinstance(self.default, bool | str):
            return value if type(value) is type(self.default) else None
        if isinstance(self.default, int):
            return int(value) if isinstance(value, Integral) and abs(int(value)) < 2**63 else None  # as tensors do
        try:
            return float(value) if isinstance(value, Real) else None
        except OverflowError:
            return None

    def _holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)


def _knob(default: Any, help: str, **about: Any) -> Any:
    return field(default=default, metadata={"knob": Knob(default=default, help=help, **about)})


@dataclass(frozen=True, kw_only=True)
class FIPOParams:
    """Hyper-parameters of the FIPO loss (Ma et al., arXiv:2603.19835); immutable and checked on creation.

    The defaults are the flag defaults of slime's pull request 1801; `FIPOParams.preset` gives the paper's settings.
    Numbers of any kind are kept as Python's own.

    Raises:
        InvalidParameterError: A value is out of range; the message names it and the range.
    """

    decay_rate: float = _knob(
        32.0, "Half-life of future credit in tokens, γ = 2^(−1/decay_rate); inf: no decay.", low=0, low_open=True
    )
    clip_ratio_low: float = _knob(0.2, "The weight's lower bound is 1 − this.", low=0, high=1, high_open=True)
    clip_ratio_high: float = _knob(0.2, "The weight's upper bound is 1 + this.", low=0, high_open=True)
    clip_high_only: bool = _knob(False, "The weight's lower bound is 1, so that credit only amplifies.")
    safety_thresh: float = _knob(
        10.0,
        "Where the advantage is negative and the ratio exceeds this, the weight stays in [0.8, 1]; inf: never.",
        low=1,
    )
    dual_clip_c: float = _knob(
        10.0,
        "Dual clip: tokens with a larger ratio give no future credit, and where the advantage A is negative the loss "
        "is at most −A × this; inf: never.",
        low=1,
        low_open=True,
    )
    max_dual_clipped: int = _knob(
        1, "A sequence with more dual-clipped tokens than this is dropped: it gives no policy loss.", low=0
    )
    distance: Distance = _knob(
        "position",
        "What the half-life counts: every token between two (position, the paper), or the trained ones alone "
        "(trained), so that a long tool output does not erase credit.",
        choices=get_args(Distance),
    )

    def __post_init__(self) -> None:
        for name, knob in KNOBS.items():
            object.__setattr__(self, name, knob.checked(name, getattr(self, name)))

    @property
    def weight_low(self) -> float:
        """Lower bound of the weight."""
        return 1.0 if self.clip_high_only else 1.0 - self.clip_ratio_low

    @property
    def weight_high(self) -> float:
        """Upper bound of the weight."""
        return 1.0 + self.clip_ratio_high

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "FIPOParams":
        """The paper's settings for "7b" (Qwen2.5-Math-7B) or "32b" (Qwen2.5-32B); keyword arguments override them.

        >>> FIPOParams.preset("32b").weight_low
        1.0
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise InvalidParameterError(f"preset is {name!r}, but must be one of {', '.join(PRESETS)}; choose one.")
        return replace(cls(**PRESETS[name]), **overrides)


KNOBS: Mapping[str, Knob] = MappingProxyType({entry.name: entry.metadata["knob"] for entry in fields(FIPOParams)})
PRESETS: dict[str, dict[str, Any]] = {
    "7b": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_high_only": False, "safety_thresh": 3.0},
    "32b": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_high_only": True, "safety_thresh": 10.0},
}
