"""How far the weights turn an update: the angle between each arm's gradient and GRPO's, on the same batch.

    python -m experiments.alignment

Beside it stands the angle between GRPO's gradients on the two halves of that batch, which is what sampling does to it.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.protocol import ARMS, FIPO, GRPO, HIGHER_RATE, RESULTS, SETTINGS, Arm, Run, Setting
from experiments.train import Batch, policy_loss, train

FILE = RESULTS / "alignment.json"
ROLLOUTS, SEEDS = 6, range(2)
HALVES = "halves of the batch"


def main() -> int:
    """Measures all cases and writes them: per case and arm, mean degrees at the last update of the last rollouts."""
    torch.set_num_threads(1)
    cases = [*SETTINGS.values(), replace(SETTINGS["short"], learning_rate=HIGHER_RATE)]
    found = {f"{case.name}, {case.learning_rate:g}": measure(case) for case in cases}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(setting: Setting) -> dict[str, float]:
    """Degrees between gradients in FIPO's own trainings: the mean over seeds and the rollouts after the warm-up."""
    setting = replace(setting, rollouts=ROLLOUTS, eval_problems=1, final_problems=1)
    angles: dict[str, list[float]] = defaultdict(list)
    for seed in SEEDS:
        train(Run(setting, FIPO, seed), watch_angles(setting, seed, angles))
    return {name: sum(values) / len(values) for name, values in angles.items()}


def watch_angles(
    setting: Setting, seed: int, angles: dict[str, list[float]]
) -> Callable[[LlamaForCausalLM, int, Batch], None]:
    """Adds to `angles` at the last update of every rollout whose learning rate is the whole one."""
    generator, rollouts = torch.Generator().manual_seed(seed), iter(range(ROLLOUTS))

    def watch(model: LlamaForCausalLM, update: int, batch: Batch) -> None:
        if update + 1 < FIPO.updates or next(rollouts) < setting.warmup_rollouts:
            return

        def gradient(arm: Arm, rows: slice = slice(None)) -> Tensor:
            part = Batch(batch.logps[rows], batch.old_logps[rows], batch.advantages[rows], batch.mask[rows])
            loss, _ = policy_loss(Run(setting, arm, seed), part, generator)
            return torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)]
            )

        whole, half = gradient(GRPO), len(batch.mask) // 2
        for arm in ARMS:
            if arm is not GRPO:
                angles[arm.name].append(degrees(gradient(arm), whole))
        angles[HALVES].append(degrees(gradient(GRPO, slice(half)), gradient(GRPO, slice(half, None))))

    return watch


def degrees(a: Tensor, b: Tensor) -> float:
    """The angle between two vectors."""
    return float(torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))))


if __name__ == "__main__":
    sys.exit(main())
