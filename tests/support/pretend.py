"""An accelerator that is none: its tensors live on the CPU and say that they do not.

What a CPU forgives it refuses: tensors of two devices in one operation. And it notes whatever would make a GPU's host
wait: values that are read back, sizes that depend on data, copies that block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"


class _Backend(_DummyBackendModule):
    """What torch asks of a backend's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)
SIZED_BY_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal"}
COPIES = {"_to_copy", "copy_", "_copy_from"}

_waits: list[str] = []


class Held(torch.Tensor):
    """A tensor of the accelerator; `raw` is where its values are."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "Held":
        held = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        held.raw = raw
        return held

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):  # which torch refuses subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, arguments=(), named=None):
        return _run(op, *arguments, **(named or {}))


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """The operations that would have made the host wait, as they happen."""
    _waits.clear()
    yield _waits


def _run(op, *arguments, **named):
    given = tree_leaves((arguments, named))
    held = [x for x in given if isinstance(x, Held)]
    name = op._schema.name.split("::")[1]
    others = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, Held) and x.dim()]
    if name not in COPIES and held and others:
        raise RuntimeError(f"{op} got tensors of the devices {DEVICE} and {others[0].device}")
    if _makes_wait(op, name, arguments, named):
        _waits.append(str(op))
    device = named.get("device")
    stays = name in COPIES and device is not None and torch.device(device).type == "cpu"
    raw_arguments, raw_named = tree_map(_raw, (arguments, named))
    if op is torch.ops.aten.addmm.dtype_out:  # which accelerators have, and CPUs have not
        c, a, b, dtype = raw_arguments
        op, raw_arguments = torch.ops.aten.addmm.out, (c, a.to(dtype), b.to(dtype))
    result = op(*raw_arguments, **raw_named)
    if stays:
        return result
    known = {id(x.raw): x for x in held}  # what an operation in place returns
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Held(x), result)


def _raw(value):
    if isinstance(value, Held):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _makes_wait(op, name, arguments, named) -> bool:
    if name in SIZED_BY_DATA or name == "_local_scalar_dense":
        return True
    if name in COPIES:
        devices = {x.device.type for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)}
        if named.get("device") is not None:
            devices.add(torch.device(named["device"]).type)
        non_blocking = named.get("non_blocking") or (name == "copy_" and len(arguments) > 2 and arguments[2])
        return len(devices) > 1 and not non_blocking
    if name == "repeat_interleave":
        return named.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in arguments[1])
    return False


_fallback, _own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_fallback.fallback(_run, "PrivateUse1")
_fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _name, _op in {
    "_to_copy": torch.ops.aten._to_copy.default,  # the fallback does not reach what torch.tensor does
    "arange": torch.ops.aten.arange.default,  # in the fallback these grow a tensor, which `Held` cannot
    "arange.start": torch.ops.aten.arange.start,
    "arange.start_step": torch.ops.aten.arange.start_step,
    "addmm.dtype_out": torch.ops.aten.addmm.dtype_out,
}.items():
    _own.impl(_name, partial(_run, _op), "PrivateUse1")
