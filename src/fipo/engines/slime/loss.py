"""The custom loss function: slime's policy loss with FIPO's credit in place of PPO's clipped objective.

Around `fipo_loss` stand the terms of slime's own policy loss, computed by slime's own functions and reduced by slime's
own reducers, so that every option of slime means what it means there. A dropped sequence gives no policy loss; its KL
and its entropy bonus stay, and it stays in every denominator.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fipo.core.context_parallel import context_parallel_fipo_loss
from fipo.core.control import controlled, response_orders, with_weights
from fipo.core.logged import DROPPED_SEQUENCES, FIRST_UPDATE_MEANS, TOKEN_MEANS, WEIGHT_MAX, WEIGHT_MIN
from fipo.core.loss import FIPOOutput, fipo_loss
from fipo.engines.slime.arguments import check_arguments, control_of, params_of
from fipo.engines.slime.contract import slime_function
from fipo.engines.slime.layout import chunks_of
from fipo.engines.slime.noise import EXTREMES, NoiseWatch, knows_updates, may_be_first_update
from fipo.engines.slime.tracing import TRACES
from fipo.errors import InvalidInputError

Batch = dict[str, Any]
Reducer = Callable[[Tensor], Tensor]
NOISE_WATCH = NoiseWatch()
EXTREMES_OF_BATCH = "fipo_weight_extremes"  # in a micro-batch: what it has reported


def fipo_loss_function(
    args: Namespace, batch: Batch, logits: Tensor, sum_of_sample_mean: Reducer
) -> tuple[Tensor, dict[str, Tensor]]:
    """For slime's --custom-loss-function-path, with --loss-type custom_loss.

    Args:
        args: slime's namespace with the hyper-parameters as `fipo_…`; see `fipo.engines.slime.arguments`.
        batch: A micro-batch as slime's `get_batch` makes it.
        logits: (1, T, V) float32, this rank's part of them. Differentiable.
        sum_of_sample_mean: slime's reducer of packed (N,) values on this rank.

    Returns:
        The loss, and the metrics under slime's own names and `fipo/…`: each comes out of a reducer, so slime's sums
        over micro-batches and ranks are exact, and the names are the same on every rank.

    Raises:
        InvalidParameterError: Hyper-parameters are missing or flags contradict each other.
        InvalidInputError: The batch does not hold what the loss needs.
        FIPOError: slime lacks a function of the contract.
    """
    check_arguments(args)
    log_probs, entropy = _score(args, batch, logits)
    old = old_log_probs(args, batch)
    out = token_credit(args, batch, log_probs)
    trained = _trained(batch)
    columns = {"logps": log_probs, "old_logps": old, "advantages": batch["advantages"], "entropy": entropy}
    if batch.get("rollout_log_probs") and not args.use_rollout_logprobs:
        columns["rollout_logps"] = batch["rollout_log_probs"]
    TRACES.see(args, batch, out, trained, columns)

    policy, masks, metrics = _policy(args, batch, out, log_probs, old, sum_of_sample_mean)
    reduce = sum_of_sample_mean if masks is batch["loss_masks"] else _reducer(args, batch, masks)
    pg_loss = _policy_reducer(args, batch, masks, reduce)(torch.where(out.kept, policy, 0))
    entropy_loss = reduce(torch.where(trained, torch.cat(entropy), 0))
    loss = pg_loss - args.entropy_coef * entropy_loss
    if args.use_kl_loss:
        kl_loss = reduce(_reference_kl(args, batch, torch.cat(log_probs), torch.cat(old), trained))
        loss = loss + args.kl_loss_coef * kl_loss
        metrics = {"kl_loss": kl_loss} | metrics
    if out.loss.numel() == 0:  # a rank without response tokens still has to take part in the backward pass
        loss = loss + 0 * logits.sum()

    if batch.get("rollout_log_probs"):
        trainers = torch.cat(log_probs if args.use_rollout_logprobs else old).detach()
        gap = (trainers - torch.cat(batch["rollout_log_probs"])).abs()
        metrics = {"train_rollout_logprob_abs_diff": reduce(gap)} | metrics
    metrics = {
        "loss": loss,
        "pg_loss": pg_loss,
        "entropy_loss": entropy_loss,
        "pg_clipfrac": reduce((out.clipped_low | out.clipped_high).to(out.weight.dtype)),
        "ppo_kl": reduce(-out.log_ratio),
        **metrics,
        **_credit_metrics(args, batch, out, trained, sum_of_sample_mean),
    }
    return loss, {name: value.detach().clone() for name, value in metrics.items()}


def token_credit(args: Namespace, batch: Batch, log_probs: list[Tensor]) -> FIPOOutput:
    """`fipo_loss` of a micro-batch, exact under context parallelism.

    Args:
        args, batch: As for `fipo_loss_function`.
        log_probs: log π_θ of this rank's response tokens, one tensor a sequence. Differentiable.

    Returns:
        A FIPOOutput of (N,) tensors, the sequences one after the other as slime concatenates them; with a control,
        with its weights.
    """
    out = _own_credit(args, batch, log_probs)
    control = control_of(args)
    if control is None:
        return out
    return with_weights(out, _controlled(batch, out.weight.split([len(part) for part in log_probs]), control))


def _own_credit(args: Namespace, batch: Batch, log_probs: list[Tensor]) -> FIPOOutput:
    params = params_of(args)
    mpu = slime_function("mpu")
    columns = (log_probs, old_log_probs(args, batch), batch["advantages"])
    logps, old_logps, advantages = (torch.cat(column) for column in columns)
    mask = _trained(batch)
    clip = {"epsilon_low": args.eps_clip, "epsilon_high": args.eps_clip_high}
    cp_size = mpu.get_context_parallel_world_size()
    if cp_size == 1:
        boundaries = torch.tensor([0, *batch["response_lengths"]], device=logps.device).cumsum(0)
        return fipo_loss(logps, old_logps, advantages, mask, params, cu_seqlens=boundaries, **clip)
    chunks = chunks_of(batch, params.distance, log_probs, mpu.get_context_parallel_rank(), cp_size)
    group = mpu.get_context_parallel_group()
    return context_parallel_fipo_loss(logps, old_logps, advantages, mask, params, chunks, group=group, **clip)


@torch.no_grad()
def _controlled(batch: Batch, weights: Sequence[Tensor], control: str) -> Tensor:
    """The control's weights (N,) in place of FIPO's, drawn for whole responses on every context-parallel rank alike."""
    gather, here = slime_function("all_gather_with_cp"), slime_function("slice_log_prob_with_cp")
    orders = response_orders(batch["unconcat_tokens"])
    found = []
    for weight, mask, order, *length in zip(
        weights, batch["loss_masks"], orders, batch["total_lengths"], batch["response_lengths"], strict=True
    ):
        found.append(here(controlled(gather(weight, *length), mask.bool(), control, order), *length))
    return torch.cat(found)


def old_log_probs(args: Namespace, batch: Batch) -> list[Tensor]:
    """log π_old: the trainer's own, recomputed before the updates, or the rollout engine's where slime is told so."""
    name = "rollout_log_probs" if args.use_rollout_logprobs else "log_probs"
    if not batch.get(name):
        raise InvalidInputError(
            f'batch["{name}"] is {batch.get(name)}, but FIPO needs π_old at every token; '
            + (
                "let the rollout engine return log-probs, or drop --use-rollout-logprobs."
                if args.use_rollout_logprobs
                else "drop --disable-compute-advantages-and-returns, which keeps slime from recomputing them."
            )
        )
    return list(batch[name])


def _trained(batch: Batch) -> Tensor:
    """(N,) bool: which of this rank's response tokens are trained."""
    here = slime_function("slice_log_prob_with_cp")
    lengths = (batch["total_lengths"], batch["response_lengths"])
    return torch.cat([here(mask, *length) for mask, *length in zip(batch["loss_masks"], *lengths, strict=True)]).bool()


def _score(args: Namespace, batch: Batch, logits: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """log π_θ and entropy of this rank's response tokens, by slime, and into its debug dump where it makes one."""
    _, scores = slime_function("get_log_probs_and_entropy")(
        logits,
        args=args,
        unconcat_tokens=batch["unconcat_tokens"],
        total_lengths=batch["total_lengths"],
        response_lengths=batch["response_lengths"],
        with_entropy=True,
        **slime_function("get_rollout_top_p_logprob_kwargs")(args, batch),
    )
    slime_function("_maybe_capture_log_probs")(batch, scores["log_probs"])
    return scores["log_probs"], scores["entropy"]


def _policy(
    args: Namespace, batch: Batch, out: FIPOOutput, log_probs: list[Tensor], old: list[Tensor], reduce: Reducer
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The policy loss per token after OPSM and TIS, the masks to reduce it with, and what these two report."""
    policy, masks, metrics = out.loss, batch["loss_masks"], {}
    if args.use_opsm:
        factor, clipped = _opsm_mask(args, batch, log_probs, old)
        policy, metrics = policy * factor, {"opsm_clipfrac": clipped}
    if args.use_tis or getattr(args, "get_mismatch_metrics", False):
        policy, masks, mismatch = _correct_mismatch(args, batch, policy, log_probs)
        mismatch = {"ois": out.log_ratio.exp(), **mismatch}
        metrics = {name: reduce(value) for name, value in mismatch.items()} | metrics
    return policy, masks, metrics


@torch.no_grad()
def _opsm_mask(args: Namespace, batch: Batch, log_probs: list[Tensor], old: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Off-policy sequence masking: a factor per token, and slime's sum of masked shares."""
    whole = slime_function("all_gather_with_cp")
    lengths = list(zip(batch["total_lengths"], batch["response_lengths"], strict=True))
    return slime_function("compute_opsm_mask")(
        args=args,
        full_log_probs=[whole(value, *length) for value, length in zip(log_probs, lengths, strict=True)],
        full_old_log_probs=[whole(value, *length) for value, length in zip(old, lengths, strict=True)],
        advantages=batch["advantages"],
        loss_masks=batch["loss_masks"],
    )


def _correct_mismatch(
    args: Namespace, batch: Batch, policy: Tensor, log_probs: list[Tensor]
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """TIS, or the user's own function: the corrected policy loss, the masks that it asks for, and its metrics."""
    if not batch.get("rollout_log_probs"):
        raise InvalidInputError(
            'batch["rollout_log_probs"] is missing, but TIS and the mismatch metrics need the rollout engine\'s '
            "log-probs; let it return them, or drop --use-tis and --get-mismatch-metrics."
        )
    path = args.custom_tis_function_path
    correct = slime_function("vanilla_tis_function") if path is None else slime_function("load_function")(path)
    return correct(
        args=args,
        pg_loss=policy,
        train_log_probs=batch.get("log_probs") or [value.detach() for value in log_probs],
        rollout_log_probs=batch["rollout_log_probs"],
        loss_masks=batch["loss_masks"],
        total_lengths=batch["total_lengths"],
        response_lengths=batch["response_lengths"],
    )


def _reducer(args: Namespace, batch: Batch, masks: list[Tensor]) -> Reducer:
    """slime's reducer with other masks; denominators stay the rollouts' own."""
    lengths = (batch["total_lengths"], batch["response_lengths"])
    make = slime_function("get_sum_of_sample_mean")
    return make(*lengths, masks, batch["rollout_mask_sums"], args.calculate_per_token_loss)


def _policy_reducer(args: Namespace, batch: Batch, masks: list[Tensor], reduce: Reducer) -> Reducer:
    path = getattr(args, "custom_pg_loss_reducer_function_path", None)
    if path is None:
        return reduce
    make = slime_function("load_function")(path)
    return make(batch["total_lengths"], batch["response_lengths"], masks, args.calculate_per_token_loss)


def _reference_kl(args: Namespace, batch: Batch, log_probs: Tensor, old: Tensor, trained: Tensor) -> Tensor:
    """slime's estimate of KL(π_θ ‖ π_ref) per token, 0 where not trained; what stands there reaches no gradient."""
    here = log_probs.detach()
    kl = slime_function("compute_approx_kl")(
        log_probs,
        torch.where(trained, torch.cat(batch["ref_log_probs"]), here),
        kl_loss_type=args.kl_loss_type,
        importance_ratio=torch.exp(log_probs - torch.where(trained, old, here)) if args.use_unbiased_kl else None,
    )
    return torch.where(trained, kl, 0)


def _credit_metrics(
    args: Namespace, batch: Batch, out: FIPOOutput, trained: Tensor, reduce: Reducer
) -> dict[str, Tensor]:
    """`fipo/…`. With --calculate-per-token-loss slime's reducers weigh a sequence by its tokens, else all alike."""
    values = {name: of(out) for name, of in TOKEN_MEANS.items()}
    values[DROPPED_SEQUENCES] = ~out.kept  # at a trained token nothing else takes `kept` away
    if may_be_first_update(args):
        values |= {name: of(out) for name, of in FIRST_UPDATE_MEANS.items()}
        NOISE_WATCH.see(out, args)
    metrics = {name: reduce(value.to(out.weight.dtype)) for name, value in values.items()}
    return metrics | (_extremes(args, batch, out, trained) if knows_updates(args) else {})


def _extremes(args: Namespace, batch: Batch, out: FIPOOutput, trained: Tensor) -> dict[str, Tensor]:
    """See `fipo.core.extremes`; --recompute-loss-function asks twice."""
    if EXTREMES_OF_BATCH not in batch:
        mpu = slime_function("mpu")
        part = _part_of_divisor(args, batch) / mpu.get_context_parallel_world_size()
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        report = EXTREMES.report(out, trained, params_of(args), part, group)
        batch[EXTREMES_OF_BATCH] = dict(zip((WEIGHT_MIN, WEIGHT_MAX), report, strict=True))
    return batch[EXTREMES_OF_BATCH]


def _part_of_divisor(args: Namespace, batch: Batch) -> Tensor:
    """What a micro-batch adds to slime's divisor: tokens with --calculate-per-token-loss, else rollouts."""
    counts = [mask.sum().double() for mask in batch["loss_masks"]]
    if args.calculate_per_token_loss:
        return torch.stack(counts).clamp(min=1).sum()
    shares = [count / total for count, total in zip(counts, batch["rollout_mask_sums"], strict=True)]
    return torch.stack(shares).nan_to_num(nan=1).sum()  # 0 / 0: a rollout without trained tokens counts as one
