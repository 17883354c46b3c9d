"""`fipo doctor slime`: what this node and a running Ray cluster lack for FIPO in slime. It starts nothing."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fipo import __version__
from fipo.engines.slime import contract

TIMEOUT = 120  # seconds: SGLang's import takes half a minute on a cold disk; Ray waits for a dead cluster forever
RAY_NODES = Path(__file__).with_name("ray_nodes.py")

FLAG = "--custom-loss-function-path"  # leads slime to the plugin

IMPORT = """
import importlib, json, os, sys
try:
    module = importlib.import_module(sys.argv[1])
    answer = {"path": list(getattr(module, "__path__", []))[:1], "version": str(getattr(module, "__version__", ""))}
    if not answer["version"]:
        from importlib.metadata import PackageNotFoundError, version
        try:
            answer["version"] = version(sys.argv[1].partition(".")[0])
        except PackageNotFoundError:
            pass
except BaseException as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(answer), flush=True)
os._exit(0)  # nothing that was imported has the last word
"""


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do where it is missing."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{'ok     ' if self.ok else 'missing'}  {self.name}: {self.found}" + (
            f"; {self.remedy}" * (not self.ok)
        )


def diagnose_slime(as_json: bool = False) -> int:
    """Prints one line a check, or all of them as JSON; returns 0 when nothing is missing, otherwise 2."""
    checks = [*_slime(), _megatron(), _sglang(), _gpus(), *_ray()]
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print(*checks, sep="\n")
    return 0 if all(check.ok for check in checks) else 2


def _slime() -> list[Check]:
    answer = _imported("slime")
    package = _package("slime", answer, "install slime from its source, or add the folder of its source to PYTHONPATH")
    if not package.ok:
        return [package]
    source = Path(answer["path"][0]).parent
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
    return [package, hooks, trainer]


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""


def _megatron() -> Check:
    answer = _imported("megatron.core")
    check = _package(
        "Megatron-LM", answer, "install Megatron-LM from its source, or add the folder of its source to PYTHONPATH"
    )
    if check.ok and not Path(answer["path"][0]).with_name("training").is_dir():
        return replace(
            check, ok=False, found=f"{check.found}, without megatron.training, as in the wheel megatron-core"
        )
    return check


def _sglang() -> Check:
    return _package("SGLang", _imported("sglang"), "install SGLang, as slime's Docker image does")


def _package(name: str, answer: dict[str, Any], remedy: str) -> Check:
    if "error" in answer:
        return Check(name, False, answer["error"], remedy)
    if not answer["path"]:
        return Check(name, False, "is a file or an empty folder of that name, not the package", remedy)
    return Check(name, True, f"{answer['version'] or 'unknown version'} in {answer['path'][0]}", remedy)


def _gpus() -> Check:
    count = torch.cuda.device_count()
    return Check("GPUs", count > 0, f"{count} on this node", "run this on a node with GPUs and a CUDA build of torch")


def _ray() -> list[Check]:
    """The same version of fipo on every node, because Ray's actors import the loss there."""
    package = _package("Ray", _imported("ray"), "install Ray, as slime's requirements do")
    if not package.ok:
        return [package]
    answer = _run(str(RAY_NODES))
    if "error" in answer:
        return [package, Check("Ray cluster", False, answer["error"], "look at `ray status`")]
    if not answer["nodes"]:
        return [package, Check("Ray cluster", True, "none runs here, so other nodes were not looked at")]
    return [package, *(_node(node) for node in answer["nodes"])]


def _node(node: dict[str, Any]) -> Check:
    has = f"fipo {node['fipo']}" if "fipo" in node else node["error"]
    return Check(
        f"Ray node {node['address']}",
        node.get("fipo") == __version__,
        f"{has}, {node['gpus']:g} GPUs",
        f"install fipo {__version__} there with the Python that Ray runs",
    )


def _imported(module: str) -> dict[str, Any]:
    return _run("-c", IMPORT, module)


def _run(*arguments: str) -> dict[str, Any]:
    """The JSON on the last line that a Python of its own prints, so that no import can end, hang or change this one."""
    try:
        # -P: what lies in the current folder is not there for Ray's actors either.
        done = subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {TIMEOUT} seconds"}
    if done.returncode < 0:
        return {"error": f"ended with {signal.Signals(-done.returncode).name}"}
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"error": (done.stderr.strip() or f"ended with exit code {done.returncode}").splitlines()[-1]}
    if "error" in answer:
        answer["error"] = answer["error"].strip().splitlines()[0].rstrip(".;: ")
    return answer
