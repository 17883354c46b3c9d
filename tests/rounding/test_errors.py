"""Errors of weights against numbers worked out another way."""

import pytest
import torch

from fipo import FIPOParams, token_credit
from fipo.rounding.errors import weight_errors

ROWS, LENGTH = 6, 9


@pytest.fixture
def case():
    torch.manual_seed(0)
    trained = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (ROWS, 1))
    old = -torch.rand(ROWS, LENGTH)
    true = old + 0.02 * torch.randn(ROWS, LENGTH)
    measured = true + 0.01 * torch.randn(ROWS, LENGTH)
    return (measured, old), (true, old), torch.randn(ROWS), trained


def test_means_are_of_responses(case):
    found = weight_errors(*case, FIPOParams())
    (measured, old), (true, _), advantages, trained = case
    weights = [token_credit(new, old, advantages, trained, FIPOParams()).weight for new in (measured, true)]
    means = torch.stack([(weights[0] - weights[1])[row][trained[row]].abs().mean() for row in range(ROWS)])
    assert found.weight.value == pytest.approx(means.mean().item())
    assert found.weight.error == pytest.approx(means.std().item() / ROWS**0.5)
    sides = [(weight > 1) != (other > 1) for weight, other in zip(*weights, strict=True)]
    wrong = torch.stack([side[row].double().mean() for side, row in zip(sides, trained, strict=True)]).mean()
    assert found.wrong_side.value == pytest.approx(wrong.item())


def test_the_correlation_is_pearsons_and_its_error_the_jackknifes(case):
    found = weight_errors(*case, FIPOParams()).correlation
    (measured, old), (true, _), advantages, trained = case
    weights = [token_credit(new, old, advantages, trained, FIPOParams()).weight for new in (measured, true)]

    def correlation(rows):
        return torch.corrcoef(torch.stack([weight[rows][trained[rows]].double() for weight in weights]))[0, 1]

    every = torch.arange(ROWS)
    without = torch.stack([correlation(every[every != row]) for row in range(ROWS)])
    assert found.value == pytest.approx(correlation(every).item())
    expected = ((ROWS - 1) / ROWS * (without - without.mean()).square().sum()).sqrt()
    assert found.error == pytest.approx(expected.item())


def test_without_rounding_there_is_no_error(case):
    found = weight_errors(case[1], case[1], *case[2:], FIPOParams())
    assert found.log_ratio.value == found.weight.value == found.wrong_side.value == 0
    assert found.correlation.value == pytest.approx(1)
