"""A layer for slime's --spec in the place of TransformerEngine's, which needs CUDA: Megatron's own modules, and packed
attention in plain torch, with keys and values gathered over slime's zigzag context parallelism."""

from itertools import pairwise

import torch
from megatron.core import mpu
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from torch.nn import functional


class NormedColumnParallelLinear(ColumnParallelLinear):
    """With the parameter names of TELayerNormColumnParallelLinear, which slime's converters expect."""

    def __init__(self, input_size, output_size, *, config, **others):
        super().__init__(input_size, output_size, config=config, **others)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))

    def forward(self, hidden, *args, **kwargs):
        normed = functional.rms_norm(hidden, hidden.shape[-1:], self.layer_norm_weight, self.config.layernorm_epsilon)
        return super().forward(normed, *args, **kwargs)


class PackedAttention(MegatronModule):
    """Causal attention within each packed sequence; this rank holds two chunks of each, r and 2·size − 1 − r."""

    def __init__(self, config, *_, **__):
        super().__init__(config)

    def forward(self, query, key, value, *_, packed_seq_params, **__):
        size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
        pairs = self._of_all_ranks(torch.stack([key, value], 1), size)  # ranks, local tokens, 2, groups, head
        outputs = []
        for start, end in pairwise((packed_seq_params.cu_seqlens_q // size).tolist()):
            places = _zigzag(end - start, size)
            order = places.flatten().argsort()
            keys, values = pairs[:, start:end].flatten(0, 1)[order].permute(1, 2, 0, 3)
            mask = places[rank][:, None] >= torch.arange(len(order))
            own = query[start:end].transpose(0, 1)
            output = functional.scaled_dot_product_attention(own, keys, values, attn_mask=mask, enable_gqa=True)
            outputs.append(output.transpose(0, 1).flatten(1))
        return torch.cat(outputs)

    def _of_all_ranks(self, pairs, size):
        if size > 1:
            group = mpu.get_context_parallel_group()
            group = getattr(group, "group", group)  # slime's wrapper does not forward torch 2.13's all_gather_single
            pairs = gather_from_sequence_parallel_region(pairs, group=group)
        return pairs.unflatten(0, (size, -1))


def _zigzag(length, size):
    """(size, length): where each rank's local tokens of a sequence lie in it."""
    if size == 1:
        return torch.arange(length)[None]
    chunks = torch.arange(size * length).view(2 * size, -1)
    return torch.stack([torch.cat([chunks[rank], chunks[-1 - rank]]) for rank in range(size)])


def spec(args, config, vp_stage=None):
    layer = get_gpt_layer_local_spec(qk_layernorm=args.qk_layernorm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp  # they are in the linear layers
    parts.self_attention.submodules.linear_qkv = parts.mlp.submodules.linear_fc1 = NormedColumnParallelLinear
    parts.self_attention.submodules.core_attention = PackedAttention
    return layer
