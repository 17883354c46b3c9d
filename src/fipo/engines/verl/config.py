"""FIPO's hyper-parameters in verl's configuration: `actor_rollout_ref.actor.policy_loss`."""

from dataclasses import dataclass
from functools import cached_property

from verl.workers.config import PolicyLossConfig

from fipo.core.rules import Weighting
from fipo.engines.verl import guard, traced_rows
from fipo.engines.verl.contract import NAME, check_owner
from fipo.errors import InvalidParameterError
from fipo.params import KNOBS, FIPOParams
from fipo.traces.writer import TRACE_SETTINGS, TraceOptions


@dataclass
class FIPOPolicyLossConfig(PolicyLossConfig):
    """`FIPOParams` as fields of verl's policy-loss configuration.

    What is not given has the preset's value, or FIPOParams' default without a preset; afterwards the field holds what
    the loss uses. `dual_clip_c` is verl's own `actor.clip_ratio_c`: given, or with a preset (the paper: 10), it must
    agree. PPO's clip range is verl's `actor.clip_ratio_low` and `_high`; the fields below bound the weight.
    `rule` (python:module:function) and `control` (for experiments) replace FIPO's weights, as `fipo.core.rules` says;
    `trace_dir`, `trace_every` and `trace_samples` ask for traces. docs/engines.md maps the names of the authors' fork.

    Raises:
        InvalidParameterError: A value is out of range, `loss_mode` names another loss, or the driver's configuration
            makes one update a rollout.
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

    def __post_init__(self) -> None:
        check_owner()
        if self.loss_mode != NAME:
            raise InvalidParameterError(
                f"policy_loss.loss_mode is {self.loss_mode!r}, so verl would not call FIPO; add "
                f"actor_rollout_ref.actor.policy_loss.loss_mode={NAME}, or remove policy_loss._target_."
            )
        Weighting.of(self.rule, self.control, "policy_loss.{}")
        if self.trace_options() is not None:
            traced_rows.watch_micro_batches()
        given = {name: getattr(self, name) for name in KNOBS if getattr(self, name) is not None}
        params = FIPOParams.preset(self.preset, **given) if self.preset is not None else FIPOParams(**given)
        for name in KNOBS:
            # Without a preset, what is not given about the dual clip follows verl's own setting.
            if name != "dual_clip_c" or name in given or self.preset is not None:
                object.__setattr__(self, name, getattr(params, name))  # verl freezes the fields
        config = guard.driver_config()
        if config is not None:
            guard.check_updates(config)
            guard.warn_of_foreign_old_policy(config)
            guard.warn_of_rounding(config, self.params(config.actor_rollout_ref.actor.clip_ratio_c))

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
