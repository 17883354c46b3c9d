"""Puts slime on the path: the thin stand-in beside this file, or slime itself where SLIME_SRC names its source tree, or
miles where MILES_SRC does.

Of Megatron only its groups are needed, which megatron_stub gives. slime's package for Megatron changes Megatron when it
is imported; its modules are taken without that.
"""

import importlib
import sys
import types
from pathlib import Path

from cases import MILES, SLIME

HERE = Path(__file__).parent
SOURCE = Path(MILES or SLIME or HERE / "standin")
sys.path[:0] = [str(SOURCE), str(HERE / "megatron_stub"), str(HERE.parents[1])]

if MILES:
    import on_miles
    from miles.backends.training_utils import cp_utils
    from miles.backends.training_utils.loss_hub.logit_processors import get_log_probs_and_entropy

    loss, initialize, ARGUMENTS = on_miles, on_miles.initialize, on_miles.ARGUMENTS
else:
    from megatron.core.mpu import initialize

    ARGUMENTS = {}

    backends = importlib.import_module("slime.backends")
    package = types.ModuleType("slime.backends.megatron_utils")
    package.__path__ = [str(SOURCE / "slime" / "backends" / "megatron_utils")]
    sys.modules[package.__name__] = backends.megatron_utils = package
    loss, cp_utils = (importlib.import_module(f"{package.__name__}.{name}") for name in ("loss", "cp_utils"))

    def get_log_probs_and_entropy(*arguments, **named):
        return loss.get_log_probs_and_entropy(*arguments, **named)[1]


__all__ = ["ARGUMENTS", "cp_utils", "get_log_probs_and_entropy", "initialize", "loss"]
