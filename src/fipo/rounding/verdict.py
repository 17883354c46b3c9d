"""What measured errors mean, and what to set in an engine."""

from dataclasses import dataclass

from rich import box
from rich.table import Table

from fipo.rounding.errors import WeightErrors

LITTLE = 0.01  # the mean error of a weight that may pass, as its noise floor may

# What sets the precision of the forward; from slime 624b824a, verl 0.9.1 and prime-rl 0081765e.
SETTINGS = {
    "float16": {
        "fipo train": "--dtype float32 --fp16 true",
        "slime": "--fp16",
        "verl, FSDP": "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=float16 "
        "actor_rollout_ref.rollout.dtype=float16",
        "verl, Megatron": "actor_rollout_ref.actor.megatron.dtype=float16 actor_rollout_ref.rollout.dtype=float16",
        "prime-rl": "nothing: it computes in bfloat16",
    },
    "float32": {
        "fipo train": "--dtype float32 --bf16 false",
        "slime": "nothing: it computes in bfloat16 or float16",
        "verl, FSDP": "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=float32",
        "verl, Megatron": "nothing: it computes in bfloat16 or float16",
        "prime-rl": "nothing: it computes in bfloat16",
    },
}


@dataclass(frozen=True)
class Row:
    """One way to compute log-probs."""

    name: str
    dtype: str
    errors: WeightErrors

    @property
    def rounding(self) -> float:
        """The share of the variance of weights that the true weights do not explain, in [0, 1]."""
        correlation = self.errors.correlation.value
        return 1 - max(correlation, 0.0) ** 2  # NaN where no weight differs from the others

    @property
    def is_off(self) -> bool:
        return self.errors.weight.value > LITTLE


def verdict(rows: list[Row]) -> str:
    """One sentence about all rows."""
    off = [row for row in rows if row.is_off]
    if not off:
        return f"Weights are right to {LITTLE:.0%} in every precision that was measured; keep what you have."
    worst = max(off, key=lambda row: row.errors.weight.value)
    said = f"In {worst.name} a weight is off by {worst.errors.weight.value:.1%} on average and "
    said += f"{worst.rounding:.0%} of what the weights say is rounding"
    if good := next((row for row in rows if not row.is_off), None):
        return f"{said}; in {good.name} it is off by {good.errors.weight.value:.2%}."
    best = min(off, key=lambda row: row.errors.weight.value)
    return (
        f"{said}; the best that was measured is {best.name}, with {best.errors.weight.value:.1%} and "
        f"{best.rounding:.0%}, so measure float16 and float32 too."
    )


def table(rows: list[Row]) -> Table:
    """Of means over responses with their standard errors."""
    shown = Table("forward", "true |log-ratio|", "error of it", "error of a weight", "correlation", box=box.SIMPLE)
    for row in rows:
        found = row.errors
        values = (found.true_log_ratio, found.log_ratio, found.weight, found.correlation)
        shown.add_row(row.name, *map(str, values))
    return shown


def settings(dtype: str) -> Table:
    """What gives a forward in `dtype`, by engine."""
    shown = Table("engine", f"for {dtype}", box=box.SIMPLE)
    for engine, flags in SETTINGS[dtype].items():
        shown.add_row(engine, flags)
    return shown
