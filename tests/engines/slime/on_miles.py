"""miles' own loss in the shape of slime's, for the tests that run both."""

import torch.distributed as dist
from megatron.core import mpu
from miles.backends.training_utils import loss, parallel
from miles.utils.ft_utils.process_group_utils import GroupInfo

__all__ = ["ARGUMENTS", "initialize", "loss_function"]


ARGUMENTS = {  # of miles alone
    "global_batch_size": None,
    "observe_training_entropy": True,  # or it logs 0
    "qkv_format": "thd",
    "skip_actor_forward_only": False,
    "true_on_policy_mode": False,
    "use_dynamic_global_batch_size": False,
}


def loss_function(args, batch, micro_batches, rollouts, logits):
    scaled = {"apply_megatron_loss_scaling": True, "num_rollouts": rollouts}
    return loss.loss_function(args, batch, micro_batches, logits, **scaled)


def initialize(cp_size):
    """mpu's groups, and miles' own state, which knows them too."""
    mpu.initialize(cp_size)
    alone = GroupInfo(rank=0, size=1, group=mpu.get_tensor_model_parallel_group())
    group = mpu.get_context_parallel_group()
    cp = GroupInfo(rank=dist.get_rank(group), size=group.size(), group=group)
    world = GroupInfo(dist.get_rank(), dist.get_world_size(), mpu.get_data_parallel_group(True))
    dp = GroupInfo(mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size(), None)
    others = dict.fromkeys(("tp", "pp", "ep", "etp", "indep_dp"), alone)
    parallel.set_parallel_state(parallel.ParallelState(intra_dp=dp, intra_dp_cp=world, cp=cp, **others))
