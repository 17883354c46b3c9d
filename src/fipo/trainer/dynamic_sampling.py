"""DAPO's dynamic sampling: groups of equal rewards, which teach nothing, are replaced by those of fresh prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor

from fipo.errors import InvalidParameterError
from fipo.trainer.contract import MERGED
from fipo.trainer.scored_rollouts import ScoredRollouts

PAD_LEFT = ("prompt_ids", "prompt_mask")
IDS = ("prompt_ids", "completion_ids")
FRESH_PROMPTS = "fresh_prompts"  # where a checkpoint holds their number


class DynamicSampling(ScoredRollouts):
    """GRPOTrainer with `fipo_dynamic_sampling_rounds`."""

    _fresh_prompts = 0  # drawn so far, on this rank

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.fipo_dynamic_sampling_rounds:
            self._refuse_unfit_data()

    def _refuse_unfit_data(self) -> None:
        if isinstance(self.train_dataset, IterableDataset):
            raise InvalidParameterError(
                "train_dataset is an IterableDataset, but dynamic sampling draws prompts at random; load it whole or "
                "set fipo_dynamic_sampling_rounds to 0."
            )
        local = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if local % self.num_generations:
            raise InvalidParameterError(
                f"per_device_train_batch_size × steps_per_generation is {local}, but dynamic sampling needs a multiple "
                f"of num_generations ({self.num_generations}), so that no group is spread over ranks; change one."
            )

    def _fill(self, rollout: dict[str, Any]) -> dict[str, Any]:
        if self.model.training and self.args.fipo_dynamic_sampling_rounds:
            self._replace_dead_groups(rollout)
        return rollout

    def _resume_state(self) -> dict[str, Any]:
        return super()._resume_state() | {FRESH_PROMPTS: self._fresh_prompts}

    def _load_resume_state(self, state: dict[str, Any]) -> None:
        super()._load_resume_state(state)
        self._fresh_prompts = state[FRESH_PROMPTS]

    def _replace_dead_groups(self, rollout: dict[str, Any]) -> None:
        """Fill groups of equal rewards with fresh prompts' groups of unequal ones; all ranks go through all rounds."""
        unknown = {name for name, value in rollout.items() if isinstance(value, Tensor) and value.dim()} - {*MERGED}
        unknown -= {"sample_index"}  # of the place in the rollout, whatever fills it
        if unknown:
            raise InvalidParameterError(
                f"The rollout holds {sorted(unknown)}, which dynamic sampling cannot merge; set "
                "fipo_dynamic_sampling_rounds to 0."
            )
        dead = dead_groups(rollout["reward_total"], self.num_generations)
        replaced = rounds = 0
        for _ in range(self.args.fipo_dynamic_sampling_rounds):
            missing = self.accelerator.gather(torch.tensor([len(dead)], device=self.accelerator.device))
            if missing.max() == 0:
                break
            with self._metrics_of_own_prompts():
                fresh = self._scored_rollout(self._draw_prompts(int(missing.max())))
            equal = dead_groups(fresh["reward_total"], self.num_generations)
            alive = sorted(set(range(len(fresh["advantages"]) // self.num_generations)) - set(equal))
            pairs = list(zip(dead, alive, strict=False))
            merge_groups(rollout, fresh, pairs, self.num_generations, self._tokenizer.pad_token_id)
            replaced += len(pairs)
            dead = dead[len(pairs) :]
            rounds += 1
        rollout["num_items_in_batch"] = self._count_items(rollout)
        counts = torch.tensor([[replaced, len(dead)]], device=self.accelerator.device)
        replaced, unfilled = self.accelerator.gather(counts).sum(0).tolist()
        self._metrics["train"]["fipo/dynamic_sampling/rounds"].append(rounds)
        self._metrics["train"]["fipo/dynamic_sampling/replaced_groups"].append(replaced)
        self._metrics["train"]["fipo/dynamic_sampling/unfilled_groups"].append(unfilled)

    @contextmanager
    def _metrics_of_own_prompts(self) -> Iterator[None]:
        """A rollout reports its own prompts: a round with few fresh ones would count as much. Failures add up."""
        metrics = self._metrics["train"]
        before = {name: list(values) for name, values in metrics.items()}
        yield
        if "rewards/failed" in before:
            before["rewards/failed"][-1] += metrics["rewards/failed"][-1]
        metrics.clear()
        metrics.update(before)

    def _draw_prompts(self, groups: int) -> list[dict[str, Any]]:
        """The next prompts of a permutation of its own, each repeated for its group; ranks take turns."""
        size, ranks = len(self.train_dataset), self.accelerator.num_processes
        prompts = []
        for _ in range(groups):
            position = self._fresh_prompts * ranks + self.accelerator.process_index
            generator = torch.Generator().manual_seed(self.args.seed + 1 + position // size)
            index = torch.randperm(size, generator=generator)[position % size].item()
            prompts += [self.train_dataset[index]] * self.num_generations
            self._fresh_prompts += 1
        return prompts


def dead_groups(rewards: Tensor, size: int) -> list[int]:
    """The groups whose rewards, (B,) with NaN where there is none, are all equal or absent."""
    grouped = rewards.view(-1, size)
    low = grouped.nan_to_num(torch.inf).amin(-1)
    high = grouped.nan_to_num(-torch.inf).amax(-1)
    return (high <= low).nonzero().flatten().tolist()


def merge_groups(
    rollout: dict[str, Any], fresh: dict[str, Any], pairs: list[tuple[int, int]], size: int, pad_token_id: int
) -> None:
    """Copies group `source` of `fresh` over group `target` of `rollout`, widening the padding where needed.

    Args:
        rollout: Changed in place, with new tensors.
        fresh: Another rollout.
        pairs: (target, source), numbers of groups.
        size: Completions of a group.
        pad_token_id: What ids are widened with; everything else is widened with zeros.
    """
    if "tool_mask" in fresh or "tool_mask" in rollout:
        for each in (rollout, fresh):
            each.setdefault("tool_mask", torch.ones_like(each["completion_mask"]))
    for name in {*MERGED} & rollout.keys():
        old, new = rollout[name], fresh[name]
        if old.dim() == 2:
            width = max(old.shape[1], new.shape[1])
            old, new = (_widen(x, width, name in PAD_LEFT, pad_token_id if name in IDS else 0) for x in (old, new))
        old = old.clone()
        for target, source in pairs:
            old[target * size : (target + 1) * size] = new[source * size : (source + 1) * size]
        rollout[name] = old


def _widen(tensor: Tensor, width: int, left: bool, value: int) -> Tensor:
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=value)
