"""Run by test_engine.py on every rank: verl's own worker, engine and ppo_loss take one update of a fixed batch.

torchrun engine_run.py MODEL OUT [fused]   (OUT: what rank 0 saves, {case: {"gradients", "metrics"}};
                                            OUT.traces: every case's traces)
"""

import sys
from functools import partial

import torch
import verl  # noqa: F401  registers the CPU platform before anything asks for one
from engine_batch import ROWS, batch
from overrides import ACTOR, FIPO, LOSS, ON_CPU, actor_config
from support.one_truth import PARAMS
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers.config import HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

from fipo.engines.verl import loss
from fipo.engines.verl.traced_rows import Traces

CASES = {  # name: how the engine splits a rank's share of the batch
    "whole": {},
    "micro 2": {"micro_batch_size_per_gpu": 2},
    "micro 1": {"micro_batch_size_per_gpu": 1},
    "dynamic": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 64},
    "no padding": {"micro_batch_size_per_gpu": 2, "use_remove_padding": True},
    "dynamic, no padding": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 64, "use_remove_padding": True},
}
FUSED = {"use_remove_padding": True, "use_fused_kernels": True}


def main(model, out, fused=""):
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    worker = make_worker(model)
    share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    data = TensorDict({name: tensor[share] for name, tensor in batch(model).items()}, batch_size=ROWS // world)
    if fused:  # in this order: verl changes the model's class for good
        plain = update(worker, data.clone(), CASES["whole"])
        results = {"whole": plain, "fused kernels": update(make_worker(model, fused=True), data.clone(), FUSED)}
    else:
        results = {name: update(worker, data.clone(), split) for name, split in CASES.items()}
        for name, split in CASES.items():
            trace(worker, data.clone(), split, f"{out}.traces/{name}")
    if rank == 0:
        torch.save(results, out)
    torch.distributed.destroy_process_group()


def make_worker(model, fused=False):
    settings = {"ppo_mini_batch_size": ROWS, "clip_ratio_high": 0.28, "clip_ratio_c": 10.0}
    # With a learning rate of 0 every case starts from the same weights.
    settings |= {"optim.lr": 0, "optim.clip_grad": 1e9, "optim.total_training_steps": 10}
    overrides = [f"{ACTOR}.{name}={value}" for name, value in settings.items()]
    actor = actor_config(*FIPO, *ON_CPU, f"+{LOSS}.decay_rate={PARAMS.decay_rate}", *overrides)
    # log-probs out of the model's forward; its kernel in torch
    kernels = {"use_fused_kernels": fused, "fused_kernel_options": {"impl_backend": "torch"}}
    off = dict.fromkeys(("load_tokenizer", "use_remove_padding", "enable_gradient_checkpointing"), False)
    model_config = HFModelConfig(path=model, override_config={"attn_implementation": "sdpa"}, **kernels, **off)
    actor.model_config = model_config
    parts = {"engine_config": actor.engine, "optimizer_config": actor.optim, "checkpoint_config": actor.checkpoint}
    worker = TrainingWorker(TrainingWorkerConfig(model_type="language_model", model_config=model_config, **parts))
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    return worker


def trace(worker, share, split, folder):
    """Two rollouts of one update and two epochs: the first is counted, the second traced."""
    actor = worker.loss_fn.keywords["config"]
    object.__setattr__(actor.policy_loss, "trace_dir", folder)
    object.__setattr__(actor.policy_loss, "trace_every", 1)
    object.__setattr__(actor, "ppo_epochs", 2)
    actor.policy_loss.__post_init__()
    loss._traces = Traces()  # another run's
    for step in (1, 2):
        update(worker, share.clone(), split, epochs=2, global_steps=[step] * len(share))


def update(worker, share, split, epochs=1, **of_rows):
    split = {"micro_batch_size_per_gpu": len(share), "use_dynamic_bsz": False, "use_remove_padding": False, **split}
    data = left_right_2_no_padding(share)
    for name, values in of_rows.items():
        tensordict_utils.assign_non_tensor_stack(data, name, values)
    how = {"temperature": 1.0, "calculate_entropy": False, "pad_token_id": 0, "compute_loss": True, "epochs": epochs}
    how |= {"global_batch_size": ROWS, "mini_batch_size": ROWS, "seed": 0, "dataloader_kwargs": {"shuffle": False}}
    tensordict_utils.assign_non_tensor(data, **how, **split)
    gradients = {}

    def keep_gradients(*_):
        for name, parameter in worker.engine.module.named_parameters():
            gradients[name] = parameter.grad.full_tensor().clone()

    hook = worker.engine.optimizer.register_step_pre_hook(keep_gradients)
    metrics = tensordict_utils.get(worker.train_mini_batch(data), "metrics")
    hook.remove()
    return {"gradients": gradients, "metrics": {name: float(values[0]) for name, values in metrics.items()}}


if __name__ == "__main__":
    main(*sys.argv[1:])
