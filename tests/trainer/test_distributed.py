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


def launch(processes, *arguments):
    """What distributed.py prints."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0", "--standalone"]
    command = [sys.executable, *launcher, HERE / "distributed.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("strategy", "refusals"), [("steps", 2), ("no", 0)])
def test_machines_without_a_shared_disk_are_told_before_they_train(tmp_path, strategy, refusals):
    told = launch(2, "folders", tmp_path, strategy)
    assert told.count("which 1 of 2 processes do not share with the first") == refusals


def test_two_processes_equal_one(tmp_path):
    model = tiny.save(tmp_path / "model")
    for processes in (1, 2):
        launch(processes, "credit", model, tmp_path)
    one, two = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert min(one["fipo/weight_std"], one["fipo/noise_floor"]) > 0.1
    assert two == pytest.approx(one, rel=1e-5)
    gradients = (torch.load(tmp_path / f"{processes}.pt") for processes in (2, 1))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
