"""Measures what is not there yet, and fills docs/credit_truth.md.

python -m experiments.truth [--processes 2] [--chains short long smollm2] [--again]
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from experiments.truth import smollm2
from experiments.truth.report import CHAINS, fill_page
from experiments.truth.study import SMOLLM2, UNITS, run


def main() -> int:
    parser = argparse.ArgumentParser("experiments.truth", description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=CHAINS, help="measure these alone")
    parser.add_argument("--again", action="store_true", help="measure the signals of measured truth again")
    options = parser.parse_args()
    todo = [unit for unit in UNITS if unit.chain in options.chains and (options.again or not unit.done)]
    if any(unit.chain == SMOLLM2 for unit in todo):
        smollm2.train()
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for unit, seconds in pool.map(run, todo):
            print(f"{unit.name}: {seconds:.0f} s", flush=True)
    fill_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
