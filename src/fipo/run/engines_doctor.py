"""`fipo doctor slime` and `fipo doctor verl`: whether the engine is there and fits the plugin. Nothing is started."""

from pathlib import Path

from fipo.engines.slime import contract
from fipo.run.checks import Check, python

FLAG = "--custom-loss-function-path"  # leads slime to the plugin
PLUGIN = """
from fipo.engines.verl.guard import fused_head_loses_gradients  # the package looks at verl's release, and at the name
head = "loses gradients, so fipo refuses use_fused_kernels" if fused_head_loses_gradients() else "keeps all gradients"
print(f"\\nregistered as fipo; verl's fused head {head}")
"""
INSTALL_SLIME = "install slime from its source, or add the folder of its source to PYTHONPATH"
INSTALL_VERL = "run `pip install verl==0.9.1` in the Python that Ray runs"


def diagnose_slime() -> list[Check]:
    """slime, and what the plugin calls of it."""
    found = python("slime", INSTALL_SLIME)
    if not found.ok:
        return [found]
    source = Path(found.found.partition(" in ")[2]).parent
    missing, arguments = contract.lacking(source / "slime"), source / "slime" / "utils" / "arguments.py"
    if not arguments.is_file() or f'"{FLAG}"' not in arguments.read_text(errors="replace"):
        missing.append(FLAG)
    hooks = f"lacks {', '.join(missing)}" if missing else "all that the plugin calls"
    train, clone = source / "train.py", "install slime from its source with pip install -e; its wheel has no train.py"
    return [
        found,
        Check("slime's hooks", not missing, hooks, f"install slime {contract.READ_AT}"),
        Check("slime's train.py", train.is_file(), str(train), clone),
    ]


def diagnose_verl() -> list[Check]:
    """verl, and whether the plugin is registered in it."""
    found = python("verl", INSTALL_VERL)
    return [found, python("fipo's policy loss", INSTALL_VERL, PLUGIN)] if found.ok else [found]
