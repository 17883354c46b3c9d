"""The supervised start: a model that writes solutions out and gets about 30 % of the answers right.

All seeds of a chain descend from one base, as runs on a large model would; each goes on from it with data of its own.
"""

import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

from experiments.model import new_model, response_logps
from experiments.task import END, Chain, Problem, encode, sample_problem

CACHE = Path(__file__).parents[1] / "runs" / "evidence" / "starts"
BASE_SEED = 1000
BASE_RATE, BASE_TARGET = 1e-3, 0.1
LESSON_LINES, LESSON_TARGET = 4, 0.5
WINDOW = 128  # problems over which the base's share of right answers is averaged
SEED_RATE, SEED_TARGET, ALLOWED = 1e-4, 0.3, (0.2, 0.4)
CHECK_EVERY, CHECK_PROBLEMS = 2, 64
WARMUP, BATCH_TOKENS = 20, 2048


def supervised_start(chain: Chain, seed: int, folder: Path = CACHE) -> LlamaForCausalLM:
    """The start that all arms of a seed share; made once, then read from `folder`."""

    def make() -> LlamaForCausalLM:
        model, problems = base(chain, folder), random.Random(seed)
        checked = [sample_problem(chain, problems, held_out=False) for _ in range(CHECK_PROBLEMS)]
        for step, _ in enumerate(teach(model, chain, problems, SEED_RATE)):
            if step % CHECK_EVERY == 0:
                with torch.no_grad():
                    share = float(shares(solution_logps(model, checked)).mean())
                if share >= SEED_TARGET:
                    break
        if not ALLOWED[0] <= share <= ALLOWED[1]:
            raise RuntimeError(f"The start gets {share:.1%} right, but must get {ALLOWED}; lower SEED_RATE.")
        return model

    return _cached(folder / f"{chain.name}_{seed}.safetensors", make)


def base(chain: Chain, folder: Path = CACHE) -> LlamaForCausalLM:
    """The model that all seeds start from. Long chains begin with shorter ones, which teach columns at less cost."""

    def make() -> LlamaForCausalLM:
        model, problems = new_model(BASE_SEED), random.Random(BASE_SEED)
        lessons = [(chain, BASE_TARGET)]
        if chain.lines > LESSON_LINES:
            lessons.insert(0, (replace(chain, lines=LESSON_LINES), LESSON_TARGET))
        for lesson, target in lessons:
            recent: deque[float] = deque(maxlen=WINDOW)
            for batch in teach(model, lesson, problems, BASE_RATE):
                recent.extend(batch.tolist())
                if len(recent) == WINDOW and sum(recent) / WINDOW >= target:
                    break
        return model

    return _cached(folder / f"{chain.name}_base.safetensors", make)


def teach(model: LlamaForCausalLM, chain: Chain, problems: random.Random, rate: float) -> Iterator[Tensor]:
    """Supervised training on written-out solutions, without end; yields each batch's shares before it is trained on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    while True:
        batch = [sample_problem(chain, problems, held_out=False) for _ in range(BATCH_TOKENS // chain.solution_tokens)]
        logps = solution_logps(model, batch)
        yield shares(logps.detach())
        (-logps.mean()).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def shares(logps: Tensor) -> Tensor:
    """(B,) the probability with which each written-out solution is sampled: how much of the answers will be right."""
    return logps.sum(-1).exp()


def solution_logps(model: LlamaForCausalLM, problems: list[Problem]) -> Tensor:
    """(B, T) log-probs of the written-out solutions, the end token included."""
    prompts = torch.tensor([encode(problem.prompt) for problem in problems])
    solutions = torch.tensor([[*encode(problem.solution), END] for problem in problems])
    return response_logps(model, prompts, solutions, torch.float32)


def _cached(file: Path, make: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    """The model in `file`, which is whole or absent; two processes that make it write the same."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        save_model(make(), str(partial))
        partial.replace(file)
    model = new_model(0)
    load_model(model, file)
    return model
