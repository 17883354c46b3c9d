"""Run by test_distributed.py on every rank, through torchrun: rank and world size are in the environment.

python distributed.py credit MODEL OUT     one update's gradient and metrics from this rank's share of a rollout
python distributed.py folders OUT STRATEGY trains, with an output folder of each rank's own, as on machines that share
                                           no disk
"""

import json
import os
import sys
from pathlib import Path

import torch
from support import tiny
from support.harness import first_number_odd_is_random, make
from transformers import AutoModelForCausalLM

from fipo import InvalidParameterError

ROWS = 8
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def credit(folder, out):
    options = {"beta": 0.05, "per_device_train_batch_size": ROWS // WORLD, "steps_per_generation": 2}
    trainer = make(Path(out) / str(RANK), AutoModelForCausalLM.from_pretrained(folder), **options)
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    whole = tiny.with_old_logps(trainer, tiny.rollout(rows=ROWS))
    mine = slice(RANK * ROWS // WORLD, (RANK + 1) * ROWS // WORLD)
    loss = trainer.compute_loss(wrapped, {name: x[mine] if x.dim() else x for name, x in whole.items()})
    trainer.accelerator.backward(loss)
    losses = trainer.accelerator.gather(loss.detach().reshape(1))
    metrics = trainer.credit_metrics["train"].reduce(trainer.accelerator)
    if RANK == 0:
        torch.save({name: p.grad for name, p in trainer.model.named_parameters()}, f"{out}/{WORLD}.pt")
        Path(out, f"{WORLD}.json").write_text(json.dumps({"loss": losses.mean().item(), **metrics}))


def folders(out, strategy):
    options = {"per_device_train_batch_size": 4, "max_steps": 1, "save_strategy": strategy}
    trainer = make(Path(out) / str(RANK), rewards=first_number_odd_is_random, **options)
    try:
        trainer.train()
    except InvalidParameterError as error:
        print(f"refused: {error}")
    trainer.end()


if __name__ == "__main__":
    {"credit": credit, "folders": folders}[sys.argv[1]](*sys.argv[2:])
