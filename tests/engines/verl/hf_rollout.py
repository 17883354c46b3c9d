"""A rollout engine for verl's agent loop: a Ray actor that samples from a transformers model, token by token.

verl ships vLLM, SGLang and TensorRT-LLM, which need GPUs. For tests only. VERL_USE_EXTERNAL_MODULES=hf_rollout.
"""

import ray
import torch
from transformers import AutoModelForCausalLM
from verl.workers.rollout import base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

NAME = "hf_on_cpu"


def server_name(rank):
    return f"hf_server_{rank}"


class Trainer(BaseRollout):
    """The trainer's side: sends its weights to the server of its rank."""

    def __init__(self, config, model_config, device_mesh, replica_rank=-1):
        super().__init__(config, model_config, device_mesh)
        self.rank = torch.distributed.get_rank() if replica_rank == -1 else replica_rank

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, global_steps=None, **_):
        state = {name: tensor.detach().clone() for name, tensor in weights}
        await ray.get_actor(server_name(self.rank)).load.remote(state, global_steps)


class Server:
    def __init__(self, path, response_length):
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.response_length = response_length
        self.step = None

    async def load(self, state, step):
        self.model.load_state_dict(state)
        self.step = step

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        ids, logps = self.sample(list(prompt_ids), sampling_params["temperature"])
        extra = {"global_steps": self.step}
        return TokenOutput(token_ids=ids, log_probs=logps, stop_reason="completed", num_preempted=0, extra_fields=extra)

    def sample(self, prompt_ids, temperature):
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "max_new_tokens": self.response_length}
        out = self.model.generate(torch.tensor([prompt_ids]), **how, return_dict_in_generate=True, output_scores=True)
        ids = out.sequences[0, len(prompt_ids) :].tolist()
        return ids, [score.log_softmax(-1)[0, token].item() for score, token in zip(out.scores, ids, strict=True)]

    async def nothing(self, *_, **__):
        pass

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    abort_all_requests = resume_generation = start_profile = stop_profile = nothing


class Replica(RolloutReplica):
    async def launch_servers(self):
        remote = ray.remote(Server).options(name=server_name(self.replica_rank), max_concurrency=100, num_cpus=0)
        server = remote.remote(self.model_config.path, self.config.response_length)
        self.servers, self._server_handle = [server], server
        self._server_address = f"{NAME}-{self.replica_rank}"


RolloutReplicaRegistry.register(NAME, lambda: Replica)
base._ROLLOUT_REGISTRY[NAME, "async"] = f"{__name__}.{Trainer.__name__}"
