"""The measured truth is right where it can be computed, and the measures say what they should where it is known."""

import random
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from experiments.model import new_model, sample
from experiments.protocol import SETTINGS
from experiments.task import END, SHORT, encode, sample_problem
from experiments.train import group_advantages
from experiments.truth import replay, study, values
from experiments.truth.last_layer import delta
from experiments.truth.measures import chance, gradient_measures, is_decided, of_response, rank
from experiments.truth.signals import DEFAULT, DELTA, LIKENESS, RAW, SIGNALS, View, past
from fipo import future_kl
from fipo.traces import read_traces

pytestmark = pytest.mark.beside

SETTING = replace(SETTINGS["short"], prompts=8, group=4)
REPLAYED = 24  # of 32 responses, so that updates 2 to 7 train on them


def responses(model, count, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    problems = [sample_problem(SHORT, random.Random(seed + n), held_out=False) for n in range(count)]
    prompts = torch.tensor([encode(problem.prompt) for problem in problems])
    found = sample(model, prompts, tokens, generator, torch.float32)
    kept = found.mask.sum(-1).tolist()
    return [
        values.Response(problem, ids[:n].tolist(), logps[:n], 0.0)
        for problem, ids, logps, n in zip(problems, found.ids, found.logps, kept, strict=True)
    ]


def test_values_are_the_policys_own_probabilities(monkeypatch):
    """A reward that the third token decides: before it V is a sum of probabilities, behind it 0 or 1."""
    model = new_model(3)
    monkeypatch.setattr(values, "decode", list)
    monkeypatch.setattr(values, "reward", lambda problem, ids, ended: float(ids[2] % 2 == 0))
    asked = [one for one in responses(model, 12, 6) if len(one.ids) >= 4]
    asked = [replace(one, reward=float(one.ids[2] % 2 == 0)) for one in asked[:6]]
    assert len(asked) == 6
    for one, found in zip(asked, values.measure(model, asked, 0.03, 6, torch.Generator().manual_seed(1)), strict=True):
        for t in range(3):
            exact = third_is_even(model, encode(one.problem.prompt), one.ids[:t])
            assert abs(float(found.value[t]) - exact) < 4.5 * float(found.error[t])
        assert found.value[3:].tolist() == [one.reward] * (len(one.ids) - 2)
        assert 0 < float(found.error[:3].max()) <= 0.03
        assert float(found.advantage.sum()) == pytest.approx(one.reward - float(found.value[0]), abs=1e-6)
        assert (found.drawn <= found.samples).all() and found.samples[0] == found.drawn[0] >= values.ROUND


@torch.no_grad()
def third_is_even(model, prompt, ids):
    """The probability of it after these first ids; what comes after the end is 0."""
    probability, prefixes = torch.ones(1), torch.tensor([ids], dtype=torch.long)
    while True:
        going = ~(prefixes == END).any(-1)
        shown = torch.cat([torch.tensor([prompt]).expand(len(prefixes), -1), prefixes], 1)
        following = model(shown).logits[:, -1].softmax(-1)
        following[~going] = torch.eye(following.shape[1])[0]
        if prefixes.shape[1] == 2:
            return float((probability[:, None] * following)[:, ::2].sum())
        probability = (probability[:, None] * following).flatten()
        tokens = torch.arange(following.shape[1]).repeat(len(prefixes))
        prefixes = torch.cat([prefixes.repeat_interleave(following.shape[1], 0), tokens[:, None]], 1)


def test_a_continuation_counts_wherever_it_goes_on_as_a_response_does():
    """Two responses that part at their third token: what is sampled once serves both, until the wrong one parts."""
    right, wrong, uncertain = [5, 6, 7, 8], [5, 6, 9, 9], torch.full((4,), -0.5)
    given = (("prompt", right, 1.0), ("prompt", wrong, 0.0), ("other", right, 1.0))
    asked = [values.Response(prompt, ids, uncertain, reward) for prompt, ids, reward in given]
    calls = []

    def continued(places):
        """Every eighth leaves the first response at its last token, and is wrong; to `other` none is right."""
        calls.extend(places)
        for row, t in places:
            start = asked[row].ids[:t]
            leaves, goes_on = ((*start, *[5, 6, 7, last][t:]) for last in (0, 8))
            yield [
                values.Continuation(goes_on if k % 8 else leaves, row != 2 and bool(k % 8)) for k in range(values.ROUND)
            ]

    first, second, third = values.measure_with(lambda places: list(continued(places)), asked, 0.1)
    assert calls == [(0, 0), (2, 0), (1, 3)]
    assert first.drawn.tolist() == [32, 0, 0, 0, 0] and first.samples.tolist() == [32, 32, 32, 32, 0]
    assert second.drawn.tolist() == [0, 0, 0, 32, 0] and second.samples.tolist() == [32, 32, 32, 32, 0]
    assert first.value.tolist() == [0.875] * 4 + [1] and second.value.tolist() == [0.875] * 4 + [0]
    assert third.value.tolist() == [0, 0, 0, 0, 1]
    assert first.error[:4].tolist() == pytest.approx([values.standard_error(28, 32)] * 4)


def test_what_is_not_sampled_is_within_the_bound():
    generator = torch.Generator().manual_seed(0)
    logps = -(torch.rand(200, generator=generator) ** 8)
    anchors = set(values.anchors_of(logps))
    assert 0 < len(anchors) < 200
    slack = 0.0
    for t in reversed(range(200)):
        slack = 0.0 if t in anchors else slack + 1 - float(logps[t].exp())
        assert slack <= values.SHARED
    assert values.anchors_of(torch.zeros(50)) == []  # certain tokens cost nothing


def test_the_measured_come_last_and_from_groups_with_both_rewards():
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    order, last = replay.in_order(rewards, 4, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(16)) and last == 4
    measured = order[-last:]
    assert set((measured // 4).tolist()) == {0, 2}
    assert sorted(rewards.flatten()[measured].tolist()) == [0, 0, 1, 1]
    assert replay.in_order(rewards, 99, torch.Generator())[1] == 8


@pytest.fixture(scope="module")
def rollout():
    """Of a model without training, with rewards that the toss of a coin gave."""
    model, generator = new_model(0), torch.Generator().manual_seed(0)
    problems = [sample_problem(SHORT, random.Random(n // 4), held_out=False) for n in range(32)]
    prompts = torch.tensor([encode(problem.prompt) for problem in problems])
    samples = sample(model, prompts, 12, generator, torch.float32)
    rewards = torch.randint(0, 2, (32,), generator=generator).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    advantages, groups = group_advantages(rewards, 4), 7 - torch.arange(32) // 4
    measured = torch.arange(32 - REPLAYED, 32)
    return replay.Rollout(SETTING, model, optimizer, problems, prompts, samples, rewards, advantages, groups, measured)


def test_a_replay_shows_what_is_not_yet_trained_on(rollout):
    before = [parameter.clone() for parameter in rollout.model.parameters()]
    seen = {sight.update: (sight.rows, sight.log_ratio) for sight in replay.replay(rollout, 1e-3)}
    assert list(seen) == list(range(8))
    assert seen[0][1].abs().max() < 1e-5
    assert seen[2][1][rollout.samples.mask[seen[2][0]]].abs().max() > 1e-3
    assert [len(rows) for rows, _ in seen.values()] == [24, 24, 24, 20, 16, 12, 8, 4]
    again = {sight.update: sight.log_ratio for sight in replay.replay(rollout, 1e-3)}
    assert all(torch.equal(again[update], log_ratio) for update, (_, log_ratio) in seen.items())
    assert all(torch.equal(a, b) for a, b in zip(before, rollout.model.parameters(), strict=True))


def test_likeness_is_that_of_the_last_layers_gradients(rollout):
    """Against autograd: the gradient of a token's log-prob for the head alone."""
    found = study._of_model(rollout)[LIKENESS]
    hidden = rollout.model.model(torch.cat([rollout.prompts, rollout.samples.ids], 1)[:, :-1]).last_hidden_state
    hidden = hidden[:, -rollout.samples.ids.shape[1] :].detach()
    weight = rollout.model.lm_head.weight.detach().clone().requires_grad_()
    gradients = {}
    for row in range(32):
        for t in range(int(rollout.samples.mask[row].sum())):
            logp = (hidden[row, t] @ weight.t()).log_softmax(-1)[rollout.samples.ids[row, t]]
            gradients[row, t] = torch.autograd.grad(logp, weight)[0].flatten()
    sides = [
        sum(g * float((sign * rollout.advantages[row]).clamp(min=0)) for (row, _), g in gradients.items())
        for sign in (1, -1)
    ]
    for at in list(gradients)[::7]:
        right, wrong = (torch.nn.functional.cosine_similarity(gradients[at], side, dim=0) for side in sides)
        assert float(found[at]) == pytest.approx(float(right - wrong), abs=1e-4)


def test_delta_by_its_distances():
    """From squared distances of tokens to the centroids, as DelTA's authors compute it."""
    generator = torch.Generator().manual_seed(0)
    hidden, logps = torch.randn(6, 9, 5, generator=generator), -torch.rand(6, 9, generator=generator)
    advantages = torch.tensor([1.5, -0.5, 0.0, 0.7, -2.0, 0.3])
    mask = torch.arange(9) < torch.tensor([9, 4, 6, 1, 8, 7])[:, None]
    proxy = ((1 - logps.exp())[..., None] * hidden)[mask].double().numpy()
    gain = advantages[:, None].expand(6, 9)[mask].double().numpy()
    sides = {side: np.sign(gain) == side for side in (1, -1)}
    belonging, scale = (gain != 0).astype(float), {}
    for _ in range(2):
        centroid = {
            side: np.average(proxy[own], axis=0, weights=(belonging * abs(gain))[own]) for side, own in sides.items()
        }
        for side, own in sides.items():
            away, near = (((proxy[own] - centroid[end]) ** 2).sum(-1) for end in (-side, side))
            scale.setdefault(side, np.std(away - near))  # that of the first centroids
            belonging[own] = 1 / (1 + np.exp(-(away - near) / scale[side]))
    weight = 0.8 + 0.4 * belonging
    found = delta(hidden, logps, advantages, mask)
    np.testing.assert_allclose(found[mask], weight / weight.mean(), atol=1e-5, rtol=0)
    assert not found[~mask].any()


def view(truth, log_ratio, advantage):
    order = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    mask, advantages = torch.ones_like(truth).bool(), torch.full(truth.shape[:1], advantage)
    return View(log_ratio, mask, advantages, order, torch.arange(truth.numel()).view(truth.shape), truth, {})


@pytest.mark.parametrize("right", [True, False])
def test_the_prediction_holds_where_the_log_ratio_is_the_truth(right):
    """What docs/credit_truth.md derives: future_kl telescopes, and the mistake gets less blame than what follows."""
    truth = torch.zeros(1, 20)
    truth[0, 12] = 0.6 if right else -0.6
    left = torch.where(torch.arange(20) <= 12, truth[0, 12], 0.0)  # R − V(y<t)
    seen = view(truth, 0.2 * truth, 1.0 if right else -1.0)
    torch.testing.assert_close(RAW["future-KL, half-life inf"](seen)[0], 0.2 * left)
    fipo = SIGNALS["FIPO"](seen)[0]
    behind = fipo[13:].abs().max()
    assert fipo[12].abs() > behind if right else fipo[12].abs() < behind
    for name in ("FIPO", "own log-ratio"):
        assert (rank(SIGNALS[name](seen)[0], truth[0]) > 0) is right
    assert rank(SIGNALS["FIPO, signed"](seen)[0], truth[0]) > 0.2
    assert rank(SIGNALS["own log-ratio, signed"](seen)[0], truth[0]) > 0.99


def test_signals_in_closed_form():
    truth = torch.zeros(2, 30)
    log_ratio = 0.05 * torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    seen = view(truth, log_ratio, 2.0)
    assert torch.equal(SIGNALS["uniform (GRPO)"](seen), torch.full((2, 30), 2.0))
    back = future_kl(log_ratio.flip(-1), seen.mask, DEFAULT).flip(-1)
    torch.testing.assert_close(past(seen), 2 * back.exp().clamp(0.8, 1.2))


def test_measures_where_the_answer_is_known():
    truth = torch.zeros(10)
    truth[4], truth[7] = -0.7, 0.1
    assert is_decided(truth) and not is_decided(truth / 10)
    assert chance(truth) == 0.1
    exact, flat = of_response(truth, truth), of_response(torch.ones(10), truth)
    assert exact == {"rank correlation": pytest.approx(1), "share": pytest.approx(0.875), "AUC": 1.0}
    assert flat == {"rank correlation": 0.0, "share": pytest.approx(0.1), "AUC": 0.5}
    assert rank(-truth, truth) == pytest.approx(-1)


def test_signal_to_noise_is_that_of_the_gradients():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1000, generator=generator)
    gradients = mean + 2 * torch.randn(400, 1000, generator=generator)
    assert gradient_measures(gradients)["signal-to-noise"] == pytest.approx(float(mean.square().mean()) / 4, rel=0.02)
    assert abs(gradient_measures(gradients - mean)["signal-to-noise"]) < 0.01


def test_a_unit_leaves_traces_measures_and_facts(tmp_path, monkeypatch, rollout):
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "rollouts", lambda *_: [(1, replace(rollout, measured=torch.arange(24, 32)))])
    monkeypatch.setattr(values, "reward", lambda problem, text, ended: float(len(text) % 2))
    monkeypatch.setattr(values, "ROUND", 2)
    unit = study.Unit("short", 0, 1, 0.5)
    assert not unit.done
    study.run(unit)
    assert unit.done
    found = read_traces(unit.file("traces.parquet"))
    assert not found.problems and len(found) == 8 and {trace.update for trace in found} == {study.SHOWN_UPDATE}
    assert all(trace.true_advantage is not None for trace in found)
    assert max(float(np.abs(trace.true_advantage).max()) for trace in found) > 0.1
    measured = pq.read_table(unit.file("measures.parquet")).to_pylist()
    assert {row["signal"] for row in measured} >= {"FIPO", LIKENESS, DELTA, "truth"}

    monkeypatch.setattr(study, "measure", None)
    facts = unit.facts
    study.run(unit)  # the signals again, of the truth that the traces keep
    assert unit.facts == facts and pq.read_table(unit.file("measures.parquet")).to_pylist() == measured
    assert not replace(unit, error=facts["largest standard error"] / 2).done
