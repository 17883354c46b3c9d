"""Run by test_on_slime.loss.py: updates under every option, split in every way over 1, 2 and 4 processes with gloo.

python ranks.py OUT            writes OUT/<world size>.pt
"""

import multiprocessing
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict

import on_slime  # first: it puts slime on the path
import torch
import torch.distributed as dist
from megatron.core import mpu
from scenarios import (
    KNOBS,
    LENGTHS,
    NEUTRAL,
    OPTIONS,
    ROLLOUTS,
    arguments,
    local_tokens,
    micro_batch,
    samples,
    shared_samples,
    table,
)
from support import one_truth

from fipo.engines.slime import before_train_step, credit_of, fipo_loss_function, note_rollout
from fipo.engines.slime.traced_samples import TRACES

WHOLE = [list(range(len(LENGTHS)))]
ONE_BY_ONE = [[i] for i in range(len(LENGTHS))]  # some ranks then have no response token at all
HALVES = ([[0, 2], [4, 5]], [[1], [3, 6]])  # of two data-parallel ranks, two micro-batches each
# name → (context-parallel size, all-gather, micro-batches of each data-parallel rank)
SPLITS = {
    1: {"whole": (1, False, [WHOLE]), "one_by_one": (1, False, [ONE_BY_ONE])},
    2: {
        "cp2": (2, False, [WHOLE]),
        "dp2": (1, False, HALVES),  # the groups are rebuilt in between
        "cp2_one_by_one": (2, False, [ONE_BY_ONE]),
        "cp2_allgather": (2, True, [WHOLE]),
        "cp2_allgather_one_by_one": (2, True, [ONE_BY_ONE]),
    },
    4: {"cp2_dp2": (2, False, HALVES), "cp4": (4, False, [ONE_BY_ONE])},
}
COMPARED = ("whole", "cp2")  # with slime's own policy loss


def update(args, batches, model):
    """One optimizer step's loss, gradient and metrics, as slime and Megatron put them together from all ranks."""
    totals, loss_sum = 0, 0
    before_train_step(args, 0, 0)
    for batch in batches:
        logits = model[local_tokens(batch["unconcat_tokens"], args.allgather_cp)][None]
        loss, _, log = on_slime.loss.loss_function(args, batch, len(batches), len(set(ROLLOUTS)), logits)
        loss = loss / len(batches)
        loss.backward()
        totals, loss_sum = totals + log["values"].detach(), loss_sum + loss.detach()
    gradient = model.grad.clone()
    for value in (gradient, totals, loss_sum):
        dist.all_reduce(value)
    if args.calculate_per_token_loss:  # Megatron: the sum over the step's tokens, which every context rank counts
        normaliser = totals[0] / len(batches)
        divisor = totals[0] / mpu.get_context_parallel_world_size()
    else:
        normaliser, divisor = torch.tensor(float(dist.get_world_size())), torch.tensor(float(len(set(ROLLOUTS))))
    metrics = {name: (value / divisor).item() for name, value in zip(log["keys"], totals[1:], strict=True)}
    return {"loss": loss_sum / normaliser, "gradient": gradient / normaliser, "metrics": metrics}


def reducer(batch):
    names = ("total_lengths", "response_lengths", "loss_masks", "rollout_mask_sums")
    return on_slime.cp_utils.get_sum_of_sample_mean(*(batch[name] for name in names))


def kinds(options, split):
    """The namespaces of FIPO, of FIPO with neutral weights and no drop, and of slime's own policy loss."""
    yield "fipo", arguments(**options)
    if split not in COMPARED:
        return
    yield "neutral", arguments(**options | {f"fipo_{name}": value for name, value in NEUTRAL.items()})
    yield "policy", arguments(**options, loss_type="policy_loss")


def credit(args, chosen, model):
    """Every sample's log π_θ and weights, put together from the context-parallel ranks."""
    batch = micro_batch(chosen, args)
    logits = model[local_tokens(batch["unconcat_tokens"], args.allgather_cp)][None]
    names = ("unconcat_tokens", "total_lengths", "response_lengths")
    scores = on_slime.get_log_probs_and_entropy(logits, args=args, **{name: batch[name] for name in names})
    local = [values.detach() for values in scores["log_probs"]]
    weight = credit_of(args, batch, local).weight.split([len(values) for values in local])
    lengths = (batch["total_lengths"], batch["response_lengths"])
    return [
        [on_slime.cp_utils.all_gather_with_cp(*v).detach() for v in zip(side, *lengths, strict=True)]
        for side in (local, weight)
    ]


def truth(allgather, regularized):
    """What the batch that all engines share gets: loss and gradient of one update, and the weights."""
    options = {f"fipo_{name}": value for name, value in asdict(one_truth.PARAMS).items()}
    if regularized:
        options |= {"use_kl_loss": True, "kl_loss_type": "k3", "kl_loss_coef": one_truth.BETA}
        options |= {"entropy_coef": one_truth.ENTROPY_COEF}
    args = arguments(allgather_cp=allgather, calculate_per_token_loss=True, **options)
    model, chosen = table(), shared_samples()
    scores, _ = credit(args, chosen, model)
    data = one_truth.batch()
    for sample, new, log_ratio, gap in zip(chosen, scores, data["log_ratio"], data["reference_gap"], strict=True):
        sample["log_probs"] = new.double() - log_ratio  # so that rounding π_θ does not move the log-ratio
        sample["ref_log_probs"] = new.double() + gap
    found = update(args, [micro_batch(chosen, args)], model) | {"weights": credit(args, chosen, model)[1]}
    return found | {"model": model.detach(), "tokens": [sample["unconcat_tokens"] for sample in chosen]}


def gradient_of_the_dropped(max_dual_clipped):
    """The largest gradient that the policy loss gives the sample with two dual-clipped tokens, in different chunks."""
    args = arguments(fipo_max_dual_clipped=max_dual_clipped)
    batch = micro_batch([samples({})[2]], args)
    logits = table().detach()[local_tokens(batch["unconcat_tokens"], False)][None].requires_grad_()
    loss, metrics = fipo_loss_function(args, batch, logits, reducer(batch))
    loss.backward()
    found = torch.stack([logits.grad.abs().max(), metrics["fipo/dropped_sequences"]])
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


@contextmanager
def counted_collectives():
    """The shapes of what is summed over the context-parallel group inside."""
    shapes, original = [], dist.all_reduce

    def count(tensor, *arguments, **keywords):
        if keywords.get("group") is mpu.get_context_parallel_group():
            shapes.append(tuple(tensor.shape))
        return original(tensor, *arguments, **keywords)

    dist.all_reduce = count
    yield shapes
    dist.all_reduce = original


def collectives(chosen):
    """What one micro-batch of these samples makes the context-parallel ranks exchange."""
    args = arguments()
    batch = micro_batch([samples({})[i] for i in chosen], args)
    logits = table()[local_tokens(batch["unconcat_tokens"], False)][None]
    with counted_collectives() as shapes:
        fipo_loss_function(args, batch, logits, reducer(batch))
    return shapes


def dump(folder):
    """The two debug dumps of one update with --use-rollout-logprobs: slime captures the loss's own log-probs."""
    os.makedirs(folder)
    args = arguments(use_rollout_logprobs=True)
    chosen = samples({})
    on_slime.loss.enable_log_prob_capture()
    update(args, [micro_batch(chosen, args)], table())
    captured = on_slime.loss.drain_captured_log_probs()
    names = {"unconcat_tokens": "tokens", "response_lengths": "response_lengths"}
    same = ("loss_masks", "rollout_log_probs", "advantages", "rollout_mask_sums")
    rows = [
        {new: sample[old] for old, new in names.items()}
        | {name: sample[name] for name in same}
        | {"log_probs": captured[i], "rewards": 1.0, "sample_index": i, "rollout_position": i}
        for i, sample in enumerate(chosen)
    ]
    torch.save({"format_version": 2, "rollout_id": 0, "rank": 0, "samples": rows}, os.path.join(folder, "train_0.pt"))
    rollout = [{"index": i, "prompt": "p", "status": "completed"} for i in range(len(chosen))]
    torch.save({"rollout_id": 0, "samples": rollout}, os.path.join(folder, "rollout_0.pt"))


def trace(folder, split, share, allgather):
    """Two rollouts of two updates on the same samples; of every second rollout traces are written."""
    everything = samples({})
    args = arguments(
        allgather_cp=allgather,
        recompute_loss_function=True,  # which asks the loss twice
        fipo_trace_dir=os.path.join(folder, "traces", split),
        fipo_trace_every=2,
        rollout_batch_size=len(LENGTHS),
        n_samples_per_prompt=1,
        hf_checkpoint="/nowhere",
    )
    places = [row for batch in share for row in batch]
    data = {"tokens": [everything[row]["unconcat_tokens"] for row in places], "partition": places}
    data["response_lengths"] = [LENGTHS[row][1] for row in places]
    data |= {"raw_reward": [float(row) for row in range(len(LENGTHS))], "truncated": [row % 2 for row in places]}
    TRACES.writer = None  # another run's
    for rollout in (0, 1):
        note_rollout(args, rollout, data)
        for step in (0, 1):
            before_train_step(args, rollout, step)
            for rows in share:
                batch = micro_batch([everything[row] for row in rows], args)
                logits = table()[local_tokens(batch["unconcat_tokens"], allgather)][None]
                loss, *_ = on_slime.loss.loss_function(args, batch, len(share), len(set(ROLLOUTS)), logits)
                loss.backward()


def rank_main(folder, world, rank):
    """One of `world` processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store_{world}", rank=rank, world_size=world)
    results = {}
    for split, (cp_size, allgather, shares) in SPLITS[world].items():
        on_slime.initialize(cp_size)
        share = shares[mpu.get_data_parallel_rank()]
        for option, options in OPTIONS.items():
            if option == "gspo" and "allgather" in split and "one" in split:
                continue  # slime's own GSPO aborts there: a rank without tokens leaves out a collective
            everything = samples(options)
            for kind, args in kinds(options, split):
                args.allgather_cp = allgather
                batches = [micro_batch([everything[i] for i in chosen], args) for chosen in share]
                results[split, option, kind] = update(args, batches, table())
        trace(folder, split, share, allgather)
        if len(shares) == 1:
            args = arguments(allgather_cp=allgather)
            results[split, "log_probs"], results[split, "weights"] = credit(args, samples({}), table())
            results[split, "one_truth"] = {regularized: truth(allgather, regularized) for regularized in (False, True)}
        results[split, "dropped"] = gradient_of_the_dropped(1)
        results[split, "not_dropped"] = gradient_of_the_dropped(2)
        if cp_size > 1 and not allgather:
            results[split, "collectives"] = {tuple(chosen): collectives(chosen) for chosen in ((0, 3), (2, 6))}
    if world == 1:
        if not on_slime.MILES:  # which captures no log-probs
            dump(os.path.join(folder, "dump"))
        results |= {"samples": samples({}), "knobs": KNOBS}
    if rank == 0:
        torch.save(results, os.path.join(folder, f"{world}.pt"))
    dist.destroy_process_group()


def main(folder):
    """Forks every rank of every world, which saves them the imports; fails if one fails."""
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_main, args=(folder, world, rank)) for world in SPLITS for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return int(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
