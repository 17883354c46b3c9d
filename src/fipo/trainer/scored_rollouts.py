"""What FIPO does with the scores of a rollout: failed rewards leave the loss, a run without scores ends, lengths."""

from typing import Any

import torch
from torch import Tensor

from fipo.errors import DataError
from fipo.trainer.checkpoint import ExactResume

LENGTH_PERCENTILES = (10, 50, 90, 99)
HOPELESS = 3  # rollouts in a row without any score, after which a run ends


class ScoredRollouts(ExactResume):
    """GRPOTrainer that leaves a completion out of the loss where scoring it raised."""

    _scoreless = 0  # rollouts in a row without any score
    _scored_any, _raised_for_all = False, True  # of the rollout that is being made

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._scored_any, self._raised_for_all = False, True
        rollout = self._fill(self._scored_rollout(inputs))
        if self.model.training:
            self._scoreless = 0 if self._scored_any else self._scoreless + 1
            self._require_scores()
        return rollout

    def _fill(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """For what replaces a part of a rollout; it may call `_scored_rollout` again."""
        return rollout

    def require_some_score(self) -> None:
        """For the end of a run: raises a DataError if its last rollouts, or all, had no score."""
        if self._scoreless:
            self._require_scores(at_most=self._scoreless)

    def _require_scores(self, at_most: int = HOPELESS) -> None:
        if self._scoreless == at_most:
            cause = (
                "Scoring raised for every sample" if self._raised_for_all else "No reward gave a score to any sample"
            )
            rollouts = "the last rollout" if at_most == 1 else f"{at_most} rollouts in a row"
            raise DataError(
                f"{cause} of {rollouts}, so there is nothing to learn from; the first traceback or warning is above: "
                "repair the reward, or bring back what it calls."
            )

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
        raised = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
        if failures:
            raised = self.accelerator.gather(torch.tensor(failures, device=rewards.device).any(0))
            rewards[raised] = torch.nan
            self._metrics[self._mode]["rewards/failed"].append(raised.sum().item())
        self._scored_any |= not bool(rewards.isnan().all())
        self._raised_for_all &= bool(raised.all())
        self._rewards_per_func = rewards
        return rewards

    def _record_lengths(self, lengths: Tensor) -> None:
        lengths = self.accelerator.gather(lengths).float()
        quantiles = torch.tensor(LENGTH_PERCENTILES, device=lengths.device) / 100
        metrics = self._metrics[self._mode]
        for percentile, value in zip(LENGTH_PERCENTILES, lengths.quantile(quantiles).tolist(), strict=True):
            metrics[f"fipo/length_p{percentile}"].append(value)
