"""The custom loss function: slime's own policy loss of advantages that FIPO has weighed.

slime scores the micro-batch once; FIPO turns the log-probs into a factor on every token's advantage; then slime's
`policy_loss_function` runs with these advantages and log-probs, and with FIPO's dual clip as its own. So every option
of slime means what it means there, and its metrics come back under their names.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fipo.core import logged
from fipo.core.context_parallel import context_parallel_token_credit
from fipo.core.credit import TokenCredit, engine_inputs, token_credit
from fipo.core.layout import spread
from fipo.core.rounding import expected_weight_errors, future_kl_errors, log_ratio_error
from fipo.engines.slime.arguments import check_arguments, params_of, weighting_of
from fipo.engines.slime.contract import home_of, on_miles, slime_function
from fipo.engines.slime.hooks import WARNINGS, may_be_first_update
from fipo.engines.slime.layout import sharded_sequences, whole_responses
from fipo.engines.slime.traced_samples import TRACES
from fipo.errors import InvalidInputError

Batch = dict[str, Any]
Reducer = Callable[[Tensor], Tensor]


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
        InvalidParameterError: Hyper-parameters are missing or flags contradict each other, or a rule failed.
        InvalidInputError: The batch does not hold what the loss needs.
        FIPOError: slime lacks a function of the contract.
    """
    params = check_arguments(args)
    old_name, old = _old_log_probs(args, batch)
    replay = {} if on_miles() else slime_function("get_rollout_top_p_logprob_kwargs")(args, batch)
    given = {name: batch[name] for name in ("unconcat_tokens", "total_lengths", "response_lengths")}
    scored = slime_function("get_log_probs_and_entropy")(logits, args=args, with_entropy=True, **given, **replay)
    scores = scored[1] if isinstance(scored, tuple) else scored  # miles gives them alone
    log_probs, entropy = ([values.detach() for values in scores[name]] for name in ("log_probs", "entropy"))
    credit = credit_of(args, batch, log_probs, entropy)
    if not hasattr(args, "fipo_log_ratio_error"):  # looked at once: an accelerator would be waited for
        args.fipo_log_ratio_error = _log_ratio_error(args, logits)
    known = {"logps": log_probs, "old_logps": old, "advantages": batch["advantages"], "entropy": entropy}
    if batch.get("rollout_log_probs") and not args.use_rollout_logprobs:
        known["rollout_logps"] = batch["rollout_log_probs"]
    columns, lengths = {name: torch.cat(parts) for name, parts in known.items()}, [len(part) for part in log_probs]
    trained = _here(batch, batch["loss_masks"]).bool()
    TRACES.see(args, batch, credit, trained, columns, lengths)

    advantages, bounded = engine_inputs(credit, columns["logps"], columns["old_logps"], columns["advantages"])
    weighed = {**batch, "advantages": list(advantages.split(lengths)), old_name: list(bounded.split(lengths))}
    dual_clip = None if params.dual_clip_c == float("inf") else params.dual_clip_c
    with _scored_already(scored):
        loss, metrics = slime_function("policy_loss_function")(
            Namespace(**vars(args) | {"eps_clip_c": dual_clip}), weighed, logits, sum_of_sample_mean
        )
    WARNINGS.see(credit, trained, args)
    of_rounding = expected_weight_errors(credit, columns["advantages"], trained, _future_kl_errors(args, batch), params)
    of_credit = _credit_metrics(args, credit, trained, lengths, sum_of_sample_mean)
    return loss, metrics | of_credit | {logged.ROUNDING: sum_of_sample_mean(of_rounding)}


@torch.no_grad()
def credit_of(
    args: Namespace, batch: Batch, log_probs: list[Tensor], entropy: list[Tensor] | None = None
) -> TokenCredit:
    """The credit of a micro-batch, exact under context parallelism; with the weights of a rule or control, if any.

    `log_probs` and `entropy`, for rules, are of this rank's response tokens, one tensor a sequence. The TokenCredit has
    (N,) tensors, the sequences one after the other as slime concatenates them, and `dropped` of every sequence.
    """
    params, mpu, old = params_of(args), slime_function("mpu"), _old_log_probs(args, batch)[1]
    logps, old_logps, advantages = (torch.cat(column) for column in (log_probs, old, batch["advantages"]))
    mask, lengths = _here(batch, batch["loss_masks"]).bool(), [len(part) for part in log_probs]
    given, rejected = (logps, old_logps, advantages, mask, params), _rejected(args, batch, log_probs, old)
    cp_size = mpu.get_context_parallel_world_size()
    if cp_size == 1:
        credit = token_credit(*given, cu_seqlens=_boundaries(lengths, mask), rejected=rejected)
    else:
        sharded = sharded_sequences(batch, params.distance, log_probs, mpu.get_context_parallel_rank(), cp_size)
        group = mpu.get_context_parallel_group()
        credit = context_parallel_token_credit(*given, sharded, rejected=rejected, group=group)
        credit = replace(credit, dropped=credit.dropped[::2])  # both chunks of a sequence say the same
    weighting = weighting_of(args)
    if weighting is None:
        return credit
    columns = {"logps": logps, "old_logps": old_logps, "advantages": advantages, "loss_mask": mask}
    columns |= {"weight": credit.weight} | ({} if entropy is None else {"entropy": torch.cat(entropy)})
    responses = whole_responses(batch, range(len(lengths)), columns, lengths)
    own = [response.pop("weight") for response in responses]
    return weighting.put(credit, _here(batch, weighting.of_responses(own, responses, batch["unconcat_tokens"])))


def _log_ratio_error(args: Namespace, logits: Tensor) -> float:
    """Expected of the forward: by its dtype, and by whether the logits are numbers of it."""
    dtype, row = (torch.float16 if getattr(args, "fp16", False) else torch.bfloat16), logits.detach()[0, :1]
    rounded = torch.equal(row, row.to(dtype).to(row.dtype))
    return log_ratio_error(dtype, "cast", "rounded" if rounded else "float32")


def _future_kl_errors(args: Namespace, batch: Batch) -> Tensor:
    """(N,) of this rank, from the whole responses' masks."""
    masks = torch.cat(batch["loss_masks"]).bool()
    cu_seqlens = _boundaries(batch["response_lengths"], masks)
    errors = future_kl_errors(masks, args.fipo_log_ratio_error, params_of(args), cu_seqlens)
    return _here(batch, list(errors.split([int(length) for length in batch["response_lengths"]])))


def _boundaries(lengths: list[int], like: Tensor) -> Tensor:
    """(S + 1,) of this rank's parts of the sequences."""
    return torch.tensor([0, *lengths], device=like.device).cumsum(0)


def _old_log_probs(args: Namespace, batch: Batch) -> tuple[str, list[Tensor]]:
    """log π_old, and its name in the batch: the trainer's own, or the rollout engine's with --use-rollout-logprobs."""
    name, remedy = "log_probs", "drop --disable-compute-advantages-and-returns, which keeps slime from recomputing them"
    if args.use_rollout_logprobs:
        name, remedy = "rollout_log_probs", "let the rollout engine return log-probs, or drop --use-rollout-logprobs"
    if not batch.get(name):
        raise InvalidInputError(f'batch["{name}"] is {batch.get(name)}, but FIPO needs π_old at every token; {remedy}.')
    return name, list(batch[name])


def _here(batch: Batch, whole: list[Tensor]) -> Tensor:
    """(N,) this rank's part of values of whole responses."""
    part = slime_function("slice_log_prob_with_cp")
    rows = zip(whole, batch["total_lengths"], batch["response_lengths"], strict=True)
    return torch.cat([part(*row) for row in rows])


@contextmanager
def _scored_already(scored: Any) -> Iterator[None]:
    """Inside, slime's policy loss finds these scores instead of computing them again, over all logits."""
    home: Any = import_module(home_of("policy_loss_function"))
    score, home.get_log_probs_and_entropy = home.get_log_probs_and_entropy, lambda *_, **__: scored
    try:
        yield
    finally:
        home.get_log_probs_and_entropy = score


def _rejected(args: Namespace, batch: Batch, log_probs: list[Tensor], old: list[Tensor]) -> Tensor | None:
    """(N,) the tokens that slime's own corrections take out of the loss: OPSM, and TIS or what stands in its place."""
    factors, lengths = [], {name: batch[name] for name in ("total_lengths", "response_lengths")}
    if args.use_opsm:
        gather = slime_function("all_gather_with_cp")
        full = [[gather(*row) for row in zip(side, *lengths.values(), strict=True)] for side in (log_probs, old)]
        mask = slime_function("compute_opsm_mask")
        factors.append(mask(args, *full, advantages=batch["advantages"], loss_masks=batch["loss_masks"])[0])
    if args.use_tis or getattr(args, "get_mismatch_metrics", False):
        if not batch.get("rollout_log_probs"):
            raise InvalidInputError(
                'batch["rollout_log_probs"] is missing, but TIS and the mismatch metrics need the rollout engine\'s '
                "log-probs; let it return them, or drop --use-tis and --get-mismatch-metrics."
            )
        path = args.custom_tis_function_path
        correct = slime_function("vanilla_tis_function") if path is None else slime_function("load_function")(path)
        ours = {"parallel_state": slime_function("get_parallel_state")(), "max_seq_lens": None} if on_miles() else {}
        factor, masks, _ = correct(
            args=args,
            pg_loss=torch.ones_like(torch.cat(log_probs)),
            train_log_probs=batch.get("log_probs") or log_probs,
            rollout_log_probs=batch["rollout_log_probs"],
            loss_masks=batch["loss_masks"],
            **lengths,
            **ours,
        )
        factors += [factor, _here(batch, masks)]
    return torch.stack([factor == 0 for factor in factors]).any(0) if factors else None


@torch.no_grad()
def _credit_metrics(
    args: Namespace, credit: TokenCredit, trained: Tensor, lengths: list[int], reduce: Reducer
) -> dict[str, Tensor]:
    """`fipo/…`. With --calculate-per-token-loss slime's reducers weigh a sequence by its tokens, else all alike."""
    values = {name: of(credit) for name, of in logged.TOKEN_MEANS.items()}
    values[logged.DROPPED_SEQUENCES] = spread(credit.dropped, trained, _boundaries(lengths, trained))
    if may_be_first_update(args):
        values |= {name: of(credit) for name, of in logged.FIRST_UPDATE_MEANS.items()}
    return {name: reduce(value.to(credit.weight.dtype)).detach().clone() for name, value in values.items()}
