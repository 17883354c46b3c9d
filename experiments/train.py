"""One training, top to bottom: roll out, score, give advantages, update with FIPO's loss; and what is measured."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

from experiments.model import Samples, response_logps, rounded, sample
from experiments.protocol import Arm, Run
from experiments.results import columns
from experiments.start import supervised_start
from experiments.task import CHAINS, Chain, Problem, decode, encode, reward, sample_problem
from fipo import FIPOOutput, fipo_loss, token_mean
from fipo.core.logged import TOKEN_MEANS
from fipo.core.rules import controlled

HELD_OUT_SEED = 0  # one held-out set for all seeds and arms


@dataclass(frozen=True)
class Batch:
    """What an update is computed from."""

    logps: Tensor  # (B, T), with gradient
    old_logps: Tensor
    advantages: Tensor  # (B,)
    mask: Tensor


def train(run: Run, watch: Callable[[LlamaForCausalLM, int, Batch], None] | None = None) -> dict[str, Any]:
    """Trains as the run says; what is returned is written to `run.file`. The same run gives the same numbers.

    `watch` sees the model, the index of the update within its rollout, and its batch, before each update.
    """
    setting, arm, chain = run.setting, run.arm, CHAINS[run.setting.name]
    model = supervised_start(chain, run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm.learning_rate or setting.learning_rate, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / setting.warmup_rollouts))
    problems = random.Random(run.seed)
    sampling, shuffling = (torch.Generator().manual_seed(run.seed) for _ in range(2))
    dtype = torch.bfloat16 if arm.bf16 else torch.float32
    record = Record()
    record.evaluate(model, chain, setting.eval_problems)
    for rollout in range(setting.rollouts):
        record.start_clock()
        asked = [sample_problem(chain, problems, held_out=False) for _ in range(setting.prompts)]
        asked = [problem for problem in asked for _ in range(setting.group)]
        prompts, samples, rewards = roll_out(model, asked, chain.max_tokens, sampling, dtype)
        advantages = group_advantages(rewards, setting.group)
        record.start_rollout(samples, rewards)
        order = torch.randperm(len(asked), generator=sampling)
        if arm.forward is not None:
            samples = scored_again(model, prompts, samples, advantages, order.chunk(arm.updates), arm.forward)
        for update, rows in enumerate(order.chunk(arm.updates)):
            with rounded(model, arm.forward):
                batch = batch_of(model, prompts, samples, advantages, rows, dtype)
            if watch:
                watch(model, update, batch)
            loss, out = policy_loss(run, batch, shuffling)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), setting.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            record.add_update(update, out, batch.mask, batch.advantages, norm)
        warmup.step()
        record.end_rollout()
        if (rollout + 1) % setting.eval_every == 0 and rollout + 1 < setting.rollouts:
            record.evaluate(model, chain, setting.eval_problems)
    record.evaluate(model, chain, setting.final_problems)
    return record.measured()


def batch_of(
    model: LlamaForCausalLM, prompts: Tensor, samples: Samples, advantages: Tensor, rows: Tensor, dtype: torch.dtype
) -> Batch:
    """These rows of a rollout, scored by the model, no wider than the longest of them."""
    width = int(samples.mask[rows].sum(-1).max())
    ids, mask, old_logps = (column[rows, :width] for column in (samples.ids, samples.mask, samples.logps))
    return Batch(response_logps(model, prompts[rows], ids, dtype), old_logps, advantages[rows], mask)


@torch.no_grad()
def scored_again(
    model: LlamaForCausalLM,
    prompts: Tensor,
    samples: Samples,
    advantages: Tensor,
    updates: Sequence[Tensor],
    forward: str,
) -> Samples:
    """With π_old as the trainer's forward computes it, in the batches of the updates, as engines do."""
    logps = samples.logps.clone()
    for rows in updates:
        with rounded(model, forward):
            found = batch_of(model, prompts, samples, advantages, rows, torch.float32).logps
        logps[rows, : found.shape[1]] = found
    return replace(samples, logps=logps)


def policy_loss(run: Run, batch: Batch, generator: torch.Generator) -> tuple[Tensor, FIPOOutput]:
    """The arm's loss, a scalar with gradient, and what FIPO knows of every token. The only place where arms differ."""
    clip_range = {"epsilon_low": run.setting.epsilon_low, "epsilon_high": run.setting.epsilon_high}
    out = fipo_loss(batch.logps, batch.old_logps, batch.advantages, batch.mask, run.arm.params, **clip_range)
    if run.arm.signed is not None:
        out = with_weights(out, signed_weights(out, batch.advantages, run.arm))
    if run.arm.control is not None:
        rows = zip(out.weight, batch.mask, strict=True)
        found = [controlled(weight, mask, run.arm.control, generator) for weight, mask in rows]
        out = with_weights(out, torch.stack(found))
    return token_mean(out.loss, out.kept), out


def with_weights(out: FIPOOutput, weight: Tensor) -> FIPOOutput:
    """`out` with these weights. A positive weight scales a token's loss, clips included: times new over old weight."""
    return replace(out, weight=weight, loss=out.loss * (weight / out.weight))


def signed_weights(out: FIPOOutput, advantages: Tensor, arm: Arm) -> Tensor:
    """exp(sign(A) · x) within the bounds of FIPO's weights; x is a column of `out`, (B, T)."""
    exponent = advantages.sign()[:, None] * getattr(out, arm.signed)
    return exponent.exp().clamp(arm.params.weight_low, arm.params.weight_high)


def roll_out(
    model: LlamaForCausalLM, problems: list[Problem], max_tokens: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Samples, Tensor]:
    """Prompts (B, P), one sampled response to each, and their rewards (B,)."""
    prompts = torch.tensor([encode(problem.prompt) for problem in problems])
    samples = sample(model, prompts, max_tokens, generator, dtype)
    texts, ended = map(decode, samples.ids.tolist()), samples.ended.tolist()
    rewards = [reward(problem, text, ended=end) for problem, text, end in zip(problems, texts, ended, strict=True)]
    return prompts, samples, torch.tensor(rewards)


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """(B,) rewards, centred and scaled within each group of responses to one problem, as GRPO does."""
    grouped = rewards.view(-1, group)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).view(-1)


def accuracy(model: LlamaForCausalLM, chain: Chain, problems: int) -> float:
    """Share of right answers to the first `problems` held-out ones, one sample at temperature 1 each."""
    drawing = random.Random(HELD_OUT_SEED)
    asked = [sample_problem(chain, drawing, held_out=True) for _ in range(problems)]
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    return float(roll_out(model, asked, chain.max_tokens, generator, torch.float32)[2].mean())


@dataclass
class Record:
    """What one training showed: a row a rollout, and the held-out accuracies. Evaluating does not count as time."""

    rollouts: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    samples: int = 0

    def evaluate(self, model: LlamaForCausalLM, chain: Chain, problems: int) -> None:
        found = accuracy(model, chain, problems)
        self.evaluations.append({"samples": self.samples, "cpu_seconds": self.cpu_seconds, "accuracy": found})

    def start_clock(self) -> None:
        self._clocks = time.perf_counter(), time.process_time()

    def start_rollout(self, samples: Samples, rewards: Tensor) -> None:
        self.samples += len(rewards)
        self._row = {
            "reward": float(rewards.mean()),
            "length": float(samples.mask.sum(-1).float().mean()),
            "ended": float(samples.ended.float().mean()),
            "entropy": float(token_mean(samples.entropy, samples.mask)),
        }
        self._updates: list[dict[str, float]] = []

    def add_update(self, update: int, out: FIPOOutput, mask: Tensor, advantages: Tensor, norm: Tensor) -> None:
        self._updates.append({**credit_statistics(out, mask, advantages), "grad_norm": float(norm)})

    def end_rollout(self) -> None:
        """Means over the rollout's updates; the noise floor is of the first, `last_` is of the last."""
        first, *_, last = self._updates
        means = {name: sum(row[name] for row in self._updates) / len(self._updates) for name in first}
        ends = {f"last_{name}": last[name] for name in ("fipo/policy_kl", "log_ratio", "weight_std")}
        wall, cpu = self._clocks
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu
        clocks = {"samples": self.samples, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        self.rollouts.append({**clocks, **self._row, **means, **ends, "noise_floor": first["log_ratio"]})

    def measured(self) -> dict[str, Any]:
        return {"rollouts": columns(self.rollouts), "evaluations": columns(self.evaluations)}


def credit_statistics(out: FIPOOutput, mask: Tensor, advantages: Tensor) -> dict[str, float]:
    """Of one update, means over its tokens: what every engine logs, and how far weights and log-ratios spread."""
    trained = out.weight[mask]
    sign = advantages.sign()[:, None].expand(mask.shape)
    within = [row[kept].std(correction=0) for row, kept in zip(out.weight, mask, strict=True)]
    return {
        **{name: float(token_mean(value(out).float(), mask)) for name, value in TOKEN_MEANS.items()},
        "log_ratio": float(token_mean(out.log_ratio.abs(), mask)),
        "future_kl_abs": float(token_mean(out.future_kl.abs(), mask)),
        "weight_std": float(trained.std(correction=0)),
        "weight_std_within": float(torch.stack(within).mean()),
        "weight_where_positive": 1 + float(token_mean(out.weight - 1, mask & (sign > 0))),  # 1 where there are none
        "weight_where_negative": 1 + float(token_mean(out.weight - 1, mask & (sign < 0))),
        "clipped_low": float(token_mean(out.clipped_low.float(), mask)),
        "clipped_high": float(token_mean(out.clipped_high.float(), mask)),
        "dropped": float(out.dropped.float().mean()),
    }
