"""Work for the runner's tests; a file of its own, since the runner's processes import it."""

import os
import time
from pathlib import Path

from experiments.protocol import Run


def note(run: Run) -> None:
    """Leaves the process's id under the run's name."""
    folder = Path(os.environ["RUNNER_TEST_FOLDER"])
    (folder / run.name.replace("/", "_")).write_text(str(os.getpid()))


def quick(run: Run) -> None:
    note(run)
    if run.seed == 1:
        raise RuntimeError("this run fails")


def endless(run: Run) -> None:
    note(run)
    time.sleep(600)
