"""FIPO's training up to a rollout, and what each of its updates would see of responses whose truth is measured.

The measured responses are put into the rollout's last updates, so that all of them are still untrained, as any response
is when its turn comes, while the updates before have moved the policy.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

from experiments.model import Samples, response_logps
from experiments.protocol import FIPO, Run, Setting
from experiments.start import supervised_start
from experiments.task import CHAINS, Problem, sample_problem
from experiments.train import batch_of, group_advantages, policy_loss, roll_out


@dataclass(frozen=True)
class Rollout:
    """One rollout of a training, before its first update: B responses, in the order in which they are trained on."""

    setting: Setting
    model: LlamaForCausalLM  # π_old
    optimizer: torch.optim.Optimizer
    problems: list[Problem]
    prompts: Tensor  # (B, P)
    samples: Samples  # (B, T)
    rewards: Tensor  # (B,)
    advantages: Tensor  # (B,)
    groups: Tensor  # (B,) the number of a response's problem
    measured: Tensor  # rows whose truth is measured: the last ones


def rollouts(setting: Setting, seed: int, wanted: list[int], measured: int) -> Iterator[tuple[int, Rollout]]:
    """Trains with FIPO and yields the wanted rollouts, each with so many responses put last to be measured."""
    chain = CHAINS[setting.name]
    model = supervised_start(chain, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=0.0)
    problems, sampling = random.Random(seed), torch.Generator().manual_seed(seed)
    for number in range(max(wanted) + 1):
        for group in optimizer.param_groups:
            group["lr"] = setting.learning_rate * min(1.0, (number + 1) / setting.warmup_rollouts)
        asked = [sample_problem(chain, problems, held_out=False) for _ in range(setting.prompts)]
        asked = [problem for problem in asked for _ in range(setting.group)]
        prompts, samples, rewards = roll_out(model, asked, chain.max_tokens, sampling, torch.float32)
        order, last = in_order(rewards.view(-1, setting.group), measured, sampling)
        rollout = Rollout(
            setting,
            copy.deepcopy(model),
            _copy_of(optimizer, model),
            [asked[row] for row in order],
            prompts[order],
            Samples(*(column[order] for column in (samples.ids, samples.mask, samples.logps, samples.entropy))),
            rewards[order],
            group_advantages(rewards, setting.group)[order],
            order // setting.group,
            torch.arange(len(order) - last, len(order)),
        )
        if number in wanted:
            yield number, rollout
        for _ in updates(rollout, model, optimizer):
            pass


def in_order(rewards: Tensor, measured: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """A random order of the responses (groups, samples) that ends with the measured ones, and how many those are.

    They come from groups with both rewards, in turn the first right and the first wrong response of each, then the
    second ones.
    """
    size = rewards.shape[1]
    mixed = [number for number, group in enumerate(rewards) if 0 < group.mean() < 1]
    chosen: list[int] = []
    for rank in range(size):
        for number in mixed:
            for value in (1.0, 0.0):
                rows = (rewards[number] == value).nonzero().flatten().tolist()
                chosen += [number * size + rows[rank]] if rank < len(rows) else []
    chosen = chosen[:measured]
    rest = [row for row in torch.randperm(rewards.numel(), generator=generator).tolist() if row not in set(chosen)]
    shuffled = torch.randperm(len(chosen), generator=generator)
    return torch.tensor(rest + [chosen[place] for place in shuffled]), len(chosen)


def updates(
    rollout: Rollout, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[int, Tensor]]:
    """Makes the rollout's updates with FIPO's loss; before each, yields its number and the rows not yet trained on."""
    run = Run(rollout.setting, FIPO, 0)
    rows_of = torch.arange(len(rollout.rewards)).chunk(FIPO.updates)
    for update, rows in enumerate(rows_of):
        yield update, torch.cat(rows_of[update:])
        batch = batch_of(model, rollout.prompts, rollout.samples, rollout.advantages, rows, torch.float32)
        loss, _ = policy_loss(run, batch, torch.Generator())
        loss.backward()
        clip_grad_norm_(model.parameters(), rollout.setting.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


@dataclass(frozen=True)
class Sight:
    """What an update sees of the measured responses that are not yet trained on."""

    rate: float
    update: int
    rows: Tensor  # of the rollout
    log_ratio: Tensor  # (rows, T)
    model: LlamaForCausalLM  # π_θ; moves on with the next update


def replay(rollout: Rollout, rate: float) -> Iterator[Sight]:
    """The rollout's updates at another learning rate, from the same policy and optimizer state."""
    model = copy.deepcopy(rollout.model)
    optimizer = _copy_of(rollout.optimizer, model)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for update, untrained in updates(rollout, model, optimizer):
        rows = rollout.measured[torch.isin(rollout.measured, untrained)]
        with torch.no_grad():
            logps = response_logps(model, rollout.prompts[rows], rollout.samples.ids[rows], torch.float32)
        yield Sight(rate, update, rows, logps - rollout.samples.logps[rows], model)


def _copy_of(optimizer: torch.optim.Optimizer, model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """The same state, of this model's parameters."""
    copied = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return copied
