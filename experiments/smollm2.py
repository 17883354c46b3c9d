"""A run of the real setting: SmolLM2-135M-Instruct says which of two numbers is larger, by `fipo train`."""

import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from experiments.protocol import SMOLLM2_FLAGS, Run
from experiments.results import columns
from fipo.cli import main
from fipo.core.logged import TOKEN_MEANS

ROOT = Path(__file__).parents[1]
NAMES = {  # in metrics.jsonl → here, where the two differ
    "reward": "reward",
    "completions/mean_length": "length",
    "entropy": "entropy",
    "fipo/weight_std": "weight_std",
    "fipo/dropped_sequences": "dropped",
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
    "grad_norm": "grad_norm",
} | {name: name for name in TOKEN_MEANS}


def train(run: Run) -> dict[str, Any]:
    """Trains from the start, whatever an earlier attempt left, and returns the columns of experiments.train."""
    folder = ROOT / "runs" / "evidence" / "smollm2" / f"{run.arm.name}_{run.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = {**SMOLLM2_FLAGS, "output_dir": str(folder), "seed": run.seed}
    if run.arm.control is not None:
        flags["fipo_control"] = run.arm.control
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with (folder / "train.log").open("w") as log, redirect_stdout(log):
        exit_code = main(["train", str(ROOT / "experiments" / "larger_number" / "recipe.yaml"), *arguments])
    if exit_code:
        raise RuntimeError(f"{run.name} ended with exit code {exit_code}; see {folder / 'train.log'}.")
    return read_metrics(folder / "metrics.jsonl", run)


def read_metrics(file: Path, run: Run) -> dict[str, Any]:
    """From a record an update to a row a rollout."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    updates = [record for record in records if "loss" in record]
    per_rollout, rollouts, seconds = run.arm.updates, [], 0.0
    for start in range(0, len(updates), per_rollout):
        rows = updates[start : start + per_rollout]
        seconds += sum(row["step_time"] for row in rows)
        row = {"samples": (start // per_rollout + 1) * run.setting.prompts * run.setting.group, "seconds": seconds}
        for theirs, ours in NAMES.items():
            values = [record[theirs] for record in rows if theirs in record]
            row[ours] = sum(values) / len(values)
        row["last_fipo/policy_kl"], row["noise_floor"] = rows[-1]["fipo/policy_kl"], rows[0]["fipo/noise_floor"]
        rollouts.append(row)
    done = {record["step"]: record["eval_avg@4"] for record in records if "eval_avg@4" in record}
    evaluations = [
        {"samples": step // per_rollout * run.setting.prompts * run.setting.group, "accuracy": share}
        for step, share in sorted(done.items())
    ]
    return {"rollouts": columns(rollouts), "evaluations": columns(evaluations)}
