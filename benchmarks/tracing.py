"""What traces cost: writing those of one micro-batch beside its optimizer step, on SmolLM2-135M.

    python -m benchmarks.tracing        # a minute and a half on two cores

By default every eighth rollout is traced, so over a run the share is an eighth of that in a traced rollout; a rollout
takes longer than its updates, so it is an upper bound. Writing is the same whatever the model's size.
"""

import statistics
from dataclasses import replace
from typing import Any

import torch

from benchmarks import measure, train_step
from fipo.trainer import Credit

EVERY = 8  # FIPOConfig's fipo_trace_every
LENGTH = 128  # step and writing both grow with the tokens


def one(length: int, rows: int) -> dict[str, Any]:
    trainer, inputs = train_step.make_trainer("FIPO", rows), train_step.rollout(rows, length)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)
    traced = {"sample_index": torch.arange(rows), "reward_total": torch.zeros(rows)}
    traced["rewards_by_name"] = torch.zeros(rows, len(trainer.reward_func_names))
    seen: list[Credit] = []
    trainer.observers.append(seen.append)

    def step() -> None:
        trainer.compute_loss(trainer.model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    def write() -> None:
        trainer.observers[1](replace(seen[-1], inputs=inputs | traced))

    steps, writes = (
        statistics.median(measure.seconds(call, repeats, 300)[1:]) for call, repeats in ((step, 4), (write, 9))
    )
    return {"step_s": steps, "write_ms": 1e3 * writes, "share": writes / steps, "share_of_run": writes / steps / EVERY}


def everything() -> list[dict[str, Any]]:
    row = measure.in_own_process("benchmarks.tracing", length=LENGTH, rows=train_step.LENGTHS[LENGTH])
    print(
        f"{row['rows']} × {LENGTH}: step {row['step_s']:.2f} s, write {row['write_ms']:.0f} ms: "
        f"{row['share']:.2%} of a traced step, {row['share_of_run']:.2%} of a run's updates",
        flush=True,
    )
    return [row]


if __name__ == "__main__":
    measure.main(one, everything)
