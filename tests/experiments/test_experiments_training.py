"""The loop is GRPO where the weights are 1, repeats itself, and its sampler agrees with the forward pass."""

from dataclasses import replace

import pytest
import torch

from experiments import alignment, train
from experiments.model import new_model, response_logps, sample, target_logps
from experiments.protocol import ARMS, FIPO, GRPO, SETTINGS, SHUFFLED, Run
from experiments.task import END, PAD, encode

pytestmark = [pytest.mark.beside, pytest.mark.usefixtures("one_thread")]
TINY = replace(SETTINGS["short"], prompts=2, group=4, rollouts=2, eval_every=2, eval_problems=2, final_problems=2)


@pytest.fixture(autouse=True)
def untrained_start(monkeypatch):
    """A start without supervision, whose answers are rewarded at random: the loop gets advantages to work with."""
    monkeypatch.setattr(train, "supervised_start", lambda chain, seed: new_model(seed))
    monkeypatch.setattr(train, "reward", lambda problem, response, *, ended: float(len(response) % 2))


def test_sampled_logps_are_those_of_the_forward_pass():
    model = new_model(0)
    prompts = torch.tensor([encode("158+02*967="), encode("001+02*002=")])
    samples = sample(model, prompts, 40, torch.Generator().manual_seed(0), torch.float32)
    forward = response_logps(model, prompts, samples.ids, torch.float32)
    torch.testing.assert_close(samples.logps[samples.mask], forward[samples.mask], atol=1e-5, rtol=1e-5)
    assert (samples.ids[~samples.mask] == PAD).all()
    lengths = samples.mask.sum(-1)
    for row, length in zip(samples.ids.tolist(), lengths.tolist(), strict=True):
        assert END not in row[: length - 1] and (END in row or length == samples.ids.shape[1])


def test_group_advantages_are_zscores_within_groups():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    advantages = train.group_advantages(rewards, 4)
    torch.testing.assert_close(advantages[:4], torch.tensor([1.5, -0.5, -0.5, -0.5]), atol=1e-3, rtol=0)
    assert (advantages[4:] == 0).all()


def test_the_grpo_arm_is_plain_grpo():
    """Loss and gradient of a clipped surrogate that knows nothing of weights, where the log-ratios are large."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(6, 30, generator=generator)
    logps = (old + 0.5 * torch.randn(6, 30, generator=generator)).requires_grad_()
    advantages, mask = torch.randn(6, generator=generator), torch.rand(6, 30, generator=generator) < 0.8
    loss, out = train.policy_loss(Run(TINY, GRPO, 0), train.Batch(logps, old, advantages, mask), generator)
    assert not out.raw_weight.allclose(torch.ones(6, 30)), "the weights would matter here"

    ratio, gain = (logps - old).exp(), advantages[:, None]
    plain = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.28) * gain)[mask].mean()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(each, logps)[0] for each in (loss, plain)))


def test_a_run_is_determined_by_its_seed():
    timeless = [without_time(train.train(Run(TINY, SHUFFLED, seed))) for seed in (1, 1, 2)]
    assert timeless[0] == timeless[1] != timeless[2]


def test_arms_share_problems_and_first_rollout():
    """Arms differ in the weights alone, so they differ from the second update on, and never before."""
    first = [without_time(train.train(Run(TINY, arm, 5)))["rollouts"] for arm in ARMS]
    for other in first[1:]:
        assert other["reward"][0] == first[0]["reward"][0] and other["length"][0] == first[0]["length"][0]
    assert first[0]["grad_norm"] != first[1]["grad_norm"]
    assert max(arm["noise_floor"][0] for arm in first) < 1e-5


def test_bfloat16_rounds_the_log_probs_and_nothing_else():
    exact, rounded = (
        without_time(train.train(Run(TINY, arm, 4)))["rollouts"] for arm in (FIPO, replace(FIPO, name="b", bf16=True))
    )
    assert exact["entropy"][0] == rounded["entropy"][0], "the same responses"
    assert exact["log_ratio"][0] != rounded["log_ratio"][0]
    logits, ids = torch.randn(50, 30), torch.randint(30, (50,))
    error = (target_logps(logits, ids, torch.bfloat16) - target_logps(logits, ids, torch.float32)).abs()
    assert 1e-3 < error.mean() < 5e-2


def without_time(measured):
    return {
        table: {name: column for name, column in columns.items() if "seconds" not in name}
        for table, columns in measured.items()
    }


def test_angles_between_gradients(monkeypatch):
    """0 degrees where no weight leaves 1, more where weights do; and 90 between what has nothing in common."""
    monkeypatch.setattr(alignment, "SEEDS", range(1))
    monkeypatch.setattr(alignment, "ROLLOUTS", TINY.warmup_rollouts + 1)
    found = alignment.measure(replace(TINY, prompts=6))
    assert set(found) == {"fipo", "shuffled", "uniform", alignment.HALVES}
    between_halves = found.pop(alignment.HALVES)
    assert all(0 < angle < between_halves for angle in found.values())
    assert alignment.degrees(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == pytest.approx(90)
    assert alignment.degrees(torch.ones(2), torch.tensor([0.0, 2.0])) == pytest.approx(45)
