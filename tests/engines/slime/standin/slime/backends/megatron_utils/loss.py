"""What slime's loss module gives a custom loss, and a policy loss with the options that FIPO's credit must heed."""

import torch
from megatron.core import mpu
from torch.utils.checkpoint import checkpoint

from slime.backends.megatron_utils.cp_utils import all_gather_with_cp, get_sum_of_sample_mean, predicted_tokens
from slime.utils.misc import load_function
from slime.utils.ppo_utils import compute_opsm_mask


def get_rollout_top_p_logprob_kwargs(args, batch):
    return {}


def get_log_probs_and_entropy(logits, *, args, unconcat_tokens, total_lengths, response_lengths, with_entropy=False):
    """Per sequence, of the tokens whose logits this rank holds."""
    size, start = mpu.get_context_parallel_world_size(), 0
    result = {"log_probs": [], "entropy": []}
    for tokens, total, response in zip(unconcat_tokens, total_lengths, response_lengths, strict=True):
        predicted = predicted_tokens(total, response)
        every = logits[0, [start + row for row in predicted.values()]].log_softmax(-1)
        targets = tokens[-response:][list(predicted)]
        result["log_probs"].append(every.gather(-1, targets[:, None])[:, 0])
        result["entropy"].append(-(every.exp() * every).sum(-1))
        start += total if size == 1 else 2 * -(-total // (2 * size))
    return torch.empty(0), result


def vanilla_tis_function(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **_):
    ratio = (torch.cat(train_log_probs) - torch.cat(rollout_log_probs)).exp()
    return pg_loss * ratio.clamp(args.tis_clip_low, args.tis_clip), loss_masks, {"tis": ratio}


def policy_loss_function(args, batch, logits, sum_of_sample_mean):
    """PPO with the dual clip, OPSM, TIS, a KL and an entropy bonus."""
    lengths = {name: batch[name] for name in ("total_lengths", "response_lengths")}
    tokens, old = batch["unconcat_tokens"], batch["rollout_log_probs" if args.use_rollout_logprobs else "log_probs"]
    _, scores = get_log_probs_and_entropy(logits, args=args, unconcat_tokens=tokens, with_entropy=True, **lengths)
    new, advantages = torch.cat(scores["log_probs"]), torch.cat(batch["advantages"])
    ratio = (new - torch.cat(old)).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - args.eps_clip, 1 + args.eps_clip_high)
    policy = torch.maximum(plain, clipped)
    policy = torch.where(advantages < 0, torch.minimum(policy, -advantages * args.eps_clip_c), policy)
    reduce, masks, extra = sum_of_sample_mean, batch["loss_masks"], {}
    if args.use_opsm:
        sides = [zip(side, *lengths.values(), strict=True) for side in (scores["log_probs"], old)]
        full = [[all_gather_with_cp(*row) for row in side] for side in sides]
        factor, extra["opsm_clipfrac"] = compute_opsm_mask(args, *full, batch["advantages"], masks)
        policy = policy * factor
    if args.use_tis or args.get_mismatch_metrics:
        path = args.custom_tis_function_path
        policy, masks, mismatch = (load_function(path) if path else vanilla_tis_function)(
            args=args,
            pg_loss=policy,
            train_log_probs=batch["log_probs"],
            rollout_log_probs=batch["rollout_log_probs"],
            loss_masks=masks,
            **lengths,
        )
        extra |= {name: sum_of_sample_mean(values) for name, values in mismatch.items()}
        reduce = _reducer(args, batch, masks)
    pg_loss, entropy_loss = reduce(policy), reduce(torch.cat(scores["entropy"]))
    loss = pg_loss - args.entropy_coef * entropy_loss
    if args.use_kl_loss:
        gap = torch.cat(batch["ref_log_probs"]) - new
        extra["kl_loss"] = reduce(gap.exp() - 1 - gap)
        loss = loss + args.kl_loss_coef * extra["kl_loss"]
    clipfrac = reduce((clipped > plain).float())
    metrics = {"loss": loss, "pg_loss": pg_loss, "entropy_loss": entropy_loss, "pg_clipfrac": clipfrac, **extra}
    return loss + 0 * logits.sum(), {name: value.detach() for name, value in metrics.items()}


def _reducer(args, batch, masks):
    lengths = (batch["total_lengths"], batch["response_lengths"])
    return get_sum_of_sample_mean(*lengths, masks, batch["rollout_mask_sums"], args.calculate_per_token_loss)


def loss_function(args, batch, num_microbatches, step_global_batch_size, logits):
    """(scaled loss, normaliser, {"keys", "values"}); values[0] is the micro-batch's token count."""
    tokens, reduce = sum(mask.sum() for mask in batch["loss_masks"]), _reducer(args, batch, batch["loss_masks"])
    custom = args.loss_type == "custom_loss"
    function = load_function(args.custom_loss_function_path) if custom else policy_loss_function
    if args.recompute_loss_function:
        loss, log = checkpoint(function, args, batch, logits, reduce, use_reentrant=False)
    else:
        loss, log = function(args, batch, logits, reduce)
    if args.calculate_per_token_loss:
        loss = loss * mpu.get_context_parallel_world_size()
    else:
        world = mpu.get_data_parallel_world_size(with_context_parallel=True)
        loss = loss * num_microbatches / step_global_batch_size * world
    return loss, tokens, {"keys": list(log), "values": torch.stack([tokens.float(), *log.values()])}
