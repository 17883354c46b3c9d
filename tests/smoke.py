"""What a package must do where nothing but it and one of its extras is installed: `python -I smoke.py`.

`make dist` runs this in empty environments, outside of the clone. It needs no model from anywhere.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from fipo import FIPOParams, fipo_loss, token_mean


def fipo(*arguments, expect=0):
    done = subprocess.run([sys.executable, "-I", "-m", "fipo.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == expect, (arguments, done.stdout, done.stderr)
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def the_loss():
    logps = torch.zeros(2, 5, requires_grad=True)
    out = fipo_loss(logps, torch.full((2, 5), 0.1), torch.tensor([1.0, -1.0]), torch.ones(2, 5), FIPOParams())
    token_mean(out.loss, out.kept).backward()
    assert logps.grad.abs().min() > 0 and out.weight.max() < 1
    assert fipo("--version").split() == ["fipo", version("fipo")]


def a_report(folder):
    if not find_spec("plotly"):
        assert "pip install 'fipo[report]'" in fipo("report", str(folder), expect=2)
        return
    folder.mkdir()
    rows = [{"step": step, "reward": step / 10, "fipo/weight_mean": 1.0} for step in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fipo("report", str(folder), "-o", str(folder / "report.html"))
    page = (folder / "report.html").read_text()
    assert "Content-Security-Policy" in page and "<script src" not in page


def a_run(folder):
    if not find_spec("trl"):
        assert "pip install 'fipo[train]'" in fipo("train", "--dry_run", "true", expect=2)
        return
    (folder / "sums.jsonl").write_text("".join(f'{{"prompt": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(32)))
    flags = {"dataset": folder / "sums.jsonl", "model_name_or_path": "none", "output_dir": folder / "out"}
    flags |= {"rewards": "last_number", "eval_size": 4, "use_cpu": "true", "bf16": "false", "dry_run": "true"}
    assert "nothing was run" in fipo(
        "train", *(word for key, value in flags.items() for word in (f"--{key}", str(value)))
    )
    fipo("init", str(folder / "own.yaml"), "--model", "none", "--dataset", str(folder / "sums.jsonl"))
    fipo("doctor")


if __name__ == "__main__":
    the_loss()
    with tempfile.TemporaryDirectory() as name:
        a_report(Path(name) / "run")
        a_run(Path(name))
    print(f"fipo {version('fipo')}, Python {sys.version.split()[0]}, torch {torch.__version__}: it works.")
