"""The zigzag layout, by its definition: rank r owns the logits of chunks r and 2·cp − 1 − r of every sequence."""

import torch
import torch.distributed.nn
from megatron.core import mpu


def logit_positions(total_length, response_length, cp_size, cp_rank):
    """Positions of this rank's logits that predict a response token, in the order in which the rank holds them."""
    chunk = -(-total_length // (2 * cp_size))
    owned = [p for j in (cp_rank, 2 * cp_size - 1 - cp_rank) for p in range(j * chunk, (j + 1) * chunk)]
    return [p for p in owned if total_length - response_length - 1 <= p < total_length - 1]


def _response_tokens(total_length, response_length):
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    first = total_length - response_length - 1
    return [p - first for p in logit_positions(total_length, response_length, size, rank)]


def slice_log_prob_with_cp(log_prob, total_length, response_length):
    if mpu.get_context_parallel_world_size() == 1:
        return log_prob
    return log_prob[_response_tokens(total_length, response_length)]


def all_gather_with_cp(tensor, total_length, response_length):
    if mpu.get_context_parallel_world_size() == 1:
        return tensor
    whole = tensor.new_zeros(response_length, *tensor.shape[1:]).index_put(
        (torch.tensor(_response_tokens(total_length, response_length), dtype=torch.long),), tensor
    )
    return torch.distributed.nn.all_reduce(whole, group=mpu.get_context_parallel_group())


def get_sum_of_sample_mean(
    total_lengths, response_lengths, loss_masks, sample_denoms=None, calculate_per_token_loss=False
):
    """Σᵢ (x·m) / max(denominatorᵢ, 1) over what this rank holds of every sequence, or Σ x·m."""
    lengths = list(zip(total_lengths, response_lengths, strict=True))
    masks = [slice_log_prob_with_cp(m, *length) for m, length in zip(loss_masks, lengths, strict=True)]
    denominators = [m.sum() for m in loss_masks] if sample_denoms is None else sample_denoms
    if calculate_per_token_loss:
        denominators = [torch.tensor(1.0)] * len(masks)

    def reduce(x):
        pieces = x.split([len(m) for m in masks])
        return sum((piece * m).sum() / d.clamp(min=1) for piece, m, d in zip(pieces, masks, denominators, strict=True))

    return reduce
