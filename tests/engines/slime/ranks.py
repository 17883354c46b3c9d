"""Run by test_slime_loss.py: updates under every option, split in every way over 1, 2 and 4 processes with gloo.

python ranks.py OUT            writes OUT/<world size>.pt
"""

import multiprocessing
import os
import sys

import on_slime  # first: it puts slime on the path
import torch
import torch.distributed as dist
from cases import COMPARED, LENGTHS, NEUTRAL, OPTIONS, ROLLOUTS, SPLITS, runs
from megatron.core import mpu
from scenarios import arguments, local_logits, micro_batch, samples, table

from fipo.engines.slime import before_train_step, credit_of, note_rollout
from fipo.engines.slime.traced_samples import TRACES


def update(args, batches, model):
    """One optimizer step's loss, gradient and metrics, as slime and Megatron put them together from all ranks."""
    totals, loss_sum = 0, 0
    before_train_step(args, 0, 0)
    for batch in batches:
        logits = local_logits(model, batch["unconcat_tokens"], args.allgather_cp)
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


def kinds(options, split):
    """The namespaces of FIPO, of FIPO with neutral weights and no drop, and of slime's own policy loss."""
    yield "fipo", arguments(**options)
    if split in COMPARED:
        yield "neutral", arguments(**options | {f"fipo_{name}": value for name, value in NEUTRAL.items()})
        yield "policy", arguments(**options, loss_type="policy_loss")


def credit(args, chosen, model):
    """Every sample's log π_θ and weights, put together from the context-parallel ranks."""
    batch = micro_batch(chosen, args)
    logits = local_logits(model, batch["unconcat_tokens"], args.allgather_cp)
    names = ("unconcat_tokens", "total_lengths", "response_lengths")
    scores = on_slime.get_log_probs_and_entropy(logits, args=args, **{name: batch[name] for name in names})
    local = [values.detach() for values in scores["log_probs"]]
    weight = credit_of(args, batch, local).weight.split([len(values) for values in local])
    rows = [zip(side, batch["total_lengths"], batch["response_lengths"], strict=True) for side in (local, weight)]
    return [[on_slime.cp_utils.all_gather_with_cp(*row).detach() for row in side] for side in rows]


def counted_collectives():
    """A list that gets the shape of everything that is summed over the context-parallel group from now on."""
    shapes, original = [], dist.all_reduce

    def count(tensor, *arguments, **keywords):
        if keywords.get("group") is mpu.get_context_parallel_group():
            shapes.append(tuple(tensor.shape))
        return original(tensor, *arguments, **keywords)

    dist.all_reduce = count
    return shapes


def trace(folder, split, share, allgather):
    """Two rollouts of two updates on the same samples; of every second rollout traces are written."""
    everything = samples()
    traces = {
        "fipo_trace_dir": os.path.join(folder, "traces", split),
        "fipo_trace_every": 2,
        "hf_checkpoint": "/nowhere",
    }
    sizes = {"rollout_batch_size": len(LENGTHS), "n_samples_per_prompt": 1}
    args = arguments(
        allgather_cp=allgather, recompute_loss_function=True, **traces, **sizes
    )  # which asks the loss twice
    places = [row for batch in share for row in batch]
    data = {"tokens": [everything[row]["unconcat_tokens"] for row in places], "partition": places}
    data |= {"raw_reward": [float(row) for row in range(len(LENGTHS))], "truncated": [row % 2 for row in places]}
    TRACES.writer = None  # another run's
    for rollout in (0, 1):
        note_rollout(args, rollout, data)
        for step in (0, 1):
            before_train_step(args, rollout, step)
            for rows in share:
                batch = micro_batch([everything[row] for row in rows], args)
                logits = local_logits(table(), batch["unconcat_tokens"], allgather)
                loss, *_ = on_slime.loss.loss_function(args, batch, len(share), len(set(ROLLOUTS)), logits)
                loss.backward()


def rank_main(folder, world, rank):
    """One of `world` processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store_{world}", rank=rank, world_size=world)
    results, shapes = {"samples": samples(), "model": table().detach()}, counted_collectives()
    for split, (cp_size, allgather, shares) in SPLITS[world].items():
        on_slime.initialize(cp_size)
        share = shares[mpu.get_data_parallel_rank()]
        for option, options in OPTIONS.items():
            everything = samples(**options)
            for kind, args in kinds(options, split) if runs(split, option) else ():
                args.allgather_cp = allgather
                batches = [micro_batch([everything[i] for i in chosen], args) for chosen in share]
                shapes.clear()
                results[split, option, kind] = update(args, batches, table()) | {"collectives": shapes.copy()}
        trace(folder, split, share, allgather)
        if len(shares) == 1:
            args = arguments(allgather_cp=allgather)
            results[split, "log_probs"], results[split, "weights"] = credit(args, samples(), table())
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
