"""Time of Future-KL against T, beside the O(T²) chunked product of slime's pull request 1801 and one memory copy.

    python -m benchmarks.future_kl         # a minute on two cores

Every figure is the median of repeated calls in one process. The fast form is compared with the quadratic one first;
no time is reported for a wrong result.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from fipo import FIPOParams, future_kl

PARAMS = FIPOParams()
SHAPES = ((1, 2**10), (1, 10**4), (1, 10**5), (1, 10**6), (8, 2**12), (8, 2**13), (8, 2**15))
QUADRATIC_LIMIT = 2**16  # beyond this the baseline takes minutes a call


def quadratic_future_kl(log_ratio: Tensor, mask: Tensor, chunk: int = 128) -> Tensor:
    """The pull request's formula: for a chunk of positions at a time, a (T, chunk) matrix γ^(k−t) over all k ≥ t."""
    length = log_ratio.shape[1]
    gamma = 2.0 ** (-1.0 / PARAMS.decay_rate)
    summands = torch.where(mask & (log_ratio.exp() <= PARAMS.dual_clip_c), log_ratio, 0)
    position = torch.arange(length, device=log_ratio.device)
    result = torch.empty_like(summands)
    for start in range(0, length, chunk):
        distance = position[:, None] - position[None, start : start + chunk]
        powers = torch.where(distance >= 0, gamma ** distance.clamp(min=0).to(summands.dtype), 0)
        result[:, start : start + chunk] = summands @ powers
    return result


def verify(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    log_ratio = (0.1 * torch.randn(3, 1111, generator=generator, dtype=torch.float64)).to(device)
    mask = (torch.rand(3, 1111, generator=generator) < 0.9).to(device)
    torch.testing.assert_close(future_kl(log_ratio, mask, PARAMS), quadratic_future_kl(log_ratio, mask))


def everything(shapes: tuple[tuple[int, int], ...] = SHAPES, device: str = "cpu") -> list[dict[str, Any]]:
    verify(device)
    rows = []
    print(f"{'B × T':>14} {'fipo ms':>10} {'copy ms':>10} {'÷ copy':>8} {'pr1801 ms':>12} {'times faster':>13}")
    for batch, length in shapes:
        log_ratio = 0.01 * torch.randn(batch, length, device=device)
        mask = torch.ones(batch, length, dtype=torch.bool, device=device)
        target = torch.empty_like(log_ratio)
        ours = median(lambda x=log_ratio, m=mask: future_kl(x, m, PARAMS), device)
        copy = median(lambda x=log_ratio, y=target: y.copy_(x), device)
        row = {"shape": f"{batch} × {length}", "fipo_ms": ours, "copy_ms": copy, "times_copy": ours / copy}
        line = f"{row['shape']:>14} {ours:>10.3f} {copy:>10.4f} {ours / copy:>8.1f}"
        if length <= QUADRATIC_LIMIT:
            peer = median(lambda x=log_ratio, m=mask: quadratic_future_kl(x, m), device)
            row |= {"pr1801_ms": peer, "times_faster": peer / ours}
            line += f" {peer:>12.1f} {peer / ours:>13,.0f}"
        rows.append(row)
        print(line, flush=True)
    return rows


def median(call: Callable[[], object], device: str) -> float:
    """Milliseconds."""
    return measure.summary(measure.seconds(call, repeats=200, budget=2.0, device=device))["median_s"] * 1e3


if __name__ == "__main__":
    everything()
