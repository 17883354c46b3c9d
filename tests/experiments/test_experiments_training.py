"""The loop is GRPO where the weights are 1, repeats itself, and its sampler agrees with the forward pass."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from experiments import alignment, smollm2, start, train
from experiments.model import new_model, response_logps, sample, target_logps
from experiments.protocol import ARMS, FIPO, GRPO, SETTINGS, SHUFFLED, SMOLLM2, Run
from experiments.task import END, PAD, SHORT, VOCABULARY, Chain, encode, sample_problem

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


def test_a_start_is_made_once_and_gets_as_much_right_as_it_promises(tmp_path, monkeypatch):
    """With a target that an untrained model reaches at once: what counts is the cache, and the share's meaning."""
    reached = {"BASE_TARGET": 0.0, "SEED_TARGET": 0.0, "ALLOWED": (0.0, 1.0), "WINDOW": 1, "BATCH_TOKENS": 64}
    for name, value in reached.items():
        monkeypatch.setattr(start, name, value)
    first = start.supervised_start(SHORT, 0, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["short_0.safetensors", "short_base.safetensors"]
    monkeypatch.setattr(start, "teach", None)  # would fail if it were made again
    for name, value in start.supervised_start(SHORT, 0, tmp_path).state_dict().items():
        assert torch.equal(value, first.state_dict()[name])


def test_teaching_raises_the_share_of_right_solutions(monkeypatch):
    monkeypatch.setattr(start, "BATCH_TOKENS", 256)
    model, chain, losses = new_model(0), Chain("tiny", lines=1), []
    asked = [sample_problem(chain, random.Random(1), held_out=False)]
    for step, _ in zip(range(31), start.teach(model, chain, random.Random(0), 1e-3), strict=False):
        if step % 15 == 0:
            with torch.no_grad():
                losses.append(-float(start.solution_logps(model, asked).mean()))
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.1) and losses[2] < losses[1] < losses[0]
    assert start.shares(torch.log(torch.tensor([[0.5, 0.5], [1.0, 0.1]]))).tolist() == pytest.approx([0.25, 0.1])


def test_metrics_of_the_real_setting_become_rows_of_rollouts(tmp_path):
    """Two rollouts of eight updates; the first record of a rollout alone carries the noise floor."""
    run = Run(SMOLLM2, GRPO, 0)
    records = [{"step": 0, "eval_avg@4": 0.1}]
    for step in range(1, 17):
        record = dict.fromkeys([*smollm2.NAMES, "step_time"], float(step)) | {"step": step, "loss": 0.0}
        records.append(record | ({"fipo/noise_floor": 1e-7} if step % 8 == 1 else {}))
    records.append({"step": 16, "eval_avg@4": 0.6})
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    measured = smollm2.read_metrics(file, run)
    assert measured["rollouts"]["reward"] == [4.5, 12.5] and measured["rollouts"]["seconds"] == [36.0, 136.0]
    assert measured["rollouts"]["last_fipo/policy_kl"] == [8.0, 16.0]
    assert measured["evaluations"] == {"samples": [0.0, 128.0], "accuracy": [0.1, 0.6]}


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
