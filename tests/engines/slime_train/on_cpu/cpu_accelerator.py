"""The CPU as an accelerator of slime's, through slime's own registry: SLIME_ACCELERATOR=cpu."""

import torch

GIBIBYTE = 2**30


def complete(registry):
    """`registry` is the module slime.utils.accelerator."""

    def always(answer):
        return lambda self, *_, **__: answer

    class CPUAccelerator(registry.Accelerator):
        name = device_type = "cpu"
        communication_backend_name = "gloo"
        is_available = always(True)
        device = always(torch.device("cpu"))
        current_device = device_name = always("cpu")
        device_count = always(1)
        mem_get_info = always((8 * GIBIBYTE, 8 * GIBIBYTE))  # below 3 free, slime collects garbage at every collective
        memory_allocated = memory_reserved = always(0)
        set_device = synchronize = empty_cache = current_stream = always(None)

    registry.register_accelerator("cpu", CPUAccelerator)
