"""`fipo doctor verl`, and what slime's and verl's nodes have in common: GPUs, and Ray, whose actors import the loss.

verl's checks are not in its own package, which cannot be imported where verl is missing.
"""

from pathlib import Path
from typing import Any

import torch

from fipo import __version__
from fipo.checks import Check, package, run

RAY_NODES = Path(__file__).with_name("ray_nodes.py")
PLUGIN = """
import json
from fipo.engines.verl.guard import fused_head_loses_gradients  # the package looks at verl's release, and at the name
print("\\n" + json.dumps({"loses": fused_head_loses_gradients()}))
"""
INSTALL_VERL = "run `pip install verl==0.9.1` in the Python that Ray runs"


def diagnose_verl() -> list[Check]:
    """All checks; nothing is started."""
    found, _ = package("verl", "verl", INSTALL_VERL)
    return [found, *(_plugin() if found.ok else ()), gpus(), *ray(INSTALL_VERL)]


def _plugin() -> list[Check]:
    answer = run("-c", PLUGIN)
    if "error" in answer:
        return [Check("fipo's policy loss", False, answer["error"], INSTALL_VERL)]
    head = "loses gradients, so fipo refuses use_fused_kernels" if answer["loses"] else "keeps all gradients"
    return [Check("fipo's policy loss", True, "registered as fipo"), Check("verl's fused head", True, head)]


def gpus() -> Check:
    count = torch.cuda.device_count()
    return Check("GPUs", count > 0, f"{count} on this node", "run this on a node with GPUs and a CUDA build of torch")


def ray(remedy: str) -> list[Check]:
    """Ray, and the version of fipo on every node of a running cluster. It starts nothing."""
    here, _ = package("Ray", "ray", remedy)
    if not here.ok:
        return [here]
    answer = run(str(RAY_NODES))
    if "error" in answer:
        return [here, Check("Ray cluster", False, answer["error"], "look at `ray status`")]
    if not answer["nodes"]:
        return [here, Check("Ray cluster", True, "none runs here, so other nodes were not looked at")]
    return [here, *(_node(node) for node in answer["nodes"])]


def _node(node: dict[str, Any]) -> Check:
    has = f"fipo {node['fipo']}" if "fipo" in node else node["error"]
    return Check(
        f"Ray node {node['address']}",
        node.get("fipo") == __version__,
        f"{has}, {node['gpus']:g} GPUs",
        f"install fipo {__version__} there with the Python that Ray runs",
    )
