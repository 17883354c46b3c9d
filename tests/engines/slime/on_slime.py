"""Puts slime on the path: the thin stand-in beside this file, or slime itself where SLIME_SRC names its source tree.

Of Megatron only its groups are needed, which megatron_stub gives. slime's package for Megatron changes Megatron when it
is imported; its modules are taken without that.
"""

import importlib
import os
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = Path(os.environ.get("SLIME_SRC") or HERE / "standin")

sys.path[:0] = [str(SOURCE), str(HERE / "megatron_stub"), str(HERE.parents[1])]
backends = importlib.import_module("slime.backends")
package = types.ModuleType("slime.backends.megatron_utils")
package.__path__ = [str(SOURCE / "slime" / "backends" / "megatron_utils")]
sys.modules[package.__name__] = backends.megatron_utils = package
