"""`make gpu` cannot run here; that each of its parts starts can be tried."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_part_starts_at_toy_shapes():
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--only", "precision", "heads", "future_kl", "steps"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for part in ("precision", "heads", "future_kl", "steps"):
        assert f"## {part}" in done.stdout
    assert "nan" not in done.stdout
