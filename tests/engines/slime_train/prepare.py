"""python prepare.py MODEL DUMPS: makes the model and the rollouts of all runs, in two new folders."""

import sys
from pathlib import Path

import debug_dumps
import tiny_qwen3

if __name__ == "__main__":
    model_folder, dumps_folder = map(Path, sys.argv[1:])
    tiny_qwen3.save(model_folder)
    debug_dumps.save(dumps_folder, tiny_qwen3.model().eval())
