"""Two processes with half of the batch each are one process with the batch: loss, gradient and every metric."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny

HERE = Path(__file__).parent


def run(processes, model, out):
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0", "--standalone"]
    command = [sys.executable, *launcher, str(HERE / "distributed.py"), model, str(out)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / f"{processes}.pt"), json.loads((out / f"{processes}.json").read_text())


@pytest.mark.parametrize(("strategy", "refusals"), [("steps", 2), ("no", 0)])
def test_machines_without_a_shared_disk_are_told_before_they_train(tmp_path, strategy, refusals):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    command = [sys.executable, *launcher, str(HERE / "shared_folder.py"), str(tmp_path), strategy]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("which 1 of 2 processes do not share with the first") == refusals


def test_two_processes_equal_one(tmp_path):
    model = tiny.save(tmp_path / "model")
    one, one_metrics = run(1, model, tmp_path)
    two, two_metrics = run(2, model, tmp_path)
    assert one_metrics["fipo/weight_std"] > 0.1
    assert one_metrics["fipo/noise_floor"] > 0.1
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-7)
    assert two_metrics == pytest.approx(one_metrics, rel=1e-5)
