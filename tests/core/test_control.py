"""Controls change the weights as they say, and the loss as if it had been computed with them."""

import pytest
import torch

from fipo import FIPOParams, fipo_loss
from fipo.core.control import control_weights, response_orders


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(6, 40, generator=generator, dtype=torch.float64)
    new = (old + 0.3 * torch.randn(6, 40, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    return new, old, advantages, torch.rand(6, 40, generator=generator) < 0.8


def controlled(batch, control, params=FIPOParams(dual_clip_c=1.5)):  # noqa: B008 - frozen
    out = fipo_loss(*batch, params)
    return out, control_weights(out, batch[3], control, response_orders(batch[1]))


def test_none_is_the_loss_with_neutral_weights(batch):
    _, out = controlled(batch, "none")
    neutral = fipo_loss(*batch, FIPOParams(dual_clip_c=1.5, clip_ratio_low=0.0, clip_ratio_high=0.0))
    torch.testing.assert_close(out.loss, neutral.loss)
    gradients = [torch.autograd.grad(each.loss.sum(), batch[0])[0] for each in (out, neutral)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(out.dropped, neutral.dropped)


def test_shuffle_keeps_each_responses_weights(batch):
    plain, out = controlled(batch, "shuffle")
    mask = batch[3]
    assert not torch.equal(plain.weight, out.weight)
    for row in range(6):
        trained = mask[row]
        assert torch.equal(plain.weight[row][trained].sort().values, out.weight[row][trained].sort().values)
        assert (out.weight[row][~trained] == 1).all()
    torch.testing.assert_close(out.loss / out.weight, plain.loss / plain.weight)


def test_a_responses_order_is_its_own_and_stays(batch):
    def orders(rows):
        return [torch.randperm(40, generator=generator).tolist() for generator in response_orders(rows)]

    ids = torch.arange(80).view(2, 40)
    first = orders(ids)
    assert first[0] != first[1]
    assert orders(ids.flip(0)) == first[::-1] and orders([ids[1].clone()]) == first[1:]
    assert orders(ids.t().contiguous().t()) == first
    assert len(orders(ids.bfloat16())) == 2


def test_a_batch_without_responses(batch):
    none = [column[:0] for column in batch]
    assert control_weights(fipo_loss(*none, FIPOParams()), none[3], "shuffle", []).weight.shape == (0, 40)


def test_uniform_keeps_each_responses_mean(batch):
    plain, out = controlled(batch, "uniform")
    for row in range(6):
        trained = batch[3][row]
        assert torch.allclose(out.weight[row][trained], plain.weight[row][trained].mean())
