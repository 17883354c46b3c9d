"""Recipes: a YAML file, overridden by flags. TRL's parser makes dataclasses of both.

TRL is imported when a recipe is parsed and not before: a mistyped path is answered at once.
"""

from collections.abc import Hashable, Iterator
from dataclasses import fields
from math import inf, isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import yaml

from fipo.errors import InvalidParameterError
from fipo.params import FORMER_KNOBS, NO_EFFECT
from fipo.terminal import did_you_mean, nearest_file, one_line

if TYPE_CHECKING:
    from fipo.run.arguments import ModelArguments, RunArguments
    from fipo.trainer.config import FIPOConfig

ALIASES = {"preset": "fipo_preset"}  # of keys; --preset is FIPOConfig's own
SIMPLE = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "nothing"}
WITHOUT_EFFECT = tuple(f"fipo_{name}" for name in FORMER_KNOBS)
LIMITS = {  # least and most of numbers that TRL and transformers take beyond them, to fail or do nothing later
    **dict.fromkeys(("per_device_train_batch_size", "max_completion_length", "gradient_accumulation_steps"), (1, inf)),
    **dict.fromkeys(("per_device_eval_batch_size", "num_iterations", "logging_steps", "save_steps"), (1, inf)),
    **dict.fromkeys(("lora_r", "lora_alpha", "save_total_limit"), (1, inf)),
    **dict.fromkeys(("learning_rate", "seed", "data_seed", "beta", "warmup_steps", "weight_decay"), (0, inf)),
    **dict.fromkeys(("max_grad_norm", "top_k", "neftune_noise_alpha", "dataloader_num_workers"), (0, inf)),
    **dict.fromkeys(("repetition_penalty", "temperature", "num_train_epochs"), (1e-6, inf)),
    **dict.fromkeys(("min_p", "top_entropy_quantile", "lora_dropout"), (0, 1)),
    "top_p": (1e-6, 1),
    "num_generations": (2, inf),
    "max_steps": (-1, inf),
}
CHOICES = {  # of texts that TRL looks at when the first rollout is scored
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
}
MERGE = "tag:yaml.org,2002:merge"  # the key <<


def read_recipe(path: str) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        InvalidParameterError: No such file, no YAML, no mapping, or a key that stands there twice.
    """
    recipe = Path(path)
    if not recipe.is_file():
        if recipe.is_dir():
            raise InvalidParameterError(f"The recipe {recipe} is a folder, but must be a YAML file; name the file.")
        raise InvalidParameterError(f"The recipe {recipe} does not exist; {nearest_file(recipe)}")
    try:
        content = yaml.load(recipe.read_text(encoding="utf-8"), _UniqueKeys)
    except UnicodeDecodeError as error:
        raise InvalidParameterError(f"The recipe {recipe} is not text in UTF-8 ({error}); convert it.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidParameterError(f"The recipe {recipe} is not YAML ({one_line(error)}); repair it.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidParameterError(f"The recipe {recipe} holds no keys with values; write key: value, a line each.")
    return content


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, to which a repeated key is an error: the last one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != MERGE]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise ValueError(f"the key {twice} stands there twice")
        return super().construct_mapping(node, deep)


def parse_recipe(arguments: list[str]) -> "tuple[RunArguments, FIPOConfig, ModelArguments]":
    """`[recipe.yaml] [--flag value …]` as dataclasses.

    Raises:
        InvalidParameterError: No such recipe, an unknown key, or a value that its field refuses.
    """
    recipe, flags = {}, list(arguments)
    if flags and not flags[0].startswith("-"):
        recipe = read_recipe(flags.pop(0))

    from transformers import logging
    from trl import TrlParser

    from fipo.run.arguments import ModelArguments, RunArguments
    from fipo.trainer.config import FIPOConfig

    classes = (RunArguments, FIPOConfig, ModelArguments)
    hints = {entry.name: get_type_hints(kind)[entry.name] for kind in classes for entry in fields(kind)}
    recipe = _canonical(recipe)
    for name in _without_effect(recipe, flags):
        logging.get_logger(__name__).warning(f"{name} {NO_EFFECT}")
    for key in [*recipe, *(key for key, _ in _given(flags))]:
        _require_known(key, hints)
    recipe = {key: _checked(key, value, hints[key]) for key, value in recipe.items()}
    for key, value in [*recipe.items(), *_given(flags)]:
        _require_possible(key, value)
    parser = TrlParser(classes, prog="fipo train", allow_abbrev=False)
    parser.error = _refuse
    parser.set_defaults_with_config(**recipe)
    try:
        run, config, model, stray = parser.parse_args_into_dataclasses(args=flags, return_remaining_strings=True)
    except InvalidParameterError:
        raise
    except (ValueError, TypeError, OSError) as error:  # of TRL's and transformers' own checks
        reason = one_line(error).rstrip(".")
        raise InvalidParameterError(f"The recipe or the flags cannot be used: {reason}; change that.") from error
    if stray:
        raise InvalidParameterError(f"{' '.join(stray)} is no flag and no value of one; remove it.")
    return run, config, model


def _canonical(recipe: dict[str, Any]) -> dict[str, Any]:
    """Under the fields' own names: a recipe may write hyphens, and `preset`."""
    names = {key: ALIASES.get(key, key.replace("-", "_")) for key in recipe}
    twice = next((name for name in names.values() if list(names.values()).count(name) > 1), None)
    if twice is not None:
        both = " and ".join(key for key, name in names.items() if name == twice)
        raise InvalidParameterError(f"The recipe holds {both}, which are one key; drop one.")
    return {names[key]: value for key, value in recipe.items()}


def _given(flags: list[str]) -> Iterator[tuple[str, str | None]]:
    """The keys of `--key value` and `--key=value`, with the text of their first value."""
    for place, flag in enumerate(flags):
        if flag.startswith("--"):
            key, equals, value = flag[2:].partition("=")
            yield key.replace("-", "_"), value if equals else next(iter(flags[place + 1 :]), None)


def _without_effect(recipe: dict[str, Any], flags: list[str]) -> list[str]:
    """Takes former keys out of both, and returns those that were there."""
    found = [name for name in WITHOUT_EFFECT if name in recipe or f"--{name}" in flags]
    for name in found:
        recipe.pop(name, None)
        if f"--{name}" in flags:
            place = flags.index(f"--{name}")
            del flags[place : place + 2]
    return found


def _refuse(message: str) -> None:
    """argparse's own errors, without its usage of a thousand lines."""
    raise InvalidParameterError(f"{message.removeprefix('argument ')}; change it.")


def _require_known(key: str, hints: dict[str, Any]) -> None:
    if key in (*hints, *ALIASES) or (key.startswith("no_") and hints.get(key[3:]) is bool):
        return
    if key == "config":  # of TRL's own commands
        raise InvalidParameterError("config is no flag of fipo; write the recipe first: fipo train recipe.yaml.")
    where = "`fipo train --help` lists fipo's keys, --help-all all of them."
    remedy = did_you_mean(key, [*hints, *ALIASES], where)
    raise InvalidParameterError(f"{key} is no key of a recipe and no flag; {remedy}")


def _checked(key: str, value: Any, hint: Any) -> Any:
    """A value of a recipe, converted where YAML reads it as another type: `1e-5` is text to it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(kind in SIMPLE or _is_list(kind) for kind in kinds):
        return value  # TRL's own business
    for kind in kinds:
        fits, converted = _as(kind, value)
        if fits:
            return converted
    names = " or ".join(SIMPLE.get(kind, "a list of texts") for kind in kinds if kind is not NoneType)
    raise InvalidParameterError(f"{key} is {value!r}, but must be {names}; change it.")


def _is_list(kind: Any) -> bool:
    return kind is list or get_origin(kind) is list


def _as(kind: Any, value: Any) -> tuple[bool, Any]:
    if kind is NoneType:
        return value is None, None
    if _is_list(kind):
        inner = (get_args(kind) or (str,))[0]
        items = value if isinstance(value, list) else [value]
        return all(isinstance(item, str) or inner is not str for item in items), items
    if kind is float and isinstance(value, str):
        try:
            return True, float(value)
        except ValueError:
            return False, None
    if kind is str:
        return isinstance(value, str | int | float) and not isinstance(value, bool), str(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool)), value


def _require_possible(key: str, value: Any) -> None:
    """Refuses values that fit the field's type, but which TRL or transformers would fail on in the middle of a run."""
    if key in CHOICES and value not in CHOICES[key]:
        raise InvalidParameterError(f"{key} is {value!r}, but must be one of {', '.join(CHOICES[key])}; change it.")
    if key.endswith("_kwargs") and isinstance(value, str) and not value.startswith("{"):
        raise InvalidParameterError(f"{key} is {value!r}, but must be a mapping, as in {{name: value}}; change it.")
    try:
        number = float(value)
    except (TypeError, ValueError):  # argparse or the field refuses it
        return
    if key.startswith("fipo_"):  # FIPOConfig knows their ranges
        return
    if not isfinite(number):
        raise InvalidParameterError(f"{key} is {value}, but must be a finite number; change it.")
    least, most = LIMITS.get(key, (-inf, inf))
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise InvalidParameterError(f"{key} is {value}, but must be {bound}; change it.")
    if key == "max_steps" and number == 0:
        raise InvalidParameterError("max_steps is 0, so nothing would be trained; set it, or -1 for whole epochs.")
