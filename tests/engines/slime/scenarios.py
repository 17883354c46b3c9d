"""One rollout's update, whole and as slime hands it to each rank, and every option beside FIPO that slime's users have.

The model is a table of logits a token, so that splitting a sequence over ranks needs no attention.
"""

import os
from argparse import Namespace

import torch
from megatron.core import mpu
from on_slime import ARGUMENTS, MILES, cp_utils
from support import one_truth

from fipo.engines.slime.arguments import LOSS_PATH

VOCABULARY = 24
# (prompt, response): prompts longer than a chunk, responses within one chunk, a response of one token, uneven chunks.
LENGTHS = [(3, 5), (20, 4), (2, 30), (1, 1), (5, 17), (9, 11), (4, 41)]
ROLLOUTS = [0, 1, 2, 3, 4, 4, 5]  # samples 4 and 5 are one rollout
ADVANTAGES = [0.7, -0.4, -1.1, 0.3, 0.9, 0.9, -0.6]
DUAL_CLIPPED = {2: (3, 25), 6: (30,)}  # tokens far above the bound, in different chunks; sample 2 is to be dropped
KNOBS = {"decay_rate": 32.0, "clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "safety_thresh": 3.0, "dual_clip_c": 10.0}
NEUTRAL = {"clip_ratio_low": 0.0, "clip_ratio_high": 0.0, "max_dual_clipped": 10**6}

OPTIONS = {
    "plain": {},
    "high_only": {"fipo_clip_high_only": True},
    "trained_distance": {"fipo_distance": "trained", "fipo_decay_rate": 4.0},
    "kl_k3": {"use_kl_loss": True, "kl_loss_type": "k3"},
    "kl_unbiased": {"use_kl_loss": True, "kl_loss_type": "k3", "use_unbiased_kl": True},
    "entropy": {"entropy_coef": 0.03},
    "tis": {"use_tis": True},
    "tis_custom": {"use_tis": True, "custom_tis_function_path": "slime_custom.reject_every_third"},
    "mismatch": {"get_mismatch_metrics": True, "custom_tis_function_path": "slime_custom.reject_every_third"},
    "opsm": {"use_opsm": True},
    "reducer": {"custom_pg_loss_reducer_function_path": "slime_custom.constant_divisor"},
    "top_p": {"rollout_top_p": 0.9},
    "temperature": {"rollout_temperature": 0.8},
    "per_token": {"calculate_per_token_loss": True, "use_kl_loss": True, "entropy_coef": 0.01},
    "recompute": {"recompute_loss_function": True, "use_kl_loss": True, "use_opsm": True, "entropy_coef": 0.01},
    "rollout_logprobs": {"use_rollout_logprobs": True},
    "shuffle": {"fipo_control": "shuffle"},
    "uniform": {"fipo_control": "uniform"},
    "none": {"fipo_control": "none"},
    "rule": {"fipo_rule": "python:slime_custom:falling"},
    "shuffled_rule": {"fipo_rule": "python:slime_custom:falling", "fipo_control": "shuffle"},
    "no_bounds": {"fipo_clip_ratio_low": 0.0, "fipo_clip_ratio_high": 0.0},
}
if MILES:
    del OPTIONS["top_p"]  # which miles does not replay
elif "SLIME_SRC" in os.environ:  # sequence-level and CISPO's losses, which the stand-in has not
    OPTIONS |= {name: {"advantage_estimator": name} for name in ("gspo", "cispo")}

LOCAL = ("log_probs", "rollout_log_probs", "ref_log_probs", "advantages")


def arguments(**changes):
    """slime's namespace, as far as its loss reads it."""
    defaults = {
        "loss_type": "custom_loss",
        "custom_loss_function_path": LOSS_PATH,
        "advantage_estimator": "grpo",
        "allgather_cp": False,
        "calculate_per_token_loss": False,
        "custom_pg_loss_reducer_function_path": None,
        "custom_tis_function_path": None,
        "entropy_coef": 0.0,
        "eps_clip": 0.2,
        "eps_clip_high": 0.28,
        "eps_clip_c": 10.0,
        "get_mismatch_metrics": False,
        "kl_loss_coef": 0.1,
        "kl_loss_type": "k3",
        "log_probs_chunk_size": -1,
        "opsm_delta": 0.02,
        "recompute_loss_function": False,
        "rollout_temperature": 1.0,
        "rollout_top_p": 1.0,
        "tis_clip": 1.2,
        "tis_clip_low": 0.9,
        "use_kl_loss": False,
        "use_opsm": False,
        "use_rollout_logprobs": False,
        "use_tis": False,
        "use_unbiased_kl": False,
        **{f"fipo_{name}": value for name, value in KNOBS.items()},
        **ARGUMENTS,
    }
    return Namespace(**(defaults | changes))


def table():
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()


def samples(options, seed=0):
    """The rollout's samples as dicts of whole responses; π_old drifts from the model's own log-probs."""
    generator = torch.Generator().manual_seed(seed)
    model, temperature = table().detach(), options.get("rollout_temperature", 1.0)
    found = []
    for i, (prompt, response) in enumerate(LENGTHS):
        tokens = torch.randint(VOCABULARY, (prompt + response,), generator=generator)
        rows = model[tokens[prompt - 1 : -1]] / temperature
        targets = tokens[prompt:]
        nucleus = torch.rand(response, VOCABULARY, generator=generator) < 0.6
        nucleus[torch.arange(response), targets] = True
        if "rollout_top_p" in options:
            rows = rows.masked_fill(~nucleus, -torch.inf)
        new = rows.log_softmax(-1)[torch.arange(response), targets]
        drift = 0.15 * torch.randn(response, generator=generator)
        mask = (torch.rand(response, generator=generator) < 0.8).int()
        for token in DUAL_CLIPPED.get(i, ()):
            drift[token], mask[token] = 3.0, 1
        mask[0] = 1
        found.append(
            {
                "unconcat_tokens": tokens,
                "total_lengths": prompt + response,
                "response_lengths": response,
                "loss_masks": mask,
                "log_probs": new - drift,
                "rollout_log_probs": new - drift + 0.1 * torch.randn(response, generator=generator),
                "ref_log_probs": new + 0.3 * torch.randn(response, generator=generator),
                "advantages": torch.full((response,), ADVANTAGES[i]),
                "rollout_top_p_token_ids": nucleus.nonzero()[:, 1].tolist(),
                "rollout_top_p_token_offsets": [0, *nucleus.sum(1).cumsum(0).tolist()],
                "partition": i,
            }
        )
    totals = torch.zeros(len(ROLLOUTS)).index_add_(
        0, torch.tensor(ROLLOUTS), torch.stack([sample["loss_masks"].sum() for sample in found]).float()
    )
    for sample, rollout in zip(found, ROLLOUTS, strict=True):
        sample["rollout_mask_sums"] = totals[rollout]
    return found


def shared_samples():
    """The samples of the batch that all engines share; π_old is still to be put in."""
    data, generator = one_truth.batch(), torch.Generator().manual_seed(0)
    found = []
    for row, (mask, advantages) in enumerate(zip(data["mask"], data["advantages"], strict=True)):
        tokens = torch.randint(VOCABULARY, (3 * row + 1 + one_truth.TOKENS,), generator=generator)
        none = torch.zeros(one_truth.TOKENS)
        sample = {"unconcat_tokens": tokens, "total_lengths": len(tokens), "response_lengths": one_truth.TOKENS}
        sample |= {"loss_masks": mask.int(), "advantages": advantages, "rollout_mask_sums": mask.sum()}
        found.append(sample | {"partition": row, **dict.fromkeys(LOCAL[:3], none)})
    return found


def micro_batch(chosen, args):
    """These samples as slime's `get_batch` hands them to this rank."""
    batch = {name: [sample[name] for sample in chosen] for name in chosen[0]}
    lengths = (batch["total_lengths"], batch["response_lengths"])
    for name in LOCAL:
        batch[name] = [cp_utils.slice_log_prob_with_cp(*values) for values in zip(batch[name], *lengths, strict=True)]
    if args.use_rollout_logprobs and not args.get_mismatch_metrics:
        batch["log_probs"] = None
    return batch


def local_tokens(tokens, allgather):
    """The tokens whose logits this rank computes, padded as slime pads them."""
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    if size == 1:
        return torch.nn.functional.pad(torch.cat(tokens), (0, 3))
    if allgather:
        stream = torch.cat(tokens)
        return torch.nn.functional.pad(stream, (0, -len(stream) % (4 * size))).chunk(size)[rank]
    pieces = []
    for sequence in tokens:
        chunk = -(-len(sequence) // (2 * size))
        chunks = torch.nn.functional.pad(sequence, (0, 2 * size * chunk - len(sequence))).split(chunk)
        pieces += [chunks[rank], chunks[2 * size - 1 - rank]]
    return torch.cat(pieces)
