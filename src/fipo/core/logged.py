"""What every engine and the analysis log about the credit: one name and one definition for each quantity.

An engine averages these values as it averages everything else, exactly over micro-batches and ranks.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fipo.core.credit import TokenCredit

logger = logging.getLogger(__name__)

Values = Callable[["TokenCredit"], Tensor]

TOKEN_MEANS: dict[str, Values] = {  # over trained tokens, those of dropped sequences included
    "fipo/weight_mean": lambda credit: credit.weight,
    "fipo/weight_at_low": lambda credit: credit.at_low,
    "fipo/weight_at_high": lambda credit: credit.at_high,
    "fipo/future_kl_mean": lambda credit: credit.future_kl,
    "fipo/participation": lambda credit: credit.participates,
    "fipo/safety_capped": lambda credit: credit.safety_capped,
    "fipo/dual_clipped": lambda credit: credit.dual_clipped,
    "fipo/non_finite": lambda credit: credit.non_finite,
    "fipo/policy_kl": lambda credit: credit.log_ratio.expm1() - credit.log_ratio,  # KL(π_old ‖ π_θ), the k3 estimate
}
FIRST_UPDATE_MEANS: dict[str, Values] = {  # over trained tokens of a rollout's first update: nothing but noise
    "fipo/noise_floor": lambda credit: credit.log_ratio.abs(),
    "fipo/noise_weight_shift": lambda credit: credit.future_kl.clamp(max=1).expm1().abs(),  # of the weight, unclipped
}
CREDIT_REPORT = "fipo/credit"  # the page about a traced rollout, where a tracker shows pages
DROPPED_SEQUENCES = "fipo/dropped_sequences"  # the share of sequences whose `TokenCredit.dropped` is true

ROUNDING = "fipo/rounding"  # the mean |error| of a weight that comes from the precision of the forward

NOISE_LIMIT = 0.01  # a mean "fipo/noise_weight_shift" or "fipo/rounding" above this deserves a warning


def noise_warning(shift: float, causes: str = "usual causes are dropout and kernels that are not deterministic") -> str:
    """The warning about a mean "fipo/noise_weight_shift" of `shift`; `causes` says what to look at."""
    return (
        f"Noise floor: at the first update after a rollout log-ratios must be 0, but they move the weights by "
        f"{shift:.1%} on average; {causes}."
    )


def rounding_warning(error: float, remedy: str) -> str:
    """The warning about a mean "fipo/rounding" of `error`; `remedy` names the engine's setting."""
    return (
        f"Rounding: the precision in which log-probs are computed moves the weights by about {error:.1%} on average; "
        f"{remedy}. `fipo precision` measures a model of yours, docs/precision.md says more."
    )


@cache  # once a process
def warn_of_non_finite() -> None:
    """Says that trained tokens without a finite π_old were left out ("fipo/non_finite")."""
    logger.warning(
        "π_old is not finite at some trained tokens, so these are left out of the loss, of future_kl and of the "
        "sequence drop; look at what computes old log-probs, for instance a rollout engine that returns NaN."
    )
