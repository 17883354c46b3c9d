"""Runs what the protocol lists and what is not there yet: processes of one thread each, two at a time.

    python -m experiments.run select      # the learning rate, on the GRPO arm alone
    python -m experiments.run main ablations smollm2 confirm signed rounded

A result is whole or absent, so a run that was stopped or killed starts over, and nothing else is lost.
"""

import argparse
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.protocol import SERIES, SMOLLM2, Run
from experiments.results import read_result, write_result
from fipo.errors import DataError

LOCK = Path(__file__).parents[1] / "runs" / "evidence" / "lock"


def main() -> int:
    """Returns the exit code: 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", nargs="+", choices=SERIES)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["experiments.train"]
    )  # slow imports, once for all
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, which ends the processes too
    with only_runner():
        todo = missing([run for name in options.series for run in SERIES[name]()])
        failed = run_all(todo, options.processes, train_and_write)
    return 1 if failed else 0


@contextmanager
def only_runner() -> Iterator[None]:
    """Two runners would do everything twice. The lock goes with the process, however that ends."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("Another runner is at work in this folder; wait for it, or stop it.")
        yield


def missing(runs: list[Run]) -> list[Run]:
    """The runs that have no whole result; what is wrong with a result that exists is printed."""
    todo = []
    for run in runs:
        try:
            read_result(run)
        except DataError as error:
            todo.append(run)
            if run.file.exists():
                print(f"{error} It runs again.", flush=True)
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done.", flush=True)
    return todo


def run_all(runs: list[Run], processes: int, work: Callable[[Run], None]) -> list[Run]:
    """Runs in order, so many at a time, each in a process of its own. Returns those that failed."""
    context = multiprocessing.get_context("forkserver")
    waiting, working, failed = list(reversed(runs)), {}, []
    try:
        while waiting or working:
            while waiting and len(working) < processes:
                run = waiting.pop()
                working[run] = context.Process(target=_in_process, args=(work, run)), time.monotonic()
                working[run][0].start()
            multiprocessing.connection.wait([process.sentinel for process, _ in working.values()])
            for run, (process, started) in list(working.items()):
                if process.exitcode is None:
                    continue
                del working[run]
                failed += [run] if process.exitcode else []
                outcome = f"failed with exit code {process.exitcode}" if process.exitcode else "done"
                seconds = time.monotonic() - started
                print(f"{run.name} {outcome} after {seconds:.0f} s; {len(waiting)} wait", flush=True)
    finally:
        for process, _ in working.values():
            process.terminate()
    return failed


def train_and_write(run: Run) -> None:
    """One run, and its result."""
    import torch

    from experiments import smollm2, train

    torch.set_num_threads(1)
    write_result(run, (smollm2 if run.setting == SMOLLM2 else train).train(run))


def _in_process(work: Callable[[Run], None], run: Run) -> None:
    threading.Thread(target=_end_with_runner, daemon=True).start()
    work(run)


def _end_with_runner() -> None:
    """A runner that was killed cannot end its processes."""
    multiprocessing.parent_process().join()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
