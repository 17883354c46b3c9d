"""FIPOConfig: TRL's GRPOConfig with FIPO's hyper-parameters and the paper's scaffold as defaults."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import DistributedType
from trl import GRPOConfig

from fipo.core.rules import CONTROL_HELP, RULE_HELP, Weighting
from fipo.errors import InvalidParameterError
from fipo.params import KNOBS, FIPOParams, Knob

UPDATES_PER_ROLLOUT = 8  # the paper's: 512 prompts a rollout in mini-batches of 64


def _option(help: str, default: Any = None, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


def _knob(name: str) -> Any:
    knob = KNOBS[name]
    return _option(f"{knob.help} Default {str(knob.default).lower()}.")


@dataclass
class FIPOConfig(GRPOConfig):
    """Every argument of TRL's GRPOConfig, and FIPO's.

    What is left at None takes its value from `fipo_preset`, or else from FIPOParams; TRL's `delta` is the dual clip.
    Defaults that differ from GRPO's: `epsilon_high` is 0.28 (DAPO), dropout is off, and a rollout feeds 8 updates where
    none of `steps_per_generation`, `generation_batch_size` and `num_iterations` is set. CPUs compute in float32, GPUs
    autocast to float16: bfloat16's rounding is larger than what small updates change (docs/precision.md).

    Raises:
        InvalidParameterError: A setting is out of range, contradicts another, or cannot be combined with FIPO.
    """

    epsilon_high: float | None = _option("Upper clip of the ratio, 1 + epsilon_high.", 0.28)
    disable_dropout: bool = _option("Dropout would be noise in every log-ratio.", True)
    logging_nan_inf_filter: bool = _option("Hide NaN losses. Off: they are shown.", False)

    fipo_preset: str | None = _option("The paper's settings: 7b or 32b. Other flags override.", aliases=["--preset"])
    fipo_decay_rate: float | None = _knob("decay_rate")
    fipo_clip_ratio_low: float | None = _knob("clip_ratio_low")
    fipo_clip_ratio_high: float | None = _knob("clip_ratio_high")
    fipo_clip_high_only: bool | None = _knob("clip_high_only")
    fipo_safety_thresh: float | None = _knob("safety_thresh")
    fipo_dual_clip_c: float | None = _knob("dual_clip_c")  # TRL's delta
    fipo_max_dual_clipped: int | None = _knob("max_dual_clipped")
    fipo_distance: str | None = _knob("distance")
    fipo_rule: str | None = _option(RULE_HELP)
    fipo_control: str | None = _option(CONTROL_HELP)
    fipo_head_memory: float | None = _option(
        "GiB of logits to keep for the backward; what is beyond is computed again. Default 0.5 on a CPU, else a "
        "sixteenth of the device's memory."
    )
    fipo_trace_every: int = _option("Write traces of every so many rollouts, and of the last; 0: never.", 8)
    fipo_trace_samples: int = _option("Completions of a traced rollout to write.", 64)
    fipo_dynamic_sampling_rounds: int = _option(
        "DAPO's dynamic sampling: replace groups of equal rewards, in at most this many rounds; 0: off.", 0
    )

    def __post_init__(self) -> None:
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.bf16, self.fp16 = mixed_precision(self.bf16, self.fp16, launcher, on_cpu=on_cpu)  # type: ignore[has-type]
        steps: int | None = self.steps_per_generation  # type: ignore[has-type]
        if steps is None and self.generation_batch_size is None and self.num_iterations == 1:
            self.steps_per_generation = UPDATES_PER_ROLLOUT * self.gradient_accumulation_steps
        super().__post_init__()
        state = self.distributed_state
        replaced = state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU)
        refuse_another_engine("FSDP", state, replaced=replaced)
        self._resolve_knobs()
        self.weighting = Weighting.of(self.fipo_rule, self.fipo_control)
        self._refuse_what_does_not_combine()
        self._refuse_a_no_op()

    @property
    def fipo_params(self) -> FIPOParams:
        return FIPOParams(**{name: getattr(self, f"fipo_{name}") for name in KNOBS})

    @property
    def clip_range(self) -> tuple[float, float]:
        """PPO's epsilon_low and epsilon_high."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.steps_per_generation * self.num_iterations // self.gradient_accumulation_steps

    def _resolve_knobs(self) -> None:
        given = {name: getattr(self, f"fipo_{name}") for name in KNOBS}
        given = {name: KNOBS[name].checked(f"fipo_{name}", value) for name, value in given.items() if value is not None}
        delta: float | None = self.delta  # type: ignore[has-type]
        if delta is not None and given.setdefault("dual_clip_c", delta) != delta:
            raise InvalidParameterError(
                f"fipo_dual_clip_c is {self.fipo_dual_clip_c} and delta is {delta}, but they are one bound; "
                "set one of them."
            )
        params = FIPOParams.preset(self.fipo_preset, **given) if self.fipo_preset else FIPOParams(**given)
        for name in KNOBS:
            setattr(self, f"fipo_{name}", getattr(params, name))
        self.delta = params.dual_clip_c

    def _refuse_what_does_not_combine(self) -> None:
        high, spread = 1 + self.clip_range[1], (self.scale_rewards, self.multi_objective_aggregation)
        if self.loss_type not in ("cispo", "sapo", "vespo") and self.delta <= high:  # these clip otherwise
            raise InvalidParameterError(
                f"fipo_dual_clip_c is {self.delta}, but must exceed 1 + epsilon_high, {high:g}, or the dual clip would "
                "undo the clip; raise it."
            )
        if self.sync_ref_model:
            raise InvalidParameterError(
                "sync_ref_model is true, but checkpoints hold the policy alone, so a resumed run would be held to "
                "another reference; set it to false."
            )
        if (self.fipo_dynamic_sampling_rounds or 0) > 0 and (spread[0] == "batch" or spread[1] == "normalize_then_sum"):
            raise InvalidParameterError(
                f"scale_rewards is {spread[0]!r} and multi_objective_aggregation {spread[1]!r}, but with dynamic "
                "sampling a batch's spread is that of several rounds; set scale_rewards to 'group' and "
                "multi_objective_aggregation to 'sum_then_normalize'."
            )
        for name in ("fipo_dynamic_sampling_rounds", "fipo_trace_every", "fipo_trace_samples", "fipo_head_memory"):
            if (value := getattr(self, name)) is not None:
                Knob(default=0.0, low=0).checked(name, value)

    def _refuse_a_no_op(self) -> None:
        micro_batches = self.steps_per_generation * self.num_iterations
        if micro_batches % self.gradient_accumulation_steps:
            raise InvalidParameterError(
                f"steps_per_generation × num_iterations is {micro_batches}, but must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}), so that a rollout ends with an "
                "update; change steps_per_generation."
            )
        if self.updates_per_rollout < 2:
            prompts = self.generation_batch_size // self.num_generations
            raise InvalidParameterError(
                f"The {prompts} prompts × {self.num_generations} samples of a rollout feed {self.updates_per_rollout} "
                f"update (steps_per_generation {self.steps_per_generation} × num_iterations {self.num_iterations} ÷ "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps}), so π_θ = π_old, every weight is 1 "
                "and FIPO would silently be GRPO; raise steps_per_generation or num_iterations to get at least 2."
            )


def mixed_precision(bf16: bool | None, fp16: bool | None, launcher: str, *, on_cpu: bool) -> tuple[bool, bool]:
    """What `bf16` and `fp16` shall be: as given, else as accelerate's launcher was told, else float16 on a GPU."""
    if not fp16 and bf16 is None:
        bf16, fp16 = launcher == "bf16", launcher == "fp16" or (launcher == "no" and not on_cpu)
    return bool(bf16), bool(fp16)


def refuse_another_engine(engine: str, state: Any, *, replaced: bool) -> None:
    """Raises an InvalidParameterError where FSDP or DEEPSPEED was asked for and is `replaced`: without GPUs accelerate,
    of which `state` is, takes plain data parallelism or one process in its place."""
    asked = os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("true", "1", "yes")
    if asked and replaced:
        raise InvalidParameterError(
            f"{engine} is asked for, but accelerate runs {state.distributed_type.value} with {state.num_processes} "
            f"process(es) on {state.device.type}; start two or more on GPUs, or leave it out."
        )
