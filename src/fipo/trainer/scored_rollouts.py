"""What FIPO adds to TRL's rollouts: dynamic sampling, the treatment of failed rewards, length percentiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from transformers.utils import logging

from fipo.errors import DataError, InvalidParameterError
from fipo.trainer.checkpoint import ExactResume

logger = logging.get_logger(__name__)

LENGTH_PERCENTILES = (10, 50, 90, 99)
HOPELESS = 3  # rollouts without any score, after which a run ends
PAD_LEFT = ("prompt_ids", "prompt_mask")
MERGED = (  # what a rollout may hold for dynamic sampling to merge; (B, …) tensors, padded with zeros
    *PAD_LEFT,
    *("completion_ids", "completion_mask", "tool_mask", "old_per_token_logps", "ref_per_token_logps"),
    *("sampling_per_token_logps", "importance_sampling_ratio", "advantages", "reward_total", "rewards_by_name"),
)


class RolloutExtras(ExactResume):
    """GRPOTrainer whose rollouts are FIPO's."""

    _failed_in_a_row = 0  # rollouts without any score

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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollout = self._scored_rollout(inputs)
        if self.model.training and self.args.fipo_dynamic_sampling_rounds:
            self._replace_dead_groups(rollout)
        return rollout

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _scored_rollout(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollout = super()._generate_and_score_completions(inputs)
        start = self.accelerator.process_index * len(inputs)
        rewards = self._rewards_per_func[start : start + len(inputs)]
        failed = rewards.isnan().all(-1)
        if failed.any():  # out of the loss, yet still attended to
            mask = rollout.get("tool_mask", torch.ones_like(rollout["completion_mask"]))
            rollout["tool_mask"] = mask * ~failed[:, None]
        rollout["num_items_in_batch"] = self._count_items(rollout)
        weights = self.reward_weights.to(rewards.device)
        rollout["rewards_by_name"] = rewards
        rollout["sample_index"] = start + torch.arange(len(inputs), device=rewards.device)
        rollout["reward_total"] = torch.where(failed, torch.nan, (rewards * weights).nansum(-1))
        return rollout

    def _count_items(self, rollout: dict[str, Any]) -> Tensor:
        mask = rollout["completion_mask"] * rollout.get("tool_mask", 1)
        return self.accelerator.gather(mask.sum()).sum()

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        """TRL's, but a sample whose reward raised is unscorable as a whole: its other rewards do not stand for it."""
        self._record_lengths(torch.tensor([len(ids) for ids in completion_ids_list], device=self.accelerator.device))
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        failures = [func.failed for func in self.reward_funcs if hasattr(func, "failed")]
        if failures:
            local = torch.tensor(failures, device=rewards.device).any(0)
            failed = self.accelerator.gather(local)
            self._failed_in_a_row = self._failed_in_a_row + 1 if failed.all() else 0
            if self._failed_in_a_row == HOPELESS:
                raise DataError(
                    f"Scoring raised for every sample of {HOPELESS} rollouts in a row, so there is nothing to learn "
                    "from; the first traceback is above: repair the reward, or bring back what it calls."
                )
            rewards[failed] = torch.nan
            self._metrics[self._mode]["rewards/failed"].append(failed.sum().item())
        self._rewards_per_func = rewards
        return rewards

    def _replace_dead_groups(self, rollout: dict[str, Any]) -> None:
        """Fill groups of equal rewards with fresh prompts' groups of unequal ones; all ranks go through all rounds."""
        unknown = {name for name, value in rollout.items() if isinstance(value, Tensor) and value.dim()} - {*MERGED}
        unknown -= {"sample_index"}  # of the place in the rollout, whatever fills it
        if unknown:
            raise InvalidParameterError(
                f"The rollout holds {sorted(unknown)}, which dynamic sampling cannot merge; set "
                "fipo_dynamic_sampling_rounds to 0."
            )
        dead = self._dead_groups(rollout)
        replaced = rounds = 0
        for _ in range(self.args.fipo_dynamic_sampling_rounds):
            missing = self.accelerator.gather(torch.tensor([len(dead)], device=self.accelerator.device))
            if missing.max() == 0:
                break
            with self._metrics_of_own_prompts():
                fresh = self._scored_rollout(self._draw_prompts(int(missing.max())))
            alive = sorted(set(range(len(fresh["advantages"]) // self.num_generations)) - set(self._dead_groups(fresh)))
            pairs = list(zip(dead, alive, strict=False))
            _merge_groups(rollout, fresh, pairs, self.num_generations)
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

    def _dead_groups(self, rollout: dict[str, Any]) -> list[int]:
        rewards = rollout["reward_total"].view(-1, self.num_generations)
        low = rewards.nan_to_num(torch.inf).amin(-1)
        high = rewards.nan_to_num(-torch.inf).amax(-1)
        return (high <= low).nonzero().flatten().tolist()

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

    def _record_lengths(self, lengths: Tensor) -> None:
        lengths = self.accelerator.gather(lengths).float()
        quantiles = torch.tensor(LENGTH_PERCENTILES, device=lengths.device) / 100
        metrics = self._metrics[self._mode]
        for percentile, value in zip(LENGTH_PERCENTILES, lengths.quantile(quantiles).tolist(), strict=True):
            metrics[f"fipo/length_p{percentile}"].append(value)


def _merge_groups(rollout: dict[str, Any], fresh: dict[str, Any], pairs: list[tuple[int, int]], size: int) -> None:
    """Copies group `source` of `fresh` over group `target` of `rollout`, widening the padding where needed."""
    if "tool_mask" in fresh or "tool_mask" in rollout:
        for each in (rollout, fresh):
            each.setdefault("tool_mask", torch.ones_like(each["completion_mask"]))
    for name in {*MERGED} & rollout.keys():
        old, new = rollout[name], fresh[name]
        if old.dim() == 2:
            width = max(old.shape[1], new.shape[1])
            old, new = (_widen(tensor, width, left=name in PAD_LEFT) for tensor in (old, new))
        old = old.clone()
        for target, source in pairs:
            old[target * size : (target + 1) * size] = new[source * size : (source + 1) * size]
        rollout[name] = old


def _widen(tensor: Tensor, width: int, *, left: bool) -> Tensor:
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing))
