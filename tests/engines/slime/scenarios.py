"""One rollout's update, whole and as slime hands it to each rank.

The model is a table of logits a token, so that splitting a sequence over ranks needs no attention.
"""

from argparse import Namespace
from dataclasses import asdict

import torch
from cases import LENGTHS, ROLLOUTS
from megatron.core import mpu
from on_slime import ARGUMENTS, cp_utils
from support import one_truth

from fipo.engines.slime.arguments import LOSS_PATH

VOCABULARY = 24
LOCAL = ("log_probs", "rollout_log_probs", "ref_log_probs", "advantages")


def arguments(**changes):
    """slime's namespace, as far as its loss reads it."""
    off = ("allgather_cp", "calculate_per_token_loss", "get_mismatch_metrics", "recompute_loss_function", "use_kl_loss")
    off += ("use_opsm", "use_rollout_logprobs", "use_tis", "use_unbiased_kl")
    defaults = dict.fromkeys(off, False)
    defaults |= dict.fromkeys(("custom_pg_loss_reducer_function_path", "custom_tis_function_path"))
    defaults |= {"loss_type": "custom_loss", "custom_loss_function_path": LOSS_PATH, "advantage_estimator": "grpo"}
    defaults |= {"eps_clip": 0.2, "eps_clip_high": 0.28, "eps_clip_c": 10.0, "tis_clip": 1.2, "tis_clip_low": 0.9}
    defaults |= {"entropy_coef": 0.0, "kl_loss_coef": one_truth.BETA, "kl_loss_type": "k3", "opsm_delta": 0.02}
    defaults |= {"log_probs_chunk_size": -1, "rollout_temperature": 1.0, "rollout_top_p": 1.0}
    defaults |= {f"fipo_{name}": value for name, value in asdict(one_truth.PARAMS).items()}
    return Namespace(**(defaults | ARGUMENTS | changes))


def table():
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()


def samples(rollout_top_p=None, rollout_temperature=1.0, **_):
    """The batch that all engines share, as dicts of whole responses; π_old is the model's own minus its log-ratios."""
    generator, model, data, found = torch.Generator().manual_seed(0), table().detach(), one_truth.batch(), []
    for i, (prompt, response) in enumerate(LENGTHS):
        tokens = torch.randint(VOCABULARY, (prompt + response,), generator=generator)
        rows, targets = model[tokens[prompt - 1 : -1]] / rollout_temperature, tokens[prompt:]
        nucleus = torch.rand(response, VOCABULARY, generator=generator) < 0.6
        nucleus[torch.arange(response), targets] = True
        if rollout_top_p is not None:
            rows = rows.masked_fill(~nucleus, -torch.inf)
        new = rows.log_softmax(-1)[torch.arange(response), targets].double()  # else rounding moves the log-ratio
        row = {name: column[i, :response] for name, column in data.items() if column.dim() == 2}
        old = new - row["log_ratio"]
        sample = {"unconcat_tokens": tokens, "total_lengths": prompt + response, "response_lengths": response}
        sample |= {"loss_masks": row["mask"].int(), "advantages": row["advantages"], "log_probs": old, "partition": i}
        sample["rollout_log_probs"] = old + 0.1 * torch.randn(response, generator=generator)
        sample["ref_log_probs"] = new + row["reference_gap"]
        sample["rollout_top_p_token_ids"] = nucleus.nonzero()[:, 1].tolist()
        sample["rollout_top_p_token_offsets"] = [0, *nucleus.sum(1).cumsum(0).tolist()]
        found.append(sample)
    tokens = torch.stack([sample["loss_masks"].sum() for sample in found]).float()
    totals = torch.zeros(len(ROLLOUTS)).index_add_(0, torch.tensor(ROLLOUTS), tokens)
    return [sample | {"rollout_mask_sums": totals[rollout]} for sample, rollout in zip(found, ROLLOUTS, strict=True)]


def micro_batch(chosen, args):
    """These samples as slime's `get_batch` hands them to this rank."""
    batch = {name: [sample[name] for sample in chosen] for name in chosen[0]}
    lengths = (batch["total_lengths"], batch["response_lengths"])
    for name in LOCAL:
        batch[name] = [cp_utils.slice_log_prob_with_cp(*values) for values in zip(batch[name], *lengths, strict=True)]
    if args.use_rollout_logprobs and not args.get_mismatch_metrics:
        batch["log_probs"] = None
    return batch


def local_logits(model, tokens, allgather):
    """The logits that this rank computes, of tokens padded as slime pads them."""
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    if size == 1:
        pieces = [*tokens, torch.zeros(3, dtype=torch.long)]
    elif allgather:
        stream = torch.cat(tokens)
        pieces = [torch.nn.functional.pad(stream, (0, -len(stream) % (4 * size))).chunk(size)[rank]]
    else:
        padded = [torch.nn.functional.pad(sequence, (0, -len(sequence) % (2 * size))) for sequence in tokens]
        pieces = [sequence.chunk(2 * size)[place] for sequence in padded for place in (rank, 2 * size - 1 - rank)]
    return model[torch.cat(pieces)][None]
