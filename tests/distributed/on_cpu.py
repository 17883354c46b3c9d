"""`fipo` on two CPU cores as it runs on GPUs, for tests alone: `[accelerate launch …] on_cpu.py train …`."""

import os
import sys

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch.distributed as dist
from accelerate import state
from accelerate.utils import DistributedType
from distributed import sampling, vllm_on_cpu

from fipo.cli import main


def take_gloo_for_a_gpu_backend():
    """Without a GPU accelerate starts plain data parallelism where FSDP is configured."""

    def prepare(self, cpu=False, sagemaker_dp=False, backend=None):
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = prepare


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        take_gloo_for_a_gpu_backend()
    if "--use_vllm=true" in sys.argv:
        vllm_on_cpu.prepare()
    sampling.make_independent_of_processes()
    sys.exit(main())
