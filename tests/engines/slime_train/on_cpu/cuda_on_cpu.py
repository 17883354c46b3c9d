"""What Megatron and slime ask of torch.cuda, and device="cuda", answered for the CPU."""

import collections
import contextlib
import functools
import types

import torch
import torch.utils._device


class Stream:
    """Whatever it is asked, it does nothing."""

    def __getattr__(self, name):
        return lambda *_, **__: None


def complete(_torch):
    _constructors()
    _tensors_and_modules()
    _questions()
    # PyPI's torchvision cannot load its operators beside a CPU build of torch, and asks for these two by name.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _constructors():
    """Without pinned memory, and on the CPU where Megatron says "cuda"."""
    # `with torch.device(…)` knows constructors by identity and remembers them: it must have seen the real ones.
    torch.utils._device._device_constructors()

    def on_cpu(make):
        @functools.wraps(make)
        def wrapped(*args, pin_memory=False, device=None, **kwargs):
            if device is not None:
                kwargs["device"] = "cpu" if str(device).startswith("cuda") else device
            return make(*args, **kwargs)

        return wrapped

    for name in ("tensor", "empty", "zeros", "empty_like"):
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _tensors_and_modules():
    type_of = torch.Tensor.type

    def cuda_type(self, dtype=None, *args, **kwargs):  # Megatron's optimizers ask whether it is torch.cuda.FloatTensor
        return (
            type_of(self).replace("torch.", "torch.cuda.") if dtype is None else type_of(self, dtype, *args, **kwargs)
        )

    torch.Tensor.type = cuda_type
    torch.nn.Module.cuda = lambda self, *_, **__: self


def _questions():
    answers = {
        "current_device": lambda: "cpu",
        "get_device_properties": lambda *_: types.SimpleNamespace(name="cpu", major=8, minor=0),
        "Stream": Stream,
        "current_stream": lambda *_: Stream(),
        "stream": lambda *_: contextlib.nullcontext(),
        "synchronize": lambda *_: None,
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(seed),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "default_generators": collections.defaultdict(lambda: torch.default_generator),
        "_lazy_call": lambda call, **_: call(),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("get_rng_state", "set_rng_state"):
        setattr(torch.cuda.random, name, answers[name])
