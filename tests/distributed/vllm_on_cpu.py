"""What vLLM and TRL lack on CPUs, for tests alone: `prepare` in the trainer, `register` in a vLLM server."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partialmethod

import torch
import torch.distributed as dist

NAME = "gloo"


def prepare():
    """The engine computes in float32 as the trainer does, compiles nothing, and can be given new weights."""
    import vllm
    from vllm.model_executor.layers import utils

    def keep_weights(layer, remove_weight):  # vLLM packs them on CPUs and drops them, so that none is left to write to
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep_weights
    vllm.LLM.__init__ = partialmethod(vllm.LLM.__init__, enforce_eager=True, dtype="float32")
    send_over_gloo()


def group(address, port, rank, size):
    store = dist.PrefixStore("weights", dist.TCPStore(address, port, size, is_master=rank == 0))
    return dist.ProcessGroupGloo(store, rank, size)


def broadcast(members, weight):
    members.broadcast([weight], dist.BroadcastOptions()).wait()


def register():
    """The server's half."""
    from vllm.distributed.weight_transfer import base
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader import reload

    @dataclass
    class Init(base.WeightTransferInitInfo):
        master_address: str
        master_port: int
        rank_offset: int
        world_size: int

    @dataclass
    class Update(base.WeightTransferUpdateInfo):
        names: list
        dtype_names: list
        shapes: list

    class Gloo(base.WeightTransferEngine):
        init_info_cls, update_info_cls = Init, Update

        def init_transfer_engine(self, info):
            rank = info.rank_offset + self.parallel_config.rank
            self.members = group(info.master_address, info.master_port, rank, info.world_size)

        def start_weight_update(self):
            reload.initialize_layerwise_reload(self.model)

        def finish_weight_update(self):
            reload.finalize_layerwise_reload(self.model, self.model_config)

        def receive_weights(self, info):
            for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, dtype))
                broadcast(self.members, weight)
                self.model.load_weights([(name, weight)])

        def shutdown(self):
            self.members = None

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, Gloo)


def send_over_gloo():
    """The trainer's half of the weights' way to a server: TRL's own is NCCL, between GPUs."""
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(self, device=0):
        size = self.get_world_size() + 1
        info = {"master_address": "127.0.0.1", "master_port": self.group_port, "rank_offset": 1, "world_size": size}
        with ThreadPoolExecutor(1) as pool:
            url = f"{self.base_url}/init_weight_transfer_engine"
            answer = pool.submit(self._post, url, json={"init_info": info})
            self.communicator = group("127.0.0.1", self.group_port, 0, size)
            answer.result()

    def update_named_params(self, metadata, named_params):
        names, dtypes, shapes = (list(field) for field in zip(*metadata, strict=True))
        update = {"names": names, "dtype_names": dtypes, "shapes": shapes}
        self._start_weight_update()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self._post, f"{self.base_url}/update_weights", json={"update_info": update})
            for _, weight in named_params:
                broadcast(self.communicator, weight.detach().contiguous())
            answer.result()
        self._finish_weight_update()

    VLLMClient.init_communicator, VLLMClient.update_named_params = init_communicator, update_named_params
