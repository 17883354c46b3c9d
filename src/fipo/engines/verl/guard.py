"""FIPO needs more than one update a rollout: with one, π_θ = π_old, every weight is 1, and FIPO is silently GRPO.

The policy loss and its configuration see neither the rollout's size nor where a rollout begins. The driver's whole
configuration does: the guard reads it there. Where it cannot, a watch looks at the weights.
"""

import warnings
from typing import Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fipo.core.credit import TokenCredit
from fipo.core.logged import NOISE_LIMIT, rounding_warning
from fipo.core.rounding import expected_weight_error, log_ratio_error
from fipo.engines.verl.contract import release
from fipo.engines.verl.metrics import rows_of_an_update
from fipo.errors import InvalidParameterError
from fipo.params import FIPOParams

REMEDY = (
    "make data.train_batch_size at least twice actor_rollout_ref.actor.ppo_mini_batch_size (the paper: 512 and 64), or "
    "actor_rollout_ref.actor.ppo_epochs at least 2"
)
WATCHED_UPDATES = 32
STILL = 1e-3  # mean |weight − 1|


def driver_config() -> DictConfig | None:
    """The whole configuration, if Hydra started this process as verl's driver; elsewhere, as in workers, None.

    From verl 0.9 on the driver builds the actor's configuration before it starts Ray, so what is refused with this is
    refused before a GPU is taken. Older releases build it in processes that Hydra did not start.
    """
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    config = compose(hydra.job.config_name, overrides=list(hydra.overrides.task))
    return config if "data" in config and "actor_rollout_ref" in config else None


def check_updates(config: DictConfig) -> None:
    """Raises an InvalidParameterError where `config`, whole as verl's PPO trainer composes it, makes one update."""
    actor = config.actor_rollout_ref.actor
    prompts, samples = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    updates = -(-prompts // actor.ppo_mini_batch_size) * actor.ppo_epochs  # verl 0.9 fills the last one up
    if updates < 2:
        raise InvalidParameterError(
            f"A rollout of {prompts} prompts × {samples} samples gives 1 update of {actor.ppo_mini_batch_size} prompts "
            f"× {samples} samples, in {actor.ppo_epochs} epoch, but FIPO needs at least 2, because all weights are 1 "
            f"until the first is made; {REMEDY}."
        )


def warn_of_foreign_old_policy(config: DictConfig) -> None:
    """Where π_old is the rollout engine's, its mismatch with the trainer moves weights before any update."""
    if (config.algorithm.get("rollout_correction") or {}).get("bypass_mode"):
        warnings.warn(
            "algorithm.rollout_correction.bypass_mode is True, so π_old is the rollout engine's, and the difference "
            "between engines counts as drift in every weight; set it to False, so that the trainer recomputes π_old.",
            stacklevel=2,
        )


def forward_error(actor: Any) -> float:
    """The expected |error| of a log-ratio in nats: FSDP and Megatron round weights and sums, verl's heads the logits.
    `actor` is verl's ActorConfig, or what Hydra composed for it."""
    of_fsdp = (actor.get("fsdp_config") or {}).get("mixed_precision") or {}
    megatron = actor.get("megatron") or {"dtype": of_fsdp.get("param_dtype", "bf16")}
    return log_ratio_error(megatron["dtype"], "cast", "rounded")


def warn_of_rounding(config: DictConfig, params: FIPOParams) -> None:
    """Where the forward is bfloat16, verl's default, whose rounding is larger than what updates change."""
    found, actor = forward_error(config.actor_rollout_ref.actor), "actor_rollout_ref.actor"
    error = expected_weight_error(found, params)
    if found == log_ratio_error("bfloat16", "cast", "rounded") and error > NOISE_LIMIT:
        fsdp = f"+{actor}.fsdp_config.mixed_precision.param_dtype=float16"
        name = f"{actor}.megatron.dtype=float16" if "megatron" in config.actor_rollout_ref.actor else fsdp
        remedy = f"add {name} and actor_rollout_ref.rollout.dtype=float16, an eighth of that"
        warnings.warn(rounding_warning(error, remedy), stacklevel=2)


def refuse_lost_gradients(config: Any) -> None:
    """Raises an InvalidParameterError where `config`, verl's ActorConfig, asks for a head that loses gradients."""
    if config.get("use_fused_kernels", False) and release() < (0, 9):
        raise InvalidParameterError(
            "use_fused_kernels is True, but the fused head of this verl silently gives hidden states that are not "
            "contiguous no gradient (verl #7235), so only the head would learn; set "
            "actor_rollout_ref.model.use_fused_kernels=False, or take verl 0.9.1."
        )


class OneUpdateWatch:
    """The net below the guard: warns once if the weights stay at 1 for the first 32 updates. It is no error, as a tiny
    learning rate looks alike; and numerical noise between π_old and π_θ hides the mistake."""

    updates_left = float(WATCHED_UPDATES)

    def see(self, credit: TokenCredit, config: Any) -> None:
        """Looks at one micro-batch; `config` is verl's ActorConfig."""
        if self.updates_left <= 0:
            return
        moved = torch.where(credit.kept, (credit.raw_weight - 1).abs(), 0).sum() > STILL * credit.kept.sum()
        self.updates_left = 0 if moved else self.updates_left - len(credit.weight) / rows_of_an_update(config)
        if not moved and self.updates_left <= 0:
            warnings.warn(
                f"FIPO's weights stayed at 1 for {WATCHED_UPDATES} updates, so this run is GRPO: is there one update "
                f"a rollout (ppo_epochs {config.ppo_epochs}), or hardly a learning rate? If the former, {REMEDY}.",
                stacklevel=3,
            )
