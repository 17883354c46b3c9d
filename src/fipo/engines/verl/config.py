"""FIPO's hyper-parameters in verl's configuration: `actor_rollout_ref.actor.policy_loss`."""

import warnings
from dataclasses import dataclass
from functools import cached_property

from verl.workers.config import PolicyLossConfig

from fipo.core.rules import Weighting
from fipo.engines.verl import guard, traced_rows
from fipo.engines.verl.contract import NAME, check_owner
from fipo.errors import InvalidParameterError
from fipo.params import KNOBS, FIPOParams
from fipo.traces.writer import TRACE_SETTINGS, TraceOptions

FORK_ALIASES = {  # our name → that of the authors' fork
    "clip_ratio_low": "future_kl_clip_ratio",
    "clip_ratio_high": "future_kl_clip_ratio",
    "clip_high_only": "future_kl_clip_high_only",
}
FORK_WITHOUT_EFFECT = (
    *("future_kl_start", "future_kl_window", "future_kl_average", "future_kl_filter_extreme"),  # its loss read none
    "chunk_size",  # fipo chooses it itself
)
FORK_LOSS_MODE = "future_kl"


@dataclass
class FIPOPolicyLossConfig(PolicyLossConfig):
    """`FIPOParams` as fields of verl's policy-loss configuration.

    What is not given has the preset's value, or FIPOParams' default without a preset; afterwards the field holds what
    the loss uses. `dual_clip_c` is verl's own `actor.clip_ratio_c`: given, or with a preset (the paper: 10), it must
    agree. PPO's clip range is verl's `actor.clip_ratio_low` and `_high`; the fields below bound the weight.
    `rule` (python:module:function) and `control` (for experiments) replace FIPO's weights, as `fipo.core.rules` says;
    `trace_dir`, `trace_every` and `trace_samples` ask for traces. The names of the authors' fork are understood:
    `future_kl_clip_ratio` is both bounds, `future_kl_clip_high_only` is `clip_high_only`, `loss_mode=future_kl` is
    `fipo`; its other settings have no effect and warn.

    Raises:
        InvalidParameterError: A value is out of range, two names of one field disagree, `loss_mode` names another loss,
            or the driver's configuration makes one update a rollout.
        FIPOError: Somebody else owns the policy loss `fipo`, or traces are asked for and this verl cannot give them.
    """

    loss_mode: str = NAME
    preset: str | None = None

    decay_rate: float | None = None
    clip_ratio_low: float | None = None
    clip_ratio_high: float | None = None
    clip_high_only: bool | None = None
    safety_thresh: float | None = None
    dual_clip_c: float | None = None
    max_dual_clipped: int | None = None
    distance: str | None = None

    rule: str | None = None
    control: str | None = None
    trace_dir: str | None = None
    trace_every: int | None = None
    trace_samples: int | None = None

    future_kl_clip_ratio: float | None = None
    future_kl_clip_high_only: bool | None = None
    future_kl_start: str | None = None
    future_kl_window: int | None = None
    future_kl_average: bool | None = None
    future_kl_filter_extreme: bool | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_owner()
        if self.loss_mode not in (NAME, FORK_LOSS_MODE):
            raise InvalidParameterError(
                f"policy_loss.loss_mode is {self.loss_mode!r}, so verl would not call FIPO; add "
                f"actor_rollout_ref.actor.policy_loss.loss_mode={NAME}, or remove policy_loss._target_."
            )
        self._set("loss_mode", NAME)
        self._translate_the_fork()
        Weighting.of(self.rule, self.control, "policy_loss.{}")
        if self.trace_options() is not None:
            traced_rows.watch_micro_batches()
        given = {name: getattr(self, name) for name in KNOBS if getattr(self, name) is not None}
        params = FIPOParams.preset(self.preset, **given) if self.preset is not None else FIPOParams(**given)
        for name in KNOBS:
            # Without a preset, what is not given about the dual clip follows verl's own setting.
            if name != "dual_clip_c" or name in given or self.preset is not None:
                self._set(name, getattr(params, name))
        config = guard.driver_config()
        if config is not None:
            guard.check_updates(config)
            guard.warn_of_foreign_old_policy(config)
            self.params(config.actor_rollout_ref.actor.clip_ratio_c)

    def params(self, clip_ratio_c: float) -> FIPOParams:
        """The hyper-parameters with verl's `actor.clip_ratio_c` as the dual clip."""
        if self.dual_clip_c is not None and self.dual_clip_c != clip_ratio_c:
            source = f"of preset {self.preset}" if self.preset is not None else "of policy_loss"
            raise InvalidParameterError(
                f"dual_clip_c {source} is {self.dual_clip_c}, but verl's actor.clip_ratio_c is {clip_ratio_c}, and "
                f"they are one bound; add actor_rollout_ref.actor.clip_ratio_c={self.dual_clip_c}."
            )
        return FIPOParams(**{name: getattr(self, name) for name in KNOBS} | {"dual_clip_c": clip_ratio_c})

    @cached_property
    def weighting(self) -> Weighting | None:
        """The rule or control that replaces FIPO's weights; None where none is asked for."""
        return Weighting.of(self.rule, self.control, "policy_loss.{}")

    def trace_options(self) -> TraceOptions | None:
        """Where traces go; None where none are asked for."""
        return TraceOptions.of({name: getattr(self, name) for name in TRACE_SETTINGS})

    def _translate_the_fork(self) -> None:
        if self.future_kl_clip_ratio == 0:
            raise InvalidParameterError(
                "future_kl_clip_ratio is 0, which in the authors' fork let weights range from 0 to 10 and here would "
                "fix them at 1; set clip_ratio_low and clip_ratio_high to the range that you want."
            )
        for name, alias in FORK_ALIASES.items():
            own, value = getattr(self, name), getattr(self, alias)
            if own is not None and value is not None and own != value:
                raise InvalidParameterError(
                    f"{name} is {own}, but {alias}, the fork's name for it, is {value}; remove {alias}."
                )
            self._set(name, own if value is None else value)
        dead = [name for name in FORK_WITHOUT_EFFECT if getattr(self, name) is not None]
        if dead:
            warnings.warn(f"{', '.join(dead)}: these have no effect here; remove them.", stacklevel=4)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # verl freezes the fields of its configurations
