"""What the plugin uses of slime, and of miles, by name and home: the one place to look when they move.

They are imported when a name is used, never before: a missing slime must end in a sentence, and process groups must be
asked for at every call, because slime rebuilds them when it sleeps. miles (radixark/miles, read at 31f1ca96) descends
from slime and calls the same hooks.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fipo.errors import FIPOError

READ_AT = "0.3.1 (commit 624b824a)"
LOSS = "slime.backends.megatron_utils.loss"
HOMES = {
    "mpu": "megatron.core",
    "get_log_probs_and_entropy": LOSS,  # as `policy_loss_function` finds it
    "get_rollout_top_p_logprob_kwargs": LOSS,
    "policy_loss_function": LOSS,
    "vanilla_tis_function": LOSS,
    "all_gather_with_cp": "slime.backends.megatron_utils.cp_utils",
    "slice_log_prob_with_cp": "slime.backends.megatron_utils.cp_utils",
    "parse_args": "slime.utils.arguments",
    "load_function": "slime.utils.misc",
    "compute_opsm_mask": "slime.utils.ppo_utils",
}
MILES = "miles.backends.training_utils"
MILES_HOMES = {
    "get_log_probs_and_entropy": f"{MILES}.loss_hub.losses",
    "policy_loss_function": f"{MILES}.loss_hub.losses",
    "vanilla_tis_function": f"{MILES}.loss_hub.corrections",
    "all_gather_with_cp": f"{MILES}.cp_utils",
    "slice_log_prob_with_cp": f"{MILES}.cp_utils",
    "load_function": "miles.utils.misc",
    "compute_opsm_mask": f"{MILES}.loss_hub.math_utils",
    "get_parallel_state": f"{MILES}.parallel",
}


def on_miles() -> bool:
    """Whether this is a process of miles."""
    return "miles" in sys.modules and "slime" not in sys.modules


def slime_function(name: str) -> Any:
    """What slime, its Megatron, or miles calls `name`; a FIPOError says where it was expected."""
    home = home_of(name)
    try:
        return getattr(import_module(home), name)
    except (ImportError, AttributeError) as error:
        raise FIPOError(unsupported(f"{home}.{name} cannot be had: {error}")) from error


def home_of(name: str) -> str:
    """The module that has it here."""
    return (HOMES | MILES_HOMES if on_miles() else HOMES)[name]


def lacking(package: Path) -> list[str]:
    """What of HOMES the slime in this folder does not define, `module.name`; nothing of it is imported."""
    missing = []
    for name, home in HOMES.items():
        file = package.joinpath(*home.split(".")[1:]).with_suffix(".py")
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if home.startswith("slime.") and not re.search(rf"^(def {name}\b|from .* import .*\b{name}\b)", text, re.M):
            missing.append(f"{home}.{name}")
    return sorted(missing)


def unsupported(problem: str) -> str:
    return f"{problem}, but fipo needs slime as of {READ_AT}; install that version on every node."
