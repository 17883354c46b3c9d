"""The flags --fipo-…, what they mean, and which of slime's own flags they cannot go with."""

import argparse
import logging
from contextlib import suppress
from functools import cache
from typing import Any

from fipo.core.logged import NOISE_LIMIT, rounding_warning
from fipo.core.rounding import expected_weight_error, log_ratio_error
from fipo.core.rules import CONTROL_HELP, CONTROLS, RULE_HELP, Weighting
from fipo.errors import InvalidParameterError
from fipo.params import KNOBS, PRESETS, FIPOParams
from fipo.traces.writer import TRACE_SETTINGS, TraceOptions

logger = logging.getLogger(__name__)

LOSS_PATH = "fipo.engines.slime.fipo_loss_function"
# What the hooks and the loss keep in the namespace, as fipo_….
KEPT = ("update_index", "next_hook_path", "next_postprocess_path", "log_ratio_error")
OTHER_LOSSES = ("gspo", "cispo")  # advantage estimators that in slime stand for a policy loss of their own
SETTINGS = ("preset", *KNOBS, "rule", "control", *TRACE_SETTINGS)
NO_EFFECT = ("chunk_size",)  # of pull request 1801, whose command lines still name it
_told: set[str] = set()  # what this process was warned of


def flag_of(name: str) -> str:
    """--fipo-decay-rate for decay_rate."""
    return f"--fipo-{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds a flag for each of SETTINGS; one that is not given is None in the namespace."""
    flags: dict[str, dict[str, Any]] = {
        "preset": {"choices": sorted(PRESETS), "help": "The paper's settings; the other flags override."},
        "rule": {"help": RULE_HELP},
        "control": {"choices": CONTROLS, "help": CONTROL_HELP},
        **{name: {"help": "Has no effect; accepted for pull request 1801's command lines."} for name in NO_EFFECT},
    }
    for name, knob in KNOBS.items():
        how: dict[str, Any] = {"type": type(knob.default), "choices": knob.choices or None}
        if isinstance(knob.default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        flags[name] = {"help": f"{knob.help} Default {knob.default}.", **how}
    for name, meaning in TRACE_SETTINGS.items():
        flags[name] = {"type": str if name == "trace_dir" else int, "help": meaning}
    group = parser.add_argument_group("FIPO", "fipo.FIPOParams documents them.")
    for name, about in flags.items():
        group.add_argument(flag_of(name), default=None, **about)
    return parser


def params_of(args: argparse.Namespace) -> FIPOParams:
    """The hyper-parameters in slime's namespace, where the launcher or --custom-config-path put them. Raises an
    InvalidParameterError where they are not there at all, one is misspelled, or one has a value out of range."""
    given = {name.removeprefix("fipo_"): value for name, value in vars(args).items() if name.startswith("fipo_")}
    if not {"decay_rate", "preset"} & given.keys():
        raise InvalidParameterError(
            "args.fipo_decay_rate is missing, but FIPO needs its settings: slime's train.py ignores --fipo-… flags "
            "without a word; start with `python -m fipo.engines.slime train.py …`, or put fipo_decay_rate and the "
            "others into the YAML file of --custom-config-path."
        )
    unknown = sorted(given.keys() - {*SETTINGS, *NO_EFFECT, *KEPT})
    if unknown:
        raise InvalidParameterError(
            f"fipo_{unknown[0]} is set, but must be one of {', '.join(f'fipo_{name}' for name in SETTINGS)}; "
            "correct the name."
        )
    chosen = {}
    for name, knob in KNOBS.items():
        if (value := given.get(name)) is not None:
            if isinstance(value, str) and isinstance(knob.default, float):  # YAML reads `1e3` as a string
                with suppress(ValueError):  # what is no number is named by the check
                    value = float(value)
            chosen[name] = knob.checked(f"fipo_{name}", value)
    return FIPOParams.preset(given["preset"], **chosen) if given.get("preset") else FIPOParams(**chosen)


def trace_options(args: argparse.Namespace) -> TraceOptions | None:
    return TraceOptions.of({name: getattr(args, f"fipo_{name}", None) for name in TRACE_SETTINGS})


def weighting_of(args: argparse.Namespace) -> Weighting | None:
    return _weighting(getattr(args, "fipo_rule", None), getattr(args, "fipo_control", None))


_weighting = cache(Weighting.of)  # asked for in every micro-batch


def updates_of(args: argparse.Namespace) -> int:
    """How many updates a rollout feeds; slime leaves out a last, smaller batch."""
    return args.rollout_batch_size * args.n_samples_per_prompt // args.global_batch_size


def check_arguments(args: argparse.Namespace) -> FIPOParams:
    """The hyper-parameters. Raises an InvalidParameterError where they are not right (`params_of`), or where slime's
    flags, as far as `args` holds them, do not go with them."""
    params = params_of(args)
    weighting_of(args)
    trace_options(args)
    if args.use_tis and args.use_rollout_logprobs:
        raise InvalidParameterError(
            "--use-tis and --use-rollout-logprobs are both set, but TIS corrects for π_old being the trainer's, and "
            "with --use-rollout-logprobs it is the rollout engine's own; drop one of them."
        )
    estimator = getattr(args, "advantage_estimator", None)
    if estimator in OTHER_LOSSES and estimator not in _told:
        _told.add(estimator)
        logger.warning(
            f"--advantage-estimator is {estimator}, so slime's own {estimator} loss gets the weighed advantages; the "
            "paper's FIPO is PPO's clipped loss, with grpo."
        )
    eps_clip_c, qkv_format = getattr(args, "eps_clip_c", None), getattr(args, "qkv_format", "thd")
    if eps_clip_c is not None and eps_clip_c != params.dual_clip_c:
        raise InvalidParameterError(
            f"--eps-clip-c is {eps_clip_c} and --fipo-dual-clip-c is {params.dual_clip_c}, but both are the bound of "
            "the dual clip; drop --eps-clip-c."
        )
    if qkv_format != "thd":
        raise InvalidParameterError(
            f"--qkv-format is {qkv_format}, but FIPO's loss knows packed sequences alone; set it to thd."
        )
    _refuse_a_no_op(args)
    if getattr(args, "fp16", None) is False and "bf16" not in _told:  # slime's default
        _told.add("bf16")
        error = expected_weight_error(log_ratio_error("bf16", "cast", "rounded"), params)
        if error > NOISE_LIMIT:
            logger.warning(rounding_warning(error, "pass --fp16, an eighth of that"))
    return params


def _refuse_a_no_op(args: argparse.Namespace) -> None:
    """With one update a rollout π_θ = π_old, every weight is 1, and FIPO is silently GRPO."""
    batch = getattr(args, "global_batch_size", None)
    if batch is None or getattr(args, "keep_old_actor", False):
        return  # not yet slime's whole namespace; or π_old is an older policy than the rollout's
    samples, updates = args.rollout_batch_size * args.n_samples_per_prompt, updates_of(args)
    if updates < 2:
        raise InvalidParameterError(
            f"A rollout of {args.rollout_batch_size} prompts × {args.n_samples_per_prompt} samples = {samples} samples "
            f"gives {updates} update of global batch size {batch}, but FIPO needs at least 2, because all weights are "
            f"1 until the first is made; set --global-batch-size to at most {max(samples // 2, 1)} (the paper: 8 "
            "updates a rollout), or --num-steps-per-rollout to at least 2."
        )
