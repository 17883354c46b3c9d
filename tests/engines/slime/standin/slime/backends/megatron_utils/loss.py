"""What slime's loss module gives a custom loss, and the policy loss that its users know; written from the contract."""

import torch
import torch.distributed.nn
from megatron.core import mpu
from torch.utils.checkpoint import checkpoint

from slime.backends.megatron_utils.cp_utils import (
    all_gather_with_cp,
    get_sum_of_sample_mean,
    logit_positions,
    slice_log_prob_with_cp,
)
from slime.utils.misc import load_function
from slime.utils.ppo_utils import compute_approx_kl, compute_opsm_mask

_CAPTURED = None


def enable_log_prob_capture():
    global _CAPTURED
    _CAPTURED = {}


def drain_captured_log_probs():
    global _CAPTURED
    captured, _CAPTURED = _CAPTURED, None
    return captured


def _maybe_capture_log_probs(batch, log_probs):
    if _CAPTURED is not None:
        for position, values in zip(batch["partition"], log_probs, strict=True):
            _CAPTURED.setdefault(position, values.detach().clone())


def get_rollout_top_p_logprob_kwargs(args, batch):
    if args.rollout_top_p == 1.0:
        return {}
    return {
        "top_p_token_ids": batch["rollout_top_p_token_ids"],
        "top_p_token_offsets": batch["rollout_top_p_token_offsets"],
    }


def get_log_probs_and_entropy(
    logits,
    *,
    args,
    unconcat_tokens,
    total_lengths,
    response_lengths,
    with_entropy=False,
    top_p_token_ids=None,
    top_p_token_offsets=None,
):
    """Per sequence, of the tokens whose logits this rank holds; scaled by the temperature, cut to the nucleus."""
    logits = logits[0] / args.rollout_temperature
    result = {"log_probs": [], "entropy": []}
    for i, rows, positions in _rows(len(logits), args, total_lengths, response_lengths):
        here = logits[rows]
        targets = unconcat_tokens[i][[p + 1 for p in positions]]
        plain = here.log_softmax(-1)
        entropy = -(plain.exp() * plain).sum(-1)
        if top_p_token_ids is not None:
            ids, offsets = top_p_token_ids[i], top_p_token_offsets[i]
            keep = torch.zeros_like(here, dtype=torch.bool)
            for row, p in enumerate(positions):
                token = p - (total_lengths[i] - response_lengths[i] - 1)
                keep[row, ids[offsets[token] : offsets[token + 1]]] = True
            keep[torch.arange(len(positions)), targets] = True
            plain = here.masked_fill(~keep, -torch.inf).log_softmax(-1)
        result["log_probs"].append(plain[torch.arange(len(positions)), targets])
        result["entropy"].append(entropy if args.entropy_coef else entropy.detach())
    if args.allgather_cp:
        result = {
            name: _to_zigzag(values, len(logits), args, total_lengths, response_lengths)
            for name, values in result.items()
        }
    return torch.empty(0), result


def _rows(local, args, total_lengths, response_lengths):
    """(sequence, rows of this rank's logits, positions in the sequence)."""
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    start = 0
    for i, (total, response) in enumerate(zip(total_lengths, response_lengths, strict=True)):
        if size == 1 or args.allgather_cp:  # one stream of all sequences, in equal parts
            window = range(rank * local, (rank + 1) * local) if args.allgather_cp else range(start + total)
            positions = [p for p in range(total - response - 1, total - 1) if start + p in window]
            yield i, [start + p - window.start for p in positions], positions
            start += total
        else:
            chunk = -(-total // (2 * size))
            positions = logit_positions(total, response, size, rank)
            place = {p: k for k, p in enumerate(_owned(chunk, size, rank))}
            yield i, [start + place[p] for p in positions], positions
            start += 2 * chunk


def _owned(chunk, size, rank):
    return [p for j in (rank, 2 * size - 1 - rank) for p in range(j * chunk, (j + 1) * chunk)]


def _to_zigzag(values, local, args, total_lengths, response_lengths):
    whole = []
    for i, _, positions in _rows(local, args, total_lengths, response_lengths):
        first = total_lengths[i] - response_lengths[i] - 1
        index = torch.tensor([p - first for p in positions], dtype=torch.long)
        whole.append(values[i].new_zeros(response_lengths[i]).index_put((index,), values[i]))
    gathered = torch.distributed.nn.all_reduce(torch.cat(whole), group=mpu.get_context_parallel_group())
    pieces = zip(gathered.split(response_lengths), total_lengths, response_lengths, strict=True)
    return [slice_log_prob_with_cp(*piece) for piece in pieces]


def vanilla_tis_function(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **_):
    ratio = (torch.cat(train_log_probs) - torch.cat(rollout_log_probs)).exp()
    weight = ratio.clamp(args.tis_clip_low, args.tis_clip)
    metrics = {"tis": ratio, "tis_clipfrac": (weight != ratio).float(), "tis_abs": (ratio - 1).abs()}
    return pg_loss * weight, loss_masks, metrics


def policy_loss_function(args, batch, logits, sum_of_sample_mean):
    """PPO with the dual clip, and every option beside it."""
    lengths = (batch["total_lengths"], batch["response_lengths"])
    old = batch["rollout_log_probs"] if args.use_rollout_logprobs else batch["log_probs"]
    _, scores = get_log_probs_and_entropy(
        logits,
        args=args,
        unconcat_tokens=batch["unconcat_tokens"],
        total_lengths=lengths[0],
        response_lengths=lengths[1],
        with_entropy=True,
        **get_rollout_top_p_logprob_kwargs(args, batch),
    )
    _maybe_capture_log_probs(batch, scores["log_probs"])
    new, entropy = torch.cat(scores["log_probs"]), torch.cat(scores["entropy"])
    advantages, reference = torch.cat(batch["advantages"]), torch.cat(old)
    ratio = (new - reference).exp()
    low, high = 1 - args.eps_clip, 1 + args.eps_clip_high
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(low, high)
    policy = torch.maximum(plain, clipped)
    policy = torch.where(advantages < 0, torch.minimum(policy, -advantages * args.eps_clip_c), policy)
    reduce, masks, extra = sum_of_sample_mean, batch["loss_masks"], {}
    if args.use_opsm:
        full = [
            [all_gather_with_cp(*x) for x in zip(side, *lengths, strict=True)] for side in (scores["log_probs"], old)
        ]
        factor, opsm = compute_opsm_mask(args, *full, batch["advantages"], masks)
        policy = policy * factor
    if args.use_tis or args.get_mismatch_metrics:
        path = args.custom_tis_function_path
        policy, masks, mismatch = (load_function(path) if path else vanilla_tis_function)(
            args=args,
            pg_loss=policy,
            train_log_probs=batch["log_probs"],
            rollout_log_probs=batch["rollout_log_probs"],
            loss_masks=masks,
            total_lengths=lengths[0],
            response_lengths=lengths[1],
        )
        extra = {"ois": sum_of_sample_mean(ratio)} | {k: sum_of_sample_mean(v) for k, v in mismatch.items()}
        reduce = get_sum_of_sample_mean(*lengths, masks, batch["rollout_mask_sums"], args.calculate_per_token_loss)
    reduce_policy = reduce
    if args.custom_pg_loss_reducer_function_path:
        make = load_function(args.custom_pg_loss_reducer_function_path)
        reduce_policy = make(*lengths, masks, args.calculate_per_token_loss)
    pg_loss, entropy_loss = reduce_policy(policy), reduce(entropy)
    loss = pg_loss - args.entropy_coef * entropy_loss
    if args.use_kl_loss:
        weight = ratio if args.use_unbiased_kl else None
        kl_loss = reduce(compute_approx_kl(new, torch.cat(batch["ref_log_probs"]), args.kl_loss_type, weight))
        loss, extra = loss + args.kl_loss_coef * kl_loss, {"kl_loss": kl_loss} | extra
    compared = new if args.use_rollout_logprobs else reference
    metrics = {
        "loss": loss,
        "pg_loss": pg_loss,
        "entropy_loss": entropy_loss,
        "pg_clipfrac": reduce((clipped > plain).float()),
        "ppo_kl": reduce(reference - new),
        "train_rollout_logprob_abs_diff": reduce((compared - torch.cat(batch["rollout_log_probs"])).abs()),
        **extra,
    }
    if args.use_opsm:
        metrics["opsm_clipfrac"] = opsm
    return loss + 0 * logits.sum(), {name: value.detach() for name, value in metrics.items()}


def loss_function(args, batch, num_microbatches, step_global_batch_size, logits):
    """(scaled loss, normaliser, {"keys", "values"}); values[0] is the micro-batch's token count."""
    tokens = sum(mask.sum().clamp(min=1) for mask in batch["loss_masks"])
    reduce = get_sum_of_sample_mean(
        batch["total_lengths"],
        batch["response_lengths"],
        batch["loss_masks"],
        batch["rollout_mask_sums"],
        args.calculate_per_token_loss,
    )
    function = policy_loss_function
    if args.loss_type == "custom_loss":
        function = load_function(args.custom_loss_function_path)
    if args.recompute_loss_function:
        loss, log = checkpoint(function, args, batch, logits, reduce, use_reentrant=False)
    else:
        loss, log = function(args, batch, logits, reduce)
    if args.allgather_cp:
        loss = loss + 0 * logits.sum()
    if args.calculate_per_token_loss:
        loss = loss * mpu.get_context_parallel_world_size()
    else:
        world = mpu.get_data_parallel_world_size(with_context_parallel=True)
        loss = loss * num_microbatches / step_global_batch_size * world
    return loss, tokens, {"keys": list(log), "values": torch.stack([tokens.float(), *log.values()])}
