"""FIPO needs more than one update a rollout: with one, π_θ = π_old, every weight is 1, and FIPO is silently GRPO."""

import warnings
from typing import Any

import torch
from omegaconf import DictConfig
from verl.utils.config import omega_conf_to_dataclass

from fipo.core.loss import FIPOOutput
from fipo.engines.verl.config import FIPOPolicyLossConfig
from fipo.errors import InvalidParameterError

REMEDY = (
    "make data.train_batch_size at least twice actor_rollout_ref.actor.ppo_mini_batch_size (the paper: 512 and 64), or "
    "actor_rollout_ref.actor.ppo_epochs at least 2"
)
WATCHED_UPDATES = 32
STILL = 1e-3  # mean |weight − 1|


def check_config(config: DictConfig) -> None:
    """Refuses a configuration of verl's PPO trainer with which FIPO cannot work. Needs no GPU and starts nothing.

    Args:
        config: The whole configuration, as `verl.trainer.main_ppo` composes it.

    Raises:
        InvalidParameterError: FIPO is not the policy loss, or the dual clip has two values, or a rollout is used for
            one update.
        Exception: What verl raises where it cannot build the actor's configuration, FIPO's part included.
    """
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    if not isinstance(actor.policy_loss, FIPOPolicyLossConfig):
        raise InvalidParameterError(
            f"policy_loss is a {type(actor.policy_loss).__name__} with loss_mode {actor.policy_loss.loss_mode}, but "
            "this command trains with FIPO; add actor_rollout_ref.actor.policy_loss._target_="
            "fipo.engines.verl.FIPOPolicyLossConfig actor_rollout_ref.actor.policy_loss.loss_mode=fipo."
        )
    actor.policy_loss.params(actor.clip_ratio_c)
    prompts, samples = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    updates = prompts // actor.ppo_mini_batch_size * actor.ppo_epochs
    if updates < 2:
        raise InvalidParameterError(
            f"A rollout of {prompts} prompts × {samples} samples gives {updates} update(s) of "
            f"{actor.ppo_mini_batch_size} prompts × {samples} samples in {actor.ppo_epochs} epoch(s), but FIPO needs at "
            f"least 2, because all weights are 1 until the first; {REMEDY}."
        )


class OneUpdateWatch:
    """Notices the same mistake from inside the loss, which sees neither a rollout's size nor where it begins.

    If the weights stay at 1 for the first 32 updates there is one warning; no error, because a tiny learning rate looks
    alike. Numerical noise between π_old and π_θ hides the mistake, so `check_config` is the guard, and this the net.
    """

    def __init__(self) -> None:
        self.updates_left = float(WATCHED_UPDATES)

    def see(self, out: FIPOOutput, config: Any) -> None:
        """Looks at one micro-batch; `config` is verl's ActorConfig."""
        if self.updates_left <= 0:
            return
        moved = torch.where(out.kept, (out.raw_weight - 1).abs(), 0).sum() > STILL * out.kept.sum()
        self.updates_left = 0 if moved else self.updates_left - len(out.loss) / _rows_of_an_update(config)
        if not moved and self.updates_left <= 0:
            warnings.warn(
                f"FIPO's weights stayed at 1 for {WATCHED_UPDATES} updates, so this run is GRPO: is there one update "
                f"a rollout (ppo_epochs {config.ppo_epochs}), or hardly a learning rate? If the former, {REMEDY}.",
                stacklevel=3,
            )


def _rows_of_an_update(config: Any) -> float:
    """On this rank. Workers of verl 0.7 fill no global_batch_info and hold this rank's rows as ppo_mini_batch_size."""
    info = config.global_batch_info
    return (info.get("global_batch_size") or config.ppo_mini_batch_size) / (info.get("dp_size") or 1)
