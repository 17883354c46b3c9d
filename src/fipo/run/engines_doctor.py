"""`fipo doctor slime` and `fipo doctor verl`: what this node lacks. Nothing is started; `ray status` tells the rest."""

from dataclasses import replace
from pathlib import Path

import torch

from fipo.checks import Check, package, run
from fipo.engines.slime import contract

FLAG = "--custom-loss-function-path"  # leads slime to the plugin
PLUGIN = """
import json
from fipo.engines.verl.guard import fused_head_loses_gradients  # the package looks at verl's release, and at the name
print("\\n" + json.dumps({"loses": fused_head_loses_gradients()}))
"""
INSTALL_VERL = "run `pip install verl==0.9.1` in the Python that Ray runs"
INSTALL_RAY = "install Ray, as the engine's requirements do"


def diagnose_slime() -> list[Check]:
    """slime, what the plugin calls of it, and what it stands on."""
    megatron, folder = package(
        "Megatron-LM", "megatron.core", "install Megatron-LM from its source, or add its folder to PYTHONPATH"
    )
    if megatron.ok and not Path(folder).with_name("training").is_dir():
        found = f"{megatron.found}, without megatron.training, as in the wheel megatron-core"
        megatron = replace(megatron, ok=False, found=found)
    sglang = package("SGLang", "sglang", "install SGLang, as slime's Docker image does")[0]
    return [*_slime(), megatron, sglang, _gpus(), package("Ray", "ray", INSTALL_RAY)[0]]


def _slime() -> list[Check]:
    remedy = "install slime from its source, or add the folder of its source to PYTHONPATH"
    found, folder = package("slime", "slime", remedy)
    if not found.ok:
        return [found]
    source = Path(folder).parent
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
    """verl, whether the plugin is registered in it, and what it stands on."""
    found, _ = package("verl", "verl", INSTALL_VERL)
    checks = [found]
    if found.ok:
        answer = run("-c", PLUGIN)
        registered = answer.get("error", "registered as fipo")
        checks.append(Check("fipo's policy loss", "error" not in answer, registered, INSTALL_VERL))
        if "error" not in answer:
            head = "loses gradients, so fipo refuses use_fused_kernels" if answer["loses"] else "keeps all gradients"
            checks.append(Check("verl's fused head", True, head))
    return [*checks, _gpus(), package("Ray", "ray", INSTALL_RAY)[0]]


def _gpus() -> Check:
    count = torch.cuda.device_count()
    return Check("GPUs", count > 0, f"{count} on this node", "run this on a node with GPUs and a CUDA build of torch")
