"""What measured errors mean, and what to set in an engine."""

from dataclasses import dataclass

from rich import box
from rich.table import Table

from fipo.core.logged import NOISE_LIMIT
from fipo.rounding.errors import WeightErrors

SIGNAL = 0.9  # weights that correlate with the true ones by as much say what the update did
STILL = 0.01  # true weights that differ from 1 by less make FIPO GRPO in any precision

# What sets the precision of the forward; from slime 624b824a, verl 0.9.1 and prime-rl 0081765e.
MEGATRON = "actor_rollout_ref.actor.megatron.dtype=float16 actor_rollout_ref.rollout.dtype=float16"
BFLOAT16_ALONE = "nothing (it computes in bfloat16)"
SETTINGS = {
    "float16": {
        "fipo train": "--dtype float32 --fp16 true",
        "slime": "--fp16",
        "verl, FSDP": "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=float16 "
        "actor_rollout_ref.rollout.dtype=float16",
        "verl, Megatron": MEGATRON,
        "prime-rl": BFLOAT16_ALONE,
    },
    "float32": {
        "fipo train": "--dtype float32 --bf16 false --fp16 false",
        "slime": "--fp16 (it has no float32)",
        "verl, FSDP": "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=float32",
        "verl, Megatron": f"{MEGATRON} (it has no float32)",
        "prime-rl": BFLOAT16_ALONE,
    },
}


@dataclass(frozen=True)
class Row:
    """One way to compute log-probs."""

    name: str
    dtype: str
    errors: WeightErrors

    @property
    def is_noise(self) -> bool:
        """Whether rounding moves weights by more than may pass, and hides what the update did to them."""
        correlated = self.errors.correlation.value >= SIGNAL  # not where it is NaN, of weights that are all alike
        return self.errors.weight.value > NOISE_LIMIT and not correlated

    def __str__(self) -> str:
        found = self.errors
        return f"{self.name} is off by {_percent(found.weight.value)} (correlation {found.correlation.value:.2f})"


def verdict(rows: list[Row]) -> str:
    """One sentence about all rows."""
    noise, kept = [row for row in rows if row.is_noise], [row for row in rows if not row.is_noise]
    moved = max(row.errors.true_weight.value for row in rows)
    still = f"; these updates move weights by {_percent(moved)}, so FIPO is almost GRPO anyway" * (moved < STILL)
    if not noise:
        return f"Rounding leaves the weights what they are in every precision that was measured{still}."
    worst = max(noise, key=lambda row: row.errors.weight.value)
    said = f"Rounding hides what updates do to weights: {worst}"
    if kept:
        return f"{said}, {min(kept, key=_cheapness)}{still}."
    return f"{said}, and the best that was measured, {min(rows, key=_error)}: measure float32 too{still}."


def best_dtype(rows: list[Row]) -> str:
    """What to set: float16 where one of its forwards keeps the weights, or nothing else was measured, else float32."""
    kept = [row.dtype for row in rows if not row.is_noise and row.dtype != "bfloat16"]
    return min(kept, default="float16")


def _cheapness(row: Row) -> tuple[bool, float]:
    return row.dtype == "float32", _error(row)


def _error(row: Row) -> float:
    return row.errors.weight.value


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def table(rows: list[Row]) -> Table:
    """Of means over responses: what updates did to |log-ratio| and |weight − 1|, and how far rounding moves both."""
    shown = Table("forward", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("log-ratio", "rounding", "weight", "rounding", "correlation"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found = row.errors
        few = (found.true_log_ratio, found.log_ratio, found.true_weight)
        values = [f"{estimate.value:.2g}" for estimate in few] + [
            str(found.weight),
            f"{found.correlation.value:.2f}±{found.correlation.error:.1g}",
        ]
        shown.add_row(row.name, *values)
    return shown


def settings(dtype: str) -> str:
    """What gives a forward in `dtype`, a line an engine."""
    return "\n".join([f"For {dtype}:", *(f"  {engine}: {flags}" for engine, flags in SETTINGS[dtype].items())])
