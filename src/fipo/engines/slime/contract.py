"""What the plugin uses of slime, by name and home: the one place to look when slime moves.

slime is imported when a name is used, never before: a missing slime must end in a sentence, and process groups must be
asked for at every call, because slime rebuilds them when it sleeps.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fipo.errors import FIPOError

READ_AT = "0.3.1 (commit 624b824a)"
HOMES = {
    "mpu": "megatron.core",
    "_maybe_capture_log_probs": "slime.backends.megatron_utils.loss",
    "get_log_probs_and_entropy": "slime.backends.megatron_utils.loss",
    "get_rollout_top_p_logprob_kwargs": "slime.backends.megatron_utils.loss",
    "vanilla_tis_function": "slime.backends.megatron_utils.loss",
    "all_gather_with_cp": "slime.backends.megatron_utils.cp_utils",
    "get_sum_of_sample_mean": "slime.backends.megatron_utils.cp_utils",
    "slice_log_prob_with_cp": "slime.backends.megatron_utils.cp_utils",
    "parse_args": "slime.utils.arguments",
    "load_function": "slime.utils.misc",
    "compute_approx_kl": "slime.utils.ppo_utils",
    "compute_opsm_mask": "slime.utils.ppo_utils",
}


def slime_function(name: str) -> Any:
    """What slime (its Megatron, or miles) calls `name`; a FIPOError says where it was expected."""
    home = HOMES[name]
    if home.startswith("slime.") and "miles" in sys.modules and "slime" not in sys.modules:
        home = "fipo.engines.slime.miles"
    try:
        return getattr(import_module(home), name)
    except (ImportError, AttributeError) as error:
        raise FIPOError(unsupported(f"{home}.{name} cannot be had: {error}")) from error


def check_sources(package: Path) -> None:
    """Raises a FIPOError if the slime in this folder lacks a name of HOMES.

    What has no Megatron backend at all is left to fail by itself.
    """
    if (package / "backends" / "megatron_utils").is_dir() and (missing := lacking(package)):
        raise FIPOError(unsupported(f"{package} does not define {', '.join(missing)}"))


def lacking(package: Path) -> list[str]:
    """What of HOMES the slime in this folder does not define: `module.name`, or `module` where that cannot be read.

    Nothing is imported, for the node that looks need not be able to import Megatron.
    """
    missing = []
    for module in sorted({home for home in HOMES.values() if home.startswith("slime.")}):
        file = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        try:
            defined = _names_in(file)
        except (OSError, SyntaxError, UnicodeDecodeError):
            missing.append(module)
            continue
        missing += sorted(f"{module}.{name}" for name, home in HOMES.items() if home == module and name not in defined)
    return missing


def unsupported(problem: str) -> str:
    """The sentence for a slime that is not as read."""
    return f"{problem}, but fipo needs slime as of {READ_AT}; install that version on every node."


def _names_in(file: Path) -> set[str]:
    """Top-level functions and imported names."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names
