"""Run by test_distributed.py on every rank: one update's gradient and metrics from this rank's share of a rollout.

python distributed.py MODEL OUT           (through torchrun: rank and world size are in the environment)
"""

import json
import os
import sys

import torch
from support import tiny
from transformers import AutoModelForCausalLM

from fipo.trainer import FIPOConfig, FIPOTrainer

ROWS = 8


def main(folder, out):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config = FIPOConfig(
        os.path.join(out, "run"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        beta=0.05,
        num_generations=4,
        per_device_train_batch_size=ROWS // world,
        steps_per_generation=2,
        gradient_checkpointing=False,
        max_completion_length=12,
    )
    trainer = FIPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        lambda completions, **_: [0.0] * len(completions),
        config,
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    whole = tiny.rollout(rows=ROWS)
    whole = tiny.with_old_logps(trainer, whole)
    share = {
        name: value[rank * ROWS // world : (rank + 1) * ROWS // world] if value.dim() else value
        for name, value in whole.items()
    }
    loss = trainer.compute_loss(wrapped, share)
    trainer.accelerator.backward(loss)
    losses = trainer.accelerator.gather(loss.detach().reshape(1))
    metrics = trainer.credit_metrics["train"].reduce(trainer.accelerator)
    if rank == 0:
        torch.save({name: p.grad for name, p in trainer.model.named_parameters()}, os.path.join(out, f"{world}.pt"))
        with open(os.path.join(out, f"{world}.json"), "w") as file:
            json.dump({"loss": losses.mean().item(), **metrics}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
