"""`fipo doctor slime`: what this node and a running Ray cluster lack for FIPO in slime."""

from dataclasses import replace
from pathlib import Path

from fipo.checks import Check, package
from fipo.engines import doctor
from fipo.engines.slime import contract

FLAG = "--custom-loss-function-path"  # leads slime to the plugin


def diagnose_slime() -> list[Check]:
    """All checks; nothing is started."""
    return [*_slime(), _megatron(), _sglang(), doctor.gpus(), *doctor.ray("install Ray, as slime's requirements do")]


def _slime() -> list[Check]:
    found, folder = package(
        "slime", "slime", "install slime from its source, or add the folder of its source to PYTHONPATH"
    )
    if not found.ok:
        return [found]
    source = Path(folder).parent
    missing = contract.lacking(source / "slime")
    if f'"{FLAG}"' not in _text(source / "slime" / "utils" / "arguments.py"):
        missing.append(FLAG)
    hooks = Check(
        "slime's hooks",
        not missing,
        f"lacks {', '.join(missing)}" if missing else "all that the plugin calls",
        f"install slime {contract.READ_AT}",
    )
    trainer = Check(
        "slime's train.py",
        (source / "train.py").is_file(),
        str(source / "train.py"),
        "install slime from its source with pip install -e, because its wheel has no train.py",
    )
    return [found, hooks, trainer]


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""


def _megatron() -> Check:
    found, folder = package(
        "Megatron-LM", "megatron.core", "install Megatron-LM from its source, or add its folder to PYTHONPATH"
    )
    if found.ok and not Path(folder).with_name("training").is_dir():
        return replace(
            found, ok=False, found=f"{found.found}, without megatron.training, as in the wheel megatron-core"
        )
    return found


def _sglang() -> Check:
    return package("SGLang", "sglang", "install SGLang, as slime's Docker image does")[0]
