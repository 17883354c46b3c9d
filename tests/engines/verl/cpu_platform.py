"""verl's engines on a plain CPU with gloo, through verl's own plugin point for platforms. For tests only.

VERL_USE_EXTERNAL_MODULES=cpu_platform VERL_PLATFORM=cpu; Ray is told to have as many GPUs as there shall be ranks.
"""

import types
from contextlib import nullcontext

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

GIBIBYTE = 2**30
BOTH_BACKENDS = "cpu:gloo,cpu:gloo"  # what verl asks for: one backend for the host, one for the device


def _device_module():
    """`torch.cpu` with the questions that verl asks of `torch.cuda`."""
    module = types.ModuleType("cpu_as_accelerator")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in torch.cpu.__all__})
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        setattr(module, name, lambda *_, **__: 0)
    for name in ("empty_cache", "ipc_collect", "set_device"):
        setattr(module, name, lambda *_, **__: None)
    module.mem_get_info = lambda *_, **__: (8 * GIBIBYTE, 16 * GIBIBYTE)
    module.get_device_name = lambda *_, **__: "cpu"
    module.manual_seed = module.manual_seed_all = torch.manual_seed
    module.get_rng_state = lambda *_, **__: torch.get_rng_state()
    module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    return module


def _always(answer):
    return lambda self, *_, **__: answer


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    device_name = "cpu"
    vendor_name = "generic"
    device_module = _device_module()
    is_available = _always(True)
    is_ipc_supported = _always(False)
    current_device = _always(torch.device("cpu"))
    device_count = _always(1)
    get_device_capability = _always((None, None))
    communication_backend_name = _always("gloo")
    visible_devices_envvar = _always("CUDA_VISIBLE_DEVICES")
    ray_resource_name = _always("GPU")
    ray_noset_envvars = _always([])
    nvtx_range = _always(nullcontext())
    set_device = synchronize = set_allocator_settings = empty_cache = _always(None)
    profiler_start = profiler_stop = cudart = _always(None)

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


def _once(initialise):
    def init_process_group(*args, **kwargs):
        if kwargs.get("backend") == BOTH_BACKENDS:  # torch takes a device once
            kwargs["backend"] = "cpu:gloo"
        return initialise(*args, **kwargs)

    return init_process_group


torch.distributed.init_process_group = _once(torch.distributed.init_process_group)
