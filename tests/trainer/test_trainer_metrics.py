"""Metrics are means over all tokens, however the batch was cut into micro-batches."""

import pytest
import torch
from accelerate import Accelerator

from fipo import FIPOParams, token_credit
from fipo.trainer import Credit
from fipo.trainer.metrics import CreditMetrics


def batch(rows=6, length=20):
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(rows, length, generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.7
    mask[0] = False
    advantages = torch.randn(rows, generator=generator)
    return new, 0.7 * new, advantages, mask


def add(metrics, new, old, advantages, mask, update):
    tokens = token_credit(new, old, advantages, mask, FIPOParams(safety_thresh=1.0, dual_clip_c=1.5))
    metrics.add(Credit(tokens, new, new, {"advantages": advantages}, mask, True, 0, 0, update))
    return tokens


def test_equal_to_direct_means_for_any_split():
    tensors = batch()
    *_, advantages, mask = tensors
    whole, parts = CreditMetrics(2), CreditMetrics(2)
    out = add(whole, *tensors, update=1)
    for row in range(6):
        add(parts, *(tensor[row : row + 1] for tensor in tensors), update=1)
    whole, parts = whole.reduce(Accelerator(cpu=True)), parts.reduce(Accelerator(cpu=True))
    assert parts == pytest.approx(whole, rel=1e-6)

    weight, lengths = out.weight[mask].double(), mask.sum(-1)
    rows = [out.weight[row][mask[row]] for row in range(1, 6)]  # one row has no token
    expected = {
        "weight_mean": weight.mean(),
        "weight_std": weight.std(correction=0),
        "weight_min": sum(row.min() for row in rows) / 5,
        "weight_max": sum(row.max() for row in rows) / 5,
        "participation": out.participates[mask].double().mean(),
        "dropped_sequences": out.dropped.sum() / 5,
        "length_weighted_advantage": (advantages * lengths).sum() / lengths.sum(),
    }
    for name, value in expected.items():
        assert whole[f"fipo/{name}"] == pytest.approx(value.item(), rel=1e-5 if "length" in name else 1e-6), name


def test_updates_are_kept_apart_and_noise_is_measured_at_the_first():
    new, old, advantages, mask = batch()
    metrics = CreditMetrics(4)
    add(metrics, *(tensor[:, :0] for tensor in (new, old)), advantages, mask[:, :0], update=1)  # adds nothing
    add(metrics, new, new + 0.001, advantages, mask, update=0)
    add(metrics, new, old, advantages, mask, update=3)
    reduced = metrics.reduce(Accelerator(cpu=True))
    assert reduced["fipo/noise_floor"] == pytest.approx(0.001, rel=1e-3)
    assert reduced["fipo/update_0/weight_std"] < 0.02 < reduced["fipo/update_3/weight_std"]
    assert not any(name.startswith(("fipo/update_1", "fipo/update_2")) for name in reduced)
    assert metrics.reduce(Accelerator(cpu=True)) == {}
