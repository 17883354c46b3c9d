"""Time of Future-KL against T, beside the O(T²) chunked product of slime's pull request 1801 and one memory copy.

    python benchmarks/future_kl.py            # the table of README.md; minutes on two cores
    python benchmarks/future_kl.py --quick    # without the long quadratic runs

Every figure is the median of repeated calls in one process. The fast form is compared with the quadratic one first;
no time is reported for a wrong result.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fipo import FIPOParams, future_kl

PARAMS = FIPOParams()
QUADRATIC_LIMIT = 2**16  # beyond this the baseline takes minutes a call


def quadratic_future_kl(log_ratio: Tensor, mask: Tensor, chunk: int = 128) -> Tensor:
    """The pull request's formula: for a chunk of positions at a time, a (T, chunk) matrix γ^(k−t) over all k ≥ t."""
    length = log_ratio.shape[1]
    gamma = 2.0 ** (-1.0 / PARAMS.decay_rate)
    summands = torch.where(mask & (log_ratio.exp() <= PARAMS.dual_clip_c), log_ratio, 0)
    position = torch.arange(length)
    result = torch.empty_like(summands)
    for start in range(0, length, chunk):
        distance = position[:, None] - position[None, start : start + chunk]
        powers = torch.where(distance >= 0, gamma ** distance.clamp(min=0).to(summands.dtype), 0)
        result[:, start : start + chunk] = summands @ powers
    return result


def median_seconds(call: Callable[[], object], budget: float = 3.0) -> float:
    times: list[float] = []
    call()
    while (sum(times) < budget and len(times) < 200) or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def verify() -> None:
    generator = torch.Generator().manual_seed(0)
    log_ratio = 0.1 * torch.randn(3, 1111, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 1111, generator=generator) < 0.9
    torch.testing.assert_close(future_kl(log_ratio, mask, PARAMS), quadratic_future_kl(log_ratio, mask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="skip the quadratic baseline above 8192 tokens")
    quick = parser.parse_args().quick
    verify()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, medians")
    print(f"{'B × T':>14} {'fipo ms':>10} {'copy ms':>10} {'÷ copy':>8} {'pr1801 ms':>12} {'times faster':>13}")
    for rows, length in [(1, 2**10), (1, 10**4), (1, 10**5), (1, 10**6), (8, 2**12), (8, 2**13), (8, 2**15)]:
        log_ratio, mask = 0.01 * torch.randn(rows, length), torch.ones(rows, length, dtype=torch.bool)
        target = torch.empty_like(log_ratio)
        ours = median_seconds(lambda x=log_ratio, m=mask: future_kl(x, m, PARAMS))
        copy = median_seconds(lambda x=log_ratio, y=target: y.copy_(x), budget=0.5)
        line = f"{f'{rows} × {length}':>14} {ours * 1e3:>10.3f} {copy * 1e3:>10.4f} {ours / copy:>8.1f}"
        if length <= (2**13 if quick else QUADRATIC_LIMIT):
            peer = median_seconds(lambda x=log_ratio, m=mask: quadratic_future_kl(x, m))
            line += f" {peer * 1e3:>12.1f} {peer / ours:>13,.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
