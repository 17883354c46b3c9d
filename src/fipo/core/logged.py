"""What every engine logs about the credit: one name and one definition for each mean over trained tokens.

An engine averages these values as it averages everything else, exactly over micro-batches and ranks.
"""

from collections.abc import Callable

from torch import Tensor

from fipo.core.loss import FIPOOutput

TOKEN_MEANS: dict[str, Callable[[FIPOOutput], Tensor]] = {
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
FIRST_UPDATE_MEANS: dict[str, Callable[[FIPOOutput], Tensor]] = {  # of a rollout's first update: nothing but noise
    "fipo/noise_floor": lambda out: out.log_ratio.abs(),
    "fipo/noise_weight_shift": lambda out: (out.raw_weight - 1).abs(),
}

NOISE_LIMIT = 0.01  # a mean "fipo/noise_weight_shift" above this deserves a warning


def noise_warning(shift: float, causes: str) -> str:
    """The warning about a mean "fipo/noise_weight_shift" of `shift`; `causes` says what to look at in this engine."""
    return (
        f"Noise floor: at the first update after a rollout log-ratios must be 0, but they move the weights by "
        f"{shift:.1%} on average; {causes}."
    )
