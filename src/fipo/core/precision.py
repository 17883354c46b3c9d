"""What the hardware and this torch compute exactly, and how to keep them to it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def exact_products(x: Tensor) -> Iterator[torch.dtype]:
    """Keeps autocast and TF32 away from products; yields the dtype in which those of `x` are exact enough."""
    with torch.autocast(x.device.type, enabled=False) if not x.is_meta else nullcontext():
        yield widest_float(x.device) if _float32_products_are_rounded() else x.dtype


@contextmanager
def fast_bfloat16(wanted: bool) -> Iterator[None]:
    """Lets float32 products run on a processor's bfloat16 units, which are exact for factors that were bfloat16 before:
    of these only the gradient of the logits is rounded, as in any bfloat16 backward. Result and sums stay float32."""
    if not (wanted and hasattr(torch.backends, "fp32_precision")):  # since torch 2.9
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def processor_has_bfloat16() -> bool:
    """Whether it computes in bfloat16 (AVX-512 BF16 or AMX); without, that is ten times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@lru_cache
def multiplies_into_float32(device: torch.device) -> bool:
    """Whether this torch adds a product of bfloat16 factors to a float32 tensor on `device`; newer ones do on CUDA.

    Else heads are multiplied in float32, which is as exact but slower.
    """
    if device.type in ("cpu", "mps"):
        return False
    factor, out = torch.ones(8, 8, dtype=torch.bfloat16, device=device), torch.zeros(8, 8, device=device)
    try:
        torch.addmm(out, factor, factor, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError):
        logger.warning(f"torch {torch.__version__} cannot multiply bfloat16 into float32; a newer one is faster here.")
        return False
    return True


def _float32_products_are_rounded() -> bool:
    """Whether a setting may round them; a graph cannot ask."""
    if torch.compiler.is_compiling():
        return True
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):  # before torch 2.9
        return torch.get_float32_matmul_precision() != "highest" or backends.cuda.matmul.allow_tf32
    settings = (backends, backends.cuda.matmul, backends.mkldnn.matmul)  # type: ignore[attr-defined]
    return any(setting.fp32_precision not in ("none", "ieee") for setting in settings)
