"""The CPU as an accelerator of slime's, through slime's own registry: SLIME_ACCELERATOR=cpu."""

import torch

GIBIBYTE = 2**30


def complete(registry):
    """`registry` is the module slime.utils.accelerator."""

    class CPUAccelerator(registry.Accelerator):
        name = device_type = "cpu"
        communication_backend_name = "gloo"

        def is_available(self):
            return True

        def device(self, index=None):
            return torch.device("cpu")

        def current_device(self, index=None):
            return "cpu"

        def device_count(self):
            return 1

        def mem_get_info(self, device=None):
            return 8 * GIBIBYTE, 8 * GIBIBYTE  # below 3 free, slime collects garbage at every collective

        def memory_allocated(self, device=None):
            return 0

        def _nothing(self, *_):
            return None

        device_name = current_device
        memory_reserved = memory_allocated
        set_device = synchronize = empty_cache = current_stream = _nothing

    registry.register_accelerator("cpu", CPUAccelerator)
