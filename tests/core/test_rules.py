"""Rules and controls change the weights as they say, and nothing else."""

import pytest
import torch

from fipo import FIPOParams, InvalidParameterError, token_credit
from fipo.core.credit import CREDIT_FIELDS
from fipo.core.rules import Weighting, response_orders

PARAMS = FIPOParams(dual_clip_c=1.5)
ROWS, LENGTH = 6, 40
REPLACED = {"weight", "factor", "at_low", "at_high", "safety_capped"}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(ROWS, LENGTH, generator=generator, dtype=torch.float64)
    new = old + 0.3 * torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([-1.0, 0.5, -0.2, 1.0, 0.0, -1.0], dtype=torch.float64)[:, None].expand(ROWS, LENGTH)
    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
    mask[0, 30:], mask[5] = False, False  # one ends earlier, one has nothing trained
    new[2, 3:9] = old[2, 3:9] + 1  # one is dropped
    return new, old, advantages, mask


def reweighed(batch, rule=None, control=None):
    """FIPO's credit, and what the weighting makes of it."""
    new, old, advantages, mask = batch
    credit = token_credit(*batch, PARAMS)
    columns = {"logps": new, "old_logps": old, "advantages": advantages, "loss_mask": mask, "entropy": None}
    weighting = Weighting.of(None, control) or Weighting()
    if rule is not None:
        weighting = Weighting("python:mine:rule", rule, control)
    return credit, weighting.of_rows(credit, columns, old)


def falling(logps, cu_seqlens, **_):
    """1 at a response's first token, 1 / n at its n-th."""
    start = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff())
    return 1 / (1 + torch.arange(len(logps), device=logps.device) - start)


def test_a_rule_replaces_the_weights_and_no_more(batch):
    credit, found = reweighed(batch, falling)
    mask, places = batch[3], torch.arange(1, LENGTH + 1)
    torch.testing.assert_close(found.weight, torch.where(mask, 1 / places, 1).double())
    assert credit.dropped.any() and not credit.dropped.all()
    assert torch.equal(found.factor, found.weight * credit.kept)
    for name in set(CREDIT_FIELDS) - REPLACED:
        assert torch.equal(getattr(found, name), getattr(credit, name))
    assert not (found.at_low | found.at_high | found.safety_capped).any()


def test_a_rule_sees_whole_responses_packed(batch):
    seen = {}
    reweighed(batch, lambda **known: seen.update(known) or torch.ones_like(known["logps"]))
    new, old, advantages, mask = batch
    lengths = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in mask]
    assert seen["cu_seqlens"].tolist() == torch.tensor([0, *lengths]).cumsum(0).tolist()
    for name, column in {"logps": new, "old_logps": old, "advantages": advantages, "loss_mask": mask}.items():
        assert torch.equal(seen[name], torch.cat([row[:n] for row, n in zip(column, lengths, strict=True)]))
    assert seen["entropy"] is None


def test_a_token_without_pi_old_has_a_log_ratio_of_0_for_a_rule(batch):
    batch[1][1, 2] = torch.nan
    batch[3][1, 2] = True
    _, found = reweighed(batch, lambda logps, old_logps, **_: (logps - old_logps).exp())
    assert found.weight.isfinite().all()
    assert found.factor[1, 2] == 0 and found.weight[1, 2] == 1


def raises(**_):
    raise ValueError("no\nentropy")


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (raises, "raised ValueError: no entropy; repair it"),
        (lambda **_: None, "returned a NoneType, but must return a tensor"),
        (lambda logps, **_: logps[:5], r"returned shape \(5,\) for"),
        (lambda logps, **_: logps * torch.nan, "returned the weight nan"),
        (lambda logps, **_: logps.abs() + torch.inf, "returned the weight inf"),
        (lambda logps, **_: -logps.abs() - 1, r"returned the weight -2\.08"),
    ],
)
def test_a_rule_that_fails_is_named(rule, problem, batch):
    with pytest.raises(InvalidParameterError, match=f"The rule python:mine:rule {problem}"):
        reweighed(batch, rule)


def test_a_rule_is_found_where_one_starts(tmp_path, monkeypatch):
    (tmp_path / "my_rule_file.py").write_text("def rule(logps, **_):\n    return logps * 0 + 1\n")
    monkeypatch.chdir(tmp_path)
    assert Weighting.of("python:my_rule_file:rule", "shuffle").name == "python:my_rule_file:rule, shuffle"
    with pytest.raises(InvalidParameterError, match=r"policy_loss\.rule is 'python:my_rule_file:roule', which cannot"):
        Weighting.of("python:my_rule_file:roule", None, "policy_loss.{}")


@pytest.mark.parametrize("rule", [None, falling])
def test_controls(batch, rule):
    """`none` is neutral, `shuffle` keeps each response's weights, `uniform` their mean."""
    plain, shuffled, uniform, none = (reweighed(batch, rule, name)[1] for name in (None, "shuffle", "uniform", "none"))
    assert (none.weight == 1).all() and not torch.equal(plain.weight, shuffled.weight)
    assert torch.equal(shuffled.factor, shuffled.weight * plain.kept)
    assert (shuffled.weight[~batch[3]] == 1).all()
    for trained, *weights in zip(batch[3], plain.weight, shuffled.weight, uniform.weight, strict=True):
        own, moved, mean = (weight[trained] for weight in weights)
        assert torch.equal(own.sort().values, moved.sort().values)
        assert not trained.any() or torch.allclose(mean, own.mean())


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
    for rule, control in ((None, "shuffle"), (falling, None)):
        assert reweighed(none, rule, control)[1].weight.shape == (0, LENGTH)
