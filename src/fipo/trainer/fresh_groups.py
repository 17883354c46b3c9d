"""DAPO's dynamic sampling: groups of equal rewards, which teach nothing, are replaced by those of fresh prompts."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.nn.functional import pad

from fipo.errors import InvalidParameterError

MERGED = (  # the (B, …) tensors of a rollout that dynamic sampling merges
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "old_per_token_logps"),
    *("ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio", "advantages"),
    *("reward_total", "rewards_by_name"),  # fipo's own
)
PAD_LEFT = ("prompt_ids", "prompt_mask")
IDS = ("prompt_ids", "completion_ids")


class FreshGroups:
    """`fipo_dynamic_sampling_rounds` of a FIPOTrainer, which hands over how it makes and scores a rollout. Refuses data
    from which prompts cannot be drawn at random, and groups that are spread over ranks."""

    def __init__(self, trainer: Any, scored_rollout: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.trainer, self.scored_rollout = trainer, scored_rollout
        self.drawn = 0  # prompts so far, on this rank; a checkpoint holds it
        args = trainer.args
        if isinstance(trainer.train_dataset, IterableDataset):
            raise InvalidParameterError(
                "train_dataset is an IterableDataset, but dynamic sampling draws prompts at random; load it whole or "
                "set fipo_dynamic_sampling_rounds to 0."
            )
        local = args.per_device_train_batch_size * args.steps_per_generation
        if local % trainer.num_generations:
            raise InvalidParameterError(
                f"per_device_train_batch_size × steps_per_generation is {local}, but dynamic sampling needs a multiple "
                f"of num_generations ({trainer.num_generations}), so that no group is spread over ranks; change one."
            )

    def fill(self, rollout: dict[str, Any]) -> None:
        """Fills groups of equal rewards with fresh prompts' groups of unequal ones; all ranks go through all rounds."""
        trainer, accelerator, size = self.trainer, self.trainer.accelerator, self.trainer.num_generations
        unknown = {name for name, value in rollout.items() if isinstance(value, Tensor) and value.dim()}
        if unknown := unknown - {*MERGED, "sample_index"}:  # which is of the place, whatever fills it
            raise InvalidParameterError(
                f"The rollout holds {sorted(unknown)}, which dynamic sampling cannot merge; set "
                "fipo_dynamic_sampling_rounds to 0."
            )
        dead = dead_groups(rollout["reward_total"], size)
        replaced = rounds = 0
        for _ in range(trainer.args.fipo_dynamic_sampling_rounds):
            missing = int(accelerator.gather(torch.tensor([len(dead)], device=accelerator.device)).max())
            if missing == 0:
                break
            fresh = self._fresh_rollout(missing)
            equal = dead_groups(fresh["reward_total"], size)
            alive = [group for group in range(len(fresh["advantages"]) // size) if group not in equal]
            pairs = list(zip(dead, alive, strict=False))
            merge_groups(rollout, fresh, pairs, size, trainer._tokenizer.pad_token_id)
            dead, replaced, rounds = dead[len(pairs) :], replaced + len(pairs), rounds + 1
        rollout["num_items_in_batch"] = trainer.scores.count_items(rollout)
        counts = accelerator.gather(torch.tensor([[replaced, len(dead)]], device=accelerator.device)).sum(0).tolist()
        for name, value in zip(("rounds", "replaced_groups", "unfilled_groups"), (rounds, *counts), strict=True):
            trainer._metrics["train"][f"fipo/dynamic_sampling/{name}"].append(value)

    def _fresh_rollout(self, groups: int) -> dict[str, Any]:
        """Of the next prompts of a permutation of its own, each repeated for its group; ranks take turns."""
        trainer, dataset, accelerator = self.trainer, self.trainer.train_dataset, self.trainer.accelerator
        prompts = []
        for _ in range(groups):
            position = self.drawn * accelerator.num_processes + accelerator.process_index
            generator = torch.Generator().manual_seed(trainer.args.seed + 1 + position // len(dataset))
            index = torch.randperm(len(dataset), generator=generator)[position % len(dataset)].item()
            prompts += [dataset[index]] * trainer.num_generations
            self.drawn += 1
        metrics = trainer._metrics["train"]
        own = {name: list(values) for name, values in metrics.items()}
        fresh = self.scored_rollout(prompts)
        if "rewards/failed" in own:  # failures add up
            own["rewards/failed"][-1] += metrics["rewards/failed"][-1]
        metrics.clear()  # a rollout reports its own prompts: a round with few fresh ones would count as much
        metrics.update(own)
        return fresh


def dead_groups(rewards: Tensor, size: int) -> list[int]:
    """The groups whose rewards, (B,) with NaN where there is none, are all equal or absent."""
    grouped = rewards.view(-1, size)
    low, high = grouped.nan_to_num(torch.inf).amin(-1), grouped.nan_to_num(-torch.inf).amax(-1)
    return (high <= low).nonzero().flatten().tolist()


def merge_groups(
    rollout: dict[str, Any], fresh: dict[str, Any], pairs: list[tuple[int, int]], size: int, pad_token_id: int
) -> None:
    """Copies groups of `size` completions of `fresh` over some of `rollout`, which gets new tensors; `pairs` are the
    numbers of (target, source). Padding is widened where needed: ids with `pad_token_id`, all else with zeros."""
    if "tool_mask" in fresh or "tool_mask" in rollout:
        for each in (rollout, fresh):
            each.setdefault("tool_mask", torch.ones_like(each["completion_mask"]))
    for name in {*MERGED} & rollout.keys():
        old, new = rollout[name], fresh[name]
        if old.dim() == 2:
            width, value = max(old.shape[1], new.shape[1]), pad_token_id if name in IDS else 0
            missing = [(x, width - x.shape[1]) for x in (old, new)]
            old, new = (pad(x, (n, 0) if name in PAD_LEFT else (0, n), value=value) for x, n in missing)
        old = old.clone()
        for target, source in pairs:
            old[target * size : (target + 1) * size] = new[source * size : (source + 1) * size]
        rollout[name] = old
