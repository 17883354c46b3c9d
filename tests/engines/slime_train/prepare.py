"""python prepare.py SIZE MODEL DUMPS: makes a model and the rollouts of its runs, in two new folders."""

import sys
from pathlib import Path

import debug_dumps
import qwen3

if __name__ == "__main__":
    name, model_folder, dumps_folder = sys.argv[1:]
    size = qwen3.SIZES[name]
    qwen3.save(Path(model_folder), size)
    debug_dumps.save(Path(dumps_folder), size.model(), size.responses)
