"""What every engine and the analysis log about the credit: one name and one definition for each quantity.

An engine averages these values as it averages everything else, exactly over micro-batches and ranks.
"""

from collections.abc import Callable

from torch import Tensor

from fipo.core.loss import FIPOOutput

Values = Callable[[FIPOOutput], Tensor]

TOKEN_MEANS: dict[str, Values] = {  # over trained tokens, those of dropped sequences included
    "fipo/weight_mean": lambda out: out.weight,
    "fipo/raw_weight_mean": lambda out: out.raw_weight,
    "fipo/weight_at_low": lambda out: out.at_low,
    "fipo/weight_at_high": lambda out: out.at_high,
    "fipo/future_kl_mean": lambda out: out.future_kl,
    "fipo/participation": lambda out: out.participates,
    "fipo/safety_capped": lambda out: out.safety_capped,
    "fipo/dual_clipped": lambda out: out.dual_clipped,
    "fipo/policy_kl": lambda out: out.log_ratio.expm1() - out.log_ratio,  # KL(π_old ‖ π_θ), the k3 estimate
}
FIRST_UPDATE_MEANS: dict[str, Values] = {  # over trained tokens of a rollout's first update: nothing but noise
    "fipo/noise_floor": lambda out: out.log_ratio.abs(),
    "fipo/noise_weight_shift": lambda out: (out.raw_weight - 1).abs(),
}
CLIP_MEANS: dict[str, Values] = {  # over trained tokens; engines log them under names of their own
    "low": lambda out: out.clipped_low,
    "high": lambda out: out.clipped_high,
    "region": lambda out: out.clipped_low | out.clipped_high,
}
CREDIT_REPORT = "fipo/credit"  # the page about a traced rollout, where a tracker shows pages
DROPPED_SEQUENCES = "fipo/dropped_sequences"  # the share of sequences whose `FIPOOutput.dropped` is true
WEIGHT_MIN, WEIGHT_MAX = "fipo/weight_min", "fipo/weight_max"  # over trained tokens

NOISE_LIMIT = 0.01  # a mean "fipo/noise_weight_shift" above this deserves a warning


def noise_warning(shift: float, causes: str) -> str:
    """The warning about a mean "fipo/noise_weight_shift" of `shift`; `causes` says what to look at in this engine."""
    return (
        f"Noise floor: at the first update after a rollout log-ratios must be 0, but they move the weights by "
        f"{shift:.1%} on average; {causes}."
    )
