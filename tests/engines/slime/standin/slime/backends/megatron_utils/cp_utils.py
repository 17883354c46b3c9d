"""The zigzag layout, by its definition: rank r owns the logits of chunks r and 2·cp − 1 − r of every sequence."""

import torch
import torch.distributed.nn
from megatron.core import mpu


def predicted_tokens(total_length, response_length):
    """{response token: which of this rank's logits of the sequence predicts it}, in the rank's order."""
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    chunk = -(-total_length // (2 * size))
    owned = [p for j in (rank, 2 * size - 1 - rank) for p in range(j * chunk, (j + 1) * chunk)]
    first = total_length - response_length - 1
    return {p - first: row for row, p in enumerate(owned) if first <= p < total_length - 1}


def slice_log_prob_with_cp(log_prob, total_length, response_length):
    return log_prob[list(predicted_tokens(total_length, response_length))]


def all_gather_with_cp(tensor, total_length, response_length):
    if mpu.get_context_parallel_world_size() == 1:
        return tensor
    here = torch.tensor(list(predicted_tokens(total_length, response_length)), dtype=torch.long)
    whole = tensor.new_zeros(response_length, *tensor.shape[1:]).index_put((here,), tensor)
    return torch.distributed.nn.all_reduce(whole, group=mpu.get_context_parallel_group())


def get_sum_of_sample_mean(total_lengths, response_lengths, loss_masks, sample_denoms, calculate_per_token_loss):
    """Σᵢ (x·m) / denominatorᵢ over what this rank holds of every sequence, or Σ x·m."""
    rows = zip(loss_masks, total_lengths, response_lengths, strict=True)
    masks = [slice_log_prob_with_cp(*row) for row in rows]
    denominators = [1] * len(masks) if calculate_per_token_loss else sample_denoms

    def reduce(x):
        pieces = x.split([len(m) for m in masks])
        return sum((piece * m).sum() / d for piece, m, d in zip(pieces, masks, denominators, strict=True))

    return reduce
