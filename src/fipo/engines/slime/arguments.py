"""The flags --fipo-…, what they mean, and which of slime's own flags they cannot go with."""

import argparse
from dataclasses import fields
from typing import Any, get_args

from fipo.errors import InvalidParameterError
from fipo.params import PRESETS, Distance, FIPOParams

LOSS_PATH = "fipo.engines.slime.fipo_loss_function"
KNOBS = {field.name: field.default for field in fields(FIPOParams)}
OF_THE_HOOK = ("update_index", "next_hook_path")  # what noise.py keeps in the namespace, as fipo_…
WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
OTHER_LOSSES = ("gspo", "cispo")  # advantage estimators that in slime stand for a policy loss of their own


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds --fipo-preset and a flag for every field of FIPOParams; one that is not given is None in the namespace."""
    group = parser.add_argument_group("FIPO", "fipo.FIPOParams documents the knobs.")
    group.add_argument(
        "--fipo-preset", choices=sorted(PRESETS), default=None, help="The paper's settings; the other flags override."
    )
    for name, default in KNOBS.items():
        how: dict[str, Any] = {"type": type(default), "help": f"Default {default}."}
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        elif name == "distance":
            how["choices"] = get_args(Distance)
        group.add_argument(f"--fipo-{name.replace('_', '-')}", default=None, **how)
    return parser


def params_of(args: argparse.Namespace) -> FIPOParams:
    """The knobs in slime's namespace, where the launcher or --custom-config-path put them.

    Raises:
        InvalidParameterError: They are not there at all, one is misspelled, or one has a value out of range.
    """
    given = {name.removeprefix("fipo_"): value for name, value in vars(args).items() if name.startswith("fipo_")}
    if not {"decay_rate", "preset"} & given.keys():
        raise InvalidParameterError(
            "args.fipo_decay_rate is missing, but FIPO needs its knobs: slime's train.py ignores --fipo-… flags "
            "without a word; start with `python -m fipo.engines.slime train.py …`, or put fipo_decay_rate and the "
            "other knobs into the YAML file of --custom-config-path."
        )
    unknown = sorted(given.keys() - KNOBS.keys() - {"preset", *OF_THE_HOOK})
    if unknown:
        raise InvalidParameterError(
            f"fipo_{unknown[0]} is set, but must be one of {', '.join(f'fipo_{name}' for name in ('preset', *KNOBS))}; "
            "correct the name."
        )
    chosen = {name: _typed(name, given[name]) for name in KNOBS if given.get(name) is not None}
    return FIPOParams.preset(given["preset"], **chosen) if given.get("preset") else FIPOParams(**chosen)


def check_arguments(args: argparse.Namespace) -> FIPOParams:
    """Refuses what cannot work, as far as `args` tell; returns the knobs.

    Raises:
        InvalidParameterError: The knobs are not right (`params_of`), or slime's flags do not go with them.
    """
    params = params_of(args)
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
    _check_updates(args)
    return params


def _check_updates(args: argparse.Namespace) -> None:
    """The no-op guard: with one update a rollout π_θ = π_old, every weight is 1, and FIPO is silently GRPO."""
    batch = getattr(args, "global_batch_size", None)
    if batch is None:  # not slime's whole namespace, parsed and filled in
        return
    if getattr(args, "keep_old_actor", False):  # π_old is an older policy than the rollout's
        return
    samples = args.rollout_batch_size * args.n_samples_per_prompt
    updates = samples // batch  # slime leaves out a last, smaller batch
    if updates < 2:
        raise InvalidParameterError(
            f"A rollout of {args.rollout_batch_size} prompts × {args.n_samples_per_prompt} samples = {samples} samples "
            f"gives {updates} update of global batch size {batch}, but FIPO needs at least 2, because all weights are "
            f"1 until the first is made; set --global-batch-size to at most {max(samples // 2, 1)} (the paper: 8 "
            "updates a rollout), or --num-steps-per-rollout to at least 2."
        )


def _typed(name: str, value: Any) -> Any:
    """To the type of the knob: YAML reads `1e3` as a string and `32` as an int."""
    wanted = type(KNOBS[name])
    try:
        right = wanted(value) if wanted is float and not isinstance(value, bool) else value
    except (TypeError, ValueError):
        right = value
    if type(right) is not wanted:
        raise InvalidParameterError(
            f"fipo_{name} is {value!r}, but must be {WORDS[wanted]}, like {KNOBS[name]!r}; change it."
        )
    return right
