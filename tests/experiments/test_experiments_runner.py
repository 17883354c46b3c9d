"""The runner with real processes: failures do not stop the others, and nothing outlives the runner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.protocol import FIPO, SETTINGS, Run
from experiments.run import run_all

pytestmark = pytest.mark.beside
HERE = Path(__file__).parent
RUNS = [Run(SETTINGS["short"], FIPO, seed) for seed in range(4)]
SCRIPT = """
import signal, sys
from test_experiments_runner import RUNS, endless
from experiments.run import run_all

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_all(RUNS[:3], 2, endless)
"""


def note(run: Run) -> None:
    """Leaves the process's id under the run's name."""
    Path(os.environ["RUNNER_TEST_FOLDER"], run.name.replace("/", "_")).write_text(str(os.getpid()))


def quick(run: Run) -> None:
    note(run)
    if run.seed == 1:
        raise RuntimeError("this run fails")


def endless(run: Run) -> None:
    note(run)
    time.sleep(600)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNNER_TEST_FOLDER", str(tmp_path))
    return tmp_path


def test_every_run_has_a_process_and_a_failure_stops_no_other(folder, capsys):
    assert run_all(RUNS, 2, quick) == [RUNS[1]]
    processes = {file.name: int(file.read_text()) for file in folder.glob("short_*")}
    assert len(processes) == 4 and len({*processes.values(), os.getpid()}) == 5
    assert f"{RUNS[1].name} failed with exit code 1" in capsys.readouterr().out


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_runner_leaves_no_process(how, folder, tmp_path):
    script = tmp_path / "series.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    runner = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: len(list(folder.glob("short_*"))) == 2)
    time.sleep(0.1)  # the ids are written
    started = [int(file.read_text()) for file in folder.glob("short_*")]
    runner.send_signal(how)
    assert runner.wait(30) in (143, -signal.SIGKILL)
    wait_for(lambda: not any(is_running(process) for process in started))
    assert len(list(folder.glob("short_*"))) == 2, "and nothing else was begun"


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_for(condition, seconds: float = 60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition was not met in time"
        time.sleep(0.05)
