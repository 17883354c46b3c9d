"""What rounding is expected to do to weights, held to noise that is put on log-ratios."""

import math

import pytest
import torch

from fipo.core import token_credit
from fipo.core.rounding import expected_weight_error, expected_weight_errors, future_kl_errors, log_ratio_error
from fipo.params import FIPOParams

ERROR = 0.02


@pytest.mark.parametrize("distance", ["position", "trained"])
@pytest.mark.parametrize("half_life", [4.0, 32.0, math.inf])
def test_expected_errors_are_those_of_noise(half_life, distance):
    params = FIPOParams(decay_rate=half_life, distance=distance)
    random = torch.Generator().manual_seed(0)
    shape = 16, 200
    old, drift = torch.zeros(shape), 0.02 * torch.randn(shape, generator=random)
    advantages, trained = torch.ones(16), torch.rand(shape, generator=random) > 0.2
    exact = token_credit(drift, old, advantages, trained, params)
    found = []
    for _ in range(50):
        noise = ERROR * math.sqrt(math.pi / 2) * torch.randn(shape, generator=random)  # so that E|noise| is ERROR
        off = token_credit(drift + noise, old, advantages, trained, params).weight - exact.weight
        found.append(off[trained].abs().mean())
    expected = expected_weight_errors(exact, advantages, trained, future_kl_errors(trained, ERROR, params), params)
    assert (expected[~trained] == 0).all()
    assert expected[trained].mean().item() == pytest.approx(torch.stack(found).mean().item(), rel=0.12)


def test_packed_sequences_have_the_errors_of_padded_ones():
    drift, trained = 0.02 * torch.randn(2, 30), torch.ones(2, 30, dtype=torch.bool)
    trained[1, 20:] = False
    params, advantages = FIPOParams(), torch.tensor([1.0, -1.0])
    padded = token_credit(drift, torch.zeros_like(drift), advantages, trained, params)
    expected = expected_weight_errors(padded, advantages, trained, future_kl_errors(trained, ERROR, params), params)[
        trained
    ]
    flat, each, cu_seqlens = drift[trained], advantages.repeat_interleave(trained.sum(-1)), torch.tensor([0, 30, 50])
    packed = token_credit(flat, torch.zeros(50), each, flat == flat, params, cu_seqlens=cu_seqlens)
    moved = future_kl_errors(flat == flat, ERROR, params, cu_seqlens)
    found = expected_weight_errors(packed, each, flat == flat, moved, params)
    torch.testing.assert_close(found, expected)


def test_equal_policies_and_float32_have_no_errors():
    params, trained = FIPOParams(), torch.ones(2, 9, dtype=torch.bool)
    for log_ratio, error in ((0.0, ERROR), (0.1, log_ratio_error("fp32", "cast", "rounded"))):
        logps = torch.full((2, 9), log_ratio)
        credit = token_credit(logps, torch.zeros(2, 9), torch.ones(2), trained, params)
        assert not expected_weight_errors(
            credit, torch.ones(2), trained, future_kl_errors(trained, error, params), params
        ).any()


def test_a_still_policy_has_the_errors_that_were_measured():
    """docs/precision.md, 64 responses of SmolLM2-135M at a learning rate of 3e-6: 0.138, 0.122, 0.084, 0.027, 0.020."""
    params = FIPOParams()
    for name, measured in {
        ("bf16", "cast", "rounded"): 0.138,
        ("bf16", "cast", "float32"): 0.122,
        ("bf16", "autocast", "float32"): 0.084,
        ("fp16", "cast", "rounded"): 0.027,
        ("fp16", "cast", "float32"): 0.020,
        ("fp16", "autocast", "float32"): 0.012,
    }.items():
        assert expected_weight_error(log_ratio_error(*name), params) == pytest.approx(measured, rel=0.2)
