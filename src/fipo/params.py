"""The knobs of FIPO, with the names that the command line, the configs, the logs and the traces share."""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

from fipo.errors import InvalidParameterError

Distance = Literal["position", "trained"]


@dataclass(frozen=True, kw_only=True)
class FIPOParams:
    """Hyper-parameters of the FIPO loss (Ma et al., arXiv:2603.19835); immutable and checked on creation.

    The defaults are the flag defaults of slime's pull request 1801; `FIPOParams.preset` gives the paper's settings.

    Args:
        decay_rate: Half-life of future credit in tokens, γ = 2^(−1/decay_rate); `math.inf` means no decay.
        clip_ratio_low: The weight's lower bound is 1 − clip_ratio_low; in [0, 1).
        clip_ratio_high: The weight's upper bound is 1 + clip_ratio_high; at least 0.
        clip_high_only: Make the lower bound 1, so that credit only amplifies.
        safety_thresh: Where the advantage is negative and the ratio exceeds this, the weight stays in [0.8, 1].
        dual_clip_c: Dual-clip bound: tokens with a larger ratio give no future credit, and where the advantage is
            negative the loss is capped at −A·dual_clip_c; above 1.
        chunk_size: Tokens per block of the Future-KL scan at most. It changes speed, never the result.
        max_dual_clipped: A sequence with more dual-clipped tokens than this is dropped from the loss.
        distance: What γ counts between two tokens: "position" (the paper) or "trained", the number of trained
            tokens, so that a long tool output does not erase credit.

    Raises:
        InvalidParameterError: A value is out of range; the sentence names it and the range.
    """

    decay_rate: float = 32.0
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_high_only: bool = False
    safety_thresh: float = 10.0
    dual_clip_c: float = 10.0
    chunk_size: int = 128
    max_dual_clipped: int = 1
    distance: Distance = "position"

    def __post_init__(self) -> None:
        for name in ("decay_rate", "clip_ratio_low", "clip_ratio_high", "safety_thresh", "dual_clip_c"):
            value = getattr(self, name)
            _require(isinstance(value, Real) and not isinstance(value, bool), name, value, "a number")
        _require(self.decay_rate > 0, "decay_rate", self.decay_rate, "a half-life in tokens above 0 (inf: no decay)")
        _require(0 <= self.clip_ratio_low < 1, "clip_ratio_low", self.clip_ratio_low, "in [0, 1)")
        _require(0 <= self.clip_ratio_high < math.inf, "clip_ratio_high", self.clip_ratio_high, "finite and at least 0")
        _require(isinstance(self.clip_high_only, bool), "clip_high_only", self.clip_high_only, "True or False")
        _require(self.safety_thresh >= 1, "safety_thresh", self.safety_thresh, "a ratio of at least 1 (inf: never)")
        _require(self.dual_clip_c > 1, "dual_clip_c", self.dual_clip_c, "a ratio above 1 (inf: never)")
        _require(_is_int(self.chunk_size, 1), "chunk_size", self.chunk_size, "a whole number of tokens, at least 1")
        _require(
            _is_int(self.max_dual_clipped, 0), "max_dual_clipped", self.max_dual_clipped, "a whole number, at least 0"
        )
        _require(self.distance in get_args(Distance), "distance", self.distance, 'either "position" or "trained"')

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
        if name not in PRESETS:
            raise InvalidParameterError(f"preset is {name!r}, but must be one of {sorted(PRESETS)}.")
        return replace(cls(**PRESETS[name]), **overrides)


PRESETS: dict[str, dict[str, Any]] = {
    "7b": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_high_only": False, "safety_thresh": 3.0},
    "32b": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_high_only": True, "safety_thresh": 10.0},
}


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InvalidParameterError(f"{name} is {value!r}, but must be {expected}; change {name}.")
