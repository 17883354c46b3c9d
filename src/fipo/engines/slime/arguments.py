"""The flags --fipo-…, what they mean, and which of slime's own flags they cannot go with."""

import argparse
import logging
from contextlib import suppress
from typing import Any

from fipo.core.control import CONTROLS, HELP, check_control
from fipo.engines.tracing import TRACE_SETTINGS, TraceOptions
from fipo.errors import InvalidParameterError
from fipo.params import FORMER_KNOBS, KNOBS, NO_EFFECT, PRESETS, FIPOParams

logger = logging.getLogger(__name__)

LOSS_PATH = "fipo.engines.slime.fipo_loss_function"
OF_THE_HOOKS = ("update_index", "next_hook_path", "next_postprocess_path")  # what they keep in the namespace, as fipo_…
OTHER_LOSSES = ("gspo", "cispo")  # advantage estimators that in slime stand for a policy loss of their own
SETTINGS = ("preset", *KNOBS, "control", *TRACE_SETTINGS)
_told: set[str] = set()  # settings without effect that were warned about in this process


def flag_of(name: str) -> str:
    """--fipo-decay-rate for decay_rate."""
    return f"--fipo-{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds a flag for each of SETTINGS; one that is not given is None in the namespace."""
    group = parser.add_argument_group("FIPO", "fipo.FIPOParams documents them.")
    group.add_argument(
        "--fipo-preset", choices=sorted(PRESETS), default=None, help="The paper's settings; the other flags override."
    )
    for name, knob in KNOBS.items():
        how: dict[str, Any] = {"type": type(knob.default), "choices": knob.choices or None}
        if isinstance(knob.default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        group.add_argument(flag_of(name), default=None, help=f"{knob.help} Default {knob.default}.", **how)
    group.add_argument("--fipo-control", choices=CONTROLS, default=None, help=f"{HELP}.")
    for name, meaning in TRACE_SETTINGS.items():
        group.add_argument(flag_of(name), type=str if name == "trace_dir" else int, default=None, help=meaning)
    for name in FORMER_KNOBS:
        group.add_argument(flag_of(name), default=None, help="Has no effect; accepted for older command lines.")
    return parser


def params_of(args: argparse.Namespace) -> FIPOParams:
    """The hyper-parameters in slime's namespace, where the launcher or --custom-config-path put them.

    Raises:
        InvalidParameterError: They are not there at all, one is misspelled, or one has a value out of range.
    """
    given = {name.removeprefix("fipo_"): value for name, value in vars(args).items() if name.startswith("fipo_")}
    if not {"decay_rate", "preset"} & given.keys():
        raise InvalidParameterError(
            "args.fipo_decay_rate is missing, but FIPO needs its settings: slime's train.py ignores --fipo-… flags "
            "without a word; start with `python -m fipo.engines.slime train.py …`, or put fipo_decay_rate and the "
            "others into the YAML file of --custom-config-path."
        )
    unknown = sorted(given.keys() - {*SETTINGS, *FORMER_KNOBS, *OF_THE_HOOKS})
    if unknown:
        raise InvalidParameterError(
            f"fipo_{unknown[0]} is set, but must be one of {', '.join(f'fipo_{name}' for name in SETTINGS)}; "
            "correct the name."
        )
    chosen = {name: _checked(name, given[name]) for name in KNOBS if given.get(name) is not None}
    return FIPOParams.preset(given["preset"], **chosen) if given.get("preset") else FIPOParams(**chosen)


def trace_options(args: argparse.Namespace) -> TraceOptions | None:
    """Where traces go; None where none are asked for."""
    return TraceOptions.of({name: getattr(args, f"fipo_{name}", None) for name in TRACE_SETTINGS})


def control_of(args: argparse.Namespace) -> str | None:
    """The control that replaces FIPO's weights, of `fipo.core.control.CONTROLS`; None where none is asked for."""
    return getattr(args, "fipo_control", None)


def updates_of(args: argparse.Namespace) -> int:
    """How many updates a rollout feeds; slime leaves out a last, smaller batch."""
    return args.rollout_batch_size * args.n_samples_per_prompt // args.global_batch_size


def check_arguments(args: argparse.Namespace) -> FIPOParams:
    """Refuses what cannot work, as far as `args` tell; returns the hyper-parameters.

    Raises:
        InvalidParameterError: They are not right (`params_of`), or slime's flags do not go with them.
    """
    params = params_of(args)
    check_control("fipo_control", control_of(args))
    trace_options(args)
    if args.use_tis and args.use_rollout_logprobs:
        raise InvalidParameterError(
            "--use-tis and --use-rollout-logprobs are both set, but TIS corrects for π_old being the trainer's, and "
            "with --use-rollout-logprobs it is the rollout engine's own; drop one of them."
        )
    estimator = getattr(args, "advantage_estimator", None)
    if estimator in OTHER_LOSSES:
        raise InvalidParameterError(
            f"--advantage-estimator is {estimator}, which in slime stands for a policy loss of its own, "
            "but FIPO is the policy loss; use grpo, whose advantages are the same."
        )
    eps_clip_c = getattr(args, "eps_clip_c", None)
    if eps_clip_c is not None and eps_clip_c != params.dual_clip_c:
        raise InvalidParameterError(
            f"--eps-clip-c is {eps_clip_c} and --fipo-dual-clip-c is {params.dual_clip_c}, but both are the bound of "
            "the dual clip; drop --eps-clip-c."
        )
    qkv_format = getattr(args, "qkv_format", "thd")
    if qkv_format != "thd":
        raise InvalidParameterError(
            f"--qkv-format is {qkv_format}, but FIPO's loss knows packed sequences alone; set it to thd."
        )
    _check_updates(args)
    if getattr(args, "global_batch_size", None) is not None:  # slime's whole namespace
        _warn_of_former_knobs(args)
    return params


def _warn_of_former_knobs(args: argparse.Namespace) -> None:
    for name in FORMER_KNOBS:
        if getattr(args, f"fipo_{name}", None) is not None and name not in _told:
            _told.add(name)
            logger.warning(f"{flag_of(name)} {NO_EFFECT}")


def _check_updates(args: argparse.Namespace) -> None:
    """The no-op guard: with one update a rollout π_θ = π_old, every weight is 1, and FIPO is silently GRPO."""
    batch = getattr(args, "global_batch_size", None)
    if batch is None:  # not slime's whole namespace, parsed and filled in
        return
    if getattr(args, "keep_old_actor", False):  # π_old is an older policy than the rollout's
        return
    samples, updates = args.rollout_batch_size * args.n_samples_per_prompt, updates_of(args)
    if updates < 2:
        raise InvalidParameterError(
            f"A rollout of {args.rollout_batch_size} prompts × {args.n_samples_per_prompt} samples = {samples} samples "
            f"gives {updates} update of global batch size {batch}, but FIPO needs at least 2, because all weights are "
            f"1 until the first is made; set --global-batch-size to at most {max(samples // 2, 1)} (the paper: 8 "
            "updates a rollout), or --num-steps-per-rollout to at least 2."
        )


def _checked(name: str, value: Any) -> Any:
    """YAML reads `1e3` as a string; everything else must have the field's type."""
    if isinstance(value, str) and isinstance(KNOBS[name].default, float):
        with suppress(ValueError):  # what is no number is named by the check
            value = float(value)
    return KNOBS[name].checked(f"fipo_{name}", value)
