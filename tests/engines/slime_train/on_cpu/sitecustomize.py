"""On PYTHONPATH, so that every Python which Ray starts has it: slime's train.py then runs without a GPU.

No file of slime, Megatron or SGLang is changed. Three modules are completed right after they are imported.
"""

import importlib.abc
import importlib.util
import sys

COMPLETED_BY = {
    "torch": "cuda_on_cpu",
    "slime.utils.accelerator": "cpu_accelerator",
    "megatron.core.optimizer.distrib_optimizer": "fp32_checkpoints",
}


class _Completes(importlib.abc.MetaPathFinder):
    """Finds the modules as everybody else does, and completes each once when it has run."""

    def __init__(self):
        self.waiting = dict(COMPLETED_BY)

    def find_spec(self, name, path, target=None):
        helper = self.waiting.pop(name, None)  # so that the other finders are asked below
        if helper is None:
            return None
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_complete(module):
            run(module)
            importlib.import_module(helper).complete(module)

        spec.loader.exec_module = run_and_complete
        return spec


sys.meta_path.insert(0, _Completes())
