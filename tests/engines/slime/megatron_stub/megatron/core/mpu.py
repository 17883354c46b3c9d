"""Megatron's groups for tests: ranks in order dp × cp, as small as slime's loss needs it, and rebuilt at will."""

import torch.distributed as dist

_groups = {}


def initialize(cp_size):
    """Groups of `cp_size` neighbouring ranks; call it again for another shape, as slime does after a sleep."""
    world, rank = dist.get_world_size(), dist.get_rank()
    _groups.clear()
    for first in range(0, world, cp_size):
        members = list(range(first, first + cp_size))
        group = dist.new_group(members)
        if rank in members:
            _groups["cp"] = group
    for member in range(world):
        group = dist.new_group([member])
        if rank == member:
            _groups["tp"] = group


def get_context_parallel_group():
    return _groups["cp"]


def get_context_parallel_world_size():
    return dist.get_world_size(_groups["cp"])


def get_context_parallel_rank():
    return dist.get_rank(_groups["cp"])


def get_tensor_model_parallel_group():
    return _groups["tp"]


def get_tensor_model_parallel_rank():
    return 0


def get_data_parallel_group(with_context_parallel=False):
    assert with_context_parallel, "the tests need no other"
    return dist.group.WORLD


def get_data_parallel_rank(with_context_parallel=False):
    return dist.get_rank() // (1 if with_context_parallel else get_context_parallel_world_size())


def get_data_parallel_world_size(with_context_parallel=False):
    return dist.get_world_size() // (1 if with_context_parallel else get_context_parallel_world_size())
