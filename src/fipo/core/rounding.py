"""How far the rounding of a forward moves weights, expected from its precision. docs/precision.md measured the errors.

Rounding moves every log-ratio by chance, independently of the others, so the variances of a sum add up: future_kl's is
the sum of squares of its discounts, which is future_kl of a constant at half the half-life.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from fipo.core.credit import TokenCredit, future_kl, influence_weights
from fipo.params import FIPOParams

# Mean |error| of a log-ratio in nats, of SmolLM2-135M at temperature 1. "cast" rounds weights and the sums of layers
# (Megatron, FSDP, vLLM), "autocast" the factors of products alone (TRL); logits may be rounded too.
LOG_RATIO_ERRORS = {
    ("bfloat16", "cast", "rounded"): 0.044,
    ("bfloat16", "cast", "float32"): 0.030,
    ("bfloat16", "autocast", "float32"): 0.018,
    ("float16", "cast", "rounded"): 0.0055,
    ("float16", "cast", "float32"): 0.0038,
    ("float16", "autocast", "float32"): 0.0023,
}
NAMES = {"bf16": "bfloat16", "fp16": "float16"}
NORMAL = torch.special.ndtri((torch.arange(8.0) + 0.5) / 8).tolist()  # the middles of its eighths
LENGTH = 1024  # tokens of a response that nothing is known of


def log_ratio_error(dtype: str | torch.dtype, way: str, logits: str) -> float:
    """Of LOG_RATIO_ERRORS, 0 where the forward is float32. An engine may call the dtype bf16 or fp16."""
    name = str(dtype).removeprefix("torch.")
    return LOG_RATIO_ERRORS.get((NAMES.get(name, name), way, logits), 0.0)


@torch.no_grad()
def future_kl_errors(trained: Tensor, error: float, params: FIPOParams, cu_seqlens: Tensor | None = None) -> Tensor:
    """The expected |error| of future_kl at every token, like `trained`, (B, T) or packed (N,), where log-ratios are off
    by `error` on average."""
    of_squares = replace(params, decay_rate=params.decay_rate / 2, dual_clip_c=math.inf)
    return error * future_kl(trained.float(), trained, of_squares, cu_seqlens=cu_seqlens).sqrt()


@torch.no_grad()
def expected_weight_errors(
    credit: TokenCredit, advantages: Tensor, trained: Tensor, moved: Tensor, params: FIPOParams
) -> Tensor:
    """The expected |error| of FIPO's weight at every token, like `trained`, where future_kl is off by `moved`.

    It is 0 where every log-ratio is: before a rollout's first update π_θ rounds as π_old did. `advantages` are as for
    `influence_weights`, `moved` is of `future_kl_errors`.
    """
    shift = weight_shift(credit.future_kl, moved, credit.log_ratio, advantages, params)
    return torch.where(trained & (credit.log_ratio != 0).any(), shift, 0)


def expected_weight_error(error: float, params: FIPOParams) -> float:
    """The expected |error| of a weight while the policy has hardly moved, over a response of LENGTH tokens."""
    still = torch.zeros(1, LENGTH)
    moved = future_kl_errors(still == 0, error, params)
    return weight_shift(still, moved, still, torch.ones(1), params).mean().item()


def weight_shift(future: Tensor, moved: Tensor, log_ratio: Tensor, advantages: Tensor, params: FIPOParams) -> Tensor:
    """The mean |change| of the weight where future_kl is off by `moved` on average, in a normal distribution."""

    def weight(off: Tensor | float) -> Tensor:
        return influence_weights(future + off, log_ratio, advantages, params)

    here, spread = weight(0.0), math.sqrt(math.pi / 2) * moved
    total = torch.zeros_like(here)
    for z in NORMAL:
        total += (weight(z * spread) - here).abs()
    return total / len(NORMAL)
