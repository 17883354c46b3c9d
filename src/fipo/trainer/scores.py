"""What comes of a rollout's scores: failed rewards leave the loss, a run without scores ends, lengths are measured."""

from typing import Any

import torch
from torch import Tensor

from fipo.errors import DataError

LENGTH_PERCENTILES = (10, 50, 90, 99)
HOPELESS = 3  # rollouts in a row without any score, after which a run ends


class Scores:
    """Leaves a completion out of the loss where scoring it raised; `trainer` is the FIPOTrainer that it works for."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._scoreless = 0  # rollouts in a row without any score
        self.begin()

    def begin(self) -> None:
        """A rollout begins; it may be scored in several rounds."""
        self._any, self._raised_for_all = False, True

    def end(self) -> None:
        """The rollout is complete. Raises a DataError if it is the third in a row without any score."""
        self._scoreless = 0 if self._any else self._scoreless + 1
        if self._scoreless == HOPELESS:
            self.require_some()

    def require_some(self) -> None:
        """For the end of a run: raises a DataError if its last rollouts, or all, had no score."""
        if self._scoreless:
            what = "Scoring raised for every sample" if self._raised_for_all else "No reward gave a score to any sample"
            rollouts = "the last rollout" if self._scoreless == 1 else f"{self._scoreless} rollouts in a row"
            raise DataError(
                f"{what} of {rollouts}, so there is nothing to learn from; the first traceback or warning is above: "
                "repair the reward, or bring back what it calls."
            )

    def see(self, rewards: Tensor, completion_ids: list[list[int]]) -> Tensor:
        """TRL's rewards of all ranks' samples (B, functions), NaN throughout where one raised: the others do not stand
        for a sample that cannot be scored as a whole."""
        trainer, gather = self.trainer, self.trainer.accelerator.gather
        device, metrics = trainer.accelerator.device, trainer._metrics[trainer.mode]
        lengths = gather(torch.tensor([len(ids) for ids in completion_ids], device=device)).float()
        quantiles = torch.tensor(LENGTH_PERCENTILES, device=device) / 100
        for percentile, value in zip(LENGTH_PERCENTILES, lengths.quantile(quantiles).tolist(), strict=True):
            metrics[f"fipo/length_p{percentile}"].append(value)
        failures = [func.failed for func in trainer.reward_funcs if hasattr(func, "failed")]
        raised = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
        if failures:
            raised = gather(torch.tensor(failures, device=rewards.device).any(0))
            rewards[raised] = torch.nan
            metrics["rewards/failed"].append(raised.sum().item())
        self._any |= not bool(rewards.isnan().all())
        self._raised_for_all &= bool(raised.all())
        self._rewards = rewards
        return rewards

    def put_into(self, rollout: dict[str, Any], samples: int) -> dict[str, Any]:
        """`rollout` of this rank's samples, just scored, without failed ones in the loss; with what traces show."""
        start = self.trainer.accelerator.process_index * samples
        rewards = self._rewards[start : start + samples]
        failed = rewards.isnan().all(-1)
        if failed.any():  # out of the loss, yet still attended to
            mask = rollout.get("tool_mask", torch.ones_like(rollout["completion_mask"]))
            rollout["tool_mask"] = mask * ~failed[:, None]
        rollout["num_items_in_batch"] = self.count_items(rollout)
        weights = self.trainer.reward_weights.to(rewards.device)
        rollout["rewards_by_name"] = rewards
        rollout["sample_index"] = start + torch.arange(samples, device=rewards.device)
        rollout["reward_total"] = torch.where(failed, torch.nan, (rewards * weights).nansum(-1))
        return rollout

    def count_items(self, rollout: dict[str, Any]) -> Tensor:
        """The trained tokens of all ranks, which TRL's `dapo` divides by."""
        mask = rollout["completion_mask"] * rollout.get("tool_mask", 1)
        return self.trainer.accelerator.gather(mask.sum()).sum()
