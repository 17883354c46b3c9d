"""Recipes: a YAML file, overridden by flags. TRL's parser makes dataclasses of both.

TRL takes seconds to import. So it is imported when all is checked that can be without it.
"""

import logging
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, fields
from math import inf, isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import yaml

from fipo.errors import InvalidParameterError
from fipo.params import FORMER_KNOBS, KNOBS, NO_EFFECT, PRESETS
from fipo.run.arguments import RunArguments
from fipo.run.keys import key_types
from fipo.run.rewards import load_rewards
from fipo.run.sources import require_source
from fipo.terminal import did_you_mean, nearest_file, one_line

if TYPE_CHECKING:
    from fipo.run.model_arguments import ModelArguments
    from fipo.trainer.config import FIPOConfig

logger = logging.getLogger(__name__)

TRL_COMPLETION_LENGTH = 512  # of a rollout that is not given one
SWITCHES = {  # what argparse takes for true and false, and a flag without a value
    **dict.fromkeys(("", "true", "yes", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "f", "n", "0"), False),
}
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
CHOICES = {  # of texts that would be looked at late, TRL's when the first rollout is scored
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
    "fipo_preset": tuple(PRESETS),
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


@dataclass(frozen=True)
class Settings:
    """What a recipe and the flags behind it say, checked as far as TRL is not needed for it."""

    recipe: dict[str, Any]
    flags: list[str]
    values: dict[str, Any]  # of both; a flag wins

    @property
    def run(self) -> RunArguments:
        return RunArguments(
            **{entry.name: self.values[entry.name] for entry in fields(RunArguments) if entry.name in self.values}
        )

    @property
    def max_completion_length(self) -> int:
        return self.values.get("max_completion_length") or TRL_COMPLETION_LENGTH


def read_settings(arguments: list[str]) -> Settings:
    """`[recipe.yaml] [--flag value …]`.

    Raises:
        InvalidParameterError: No such recipe, an unknown key, or a value that does not fit it.
    """
    recipe, flags = {}, list(arguments)
    if flags and not flags[0].startswith("-"):
        recipe = read_recipe(flags.pop(0))
    recipe = _canonical(recipe)
    for name in _without_effect(recipe, flags):
        logger.warning(f"{name} {NO_EFFECT}")
    types = key_types()
    for key in recipe:
        _require_known(key, types)
    given = {ALIASES.get(key, key): texts for key, texts in _given(flags).items()}
    for key, texts in given.items():
        if key.startswith("no_") and types.get(key[3:]) is bool and not texts:
            continue
        _require_known(key, types)
        if not texts and bool not in _kinds(types[key]):
            raise InvalidParameterError(f"{key} has no value, but needs one; write --{key} value.")
    recipe = {key: _checked(key, value, types[key]) for key, value in recipe.items()}
    typed = {key: _checked(key, _from_shell(given[key], types[key]), types[key]) for key in given if key in types}
    values = recipe | typed
    for key, value in values.items():
        _require_possible(key, value)
    return Settings(recipe, flags, values)


def require_sources(settings: Settings) -> None:
    """Whether the prompts and the rewards are there, as far as neither TRL nor the hub must be asked.

    Raises:
        DataError: A dataset's file or task does not exist.
        InvalidParameterError: A reward is unknown, takes no such option, or cannot be imported.
    """
    run = settings.run
    for source in (run.dataset, run.eval_dataset if run.eval_size else None):
        if source:
            require_source(source)
    load_rewards(run.rewards, max_completion_length=settings.max_completion_length)


def parse_recipe(settings: Settings) -> "tuple[RunArguments, FIPOConfig, ModelArguments]":
    """The dataclasses, with all their own checks.

    Raises:
        InvalidParameterError: A value that its class refuses, or a stray word.
    """
    from trl import TrlParser

    from fipo.run.model_arguments import ModelArguments
    from fipo.trainer.config import FIPOConfig

    parser = TrlParser((RunArguments, FIPOConfig, ModelArguments), prog="fipo train", allow_abbrev=False)
    parser.error = _refuse
    parser.set_defaults_with_config(**settings.recipe)
    try:
        run, config, model, stray = parser.parse_args_into_dataclasses(
            args=settings.flags, return_remaining_strings=True
        )
    except InvalidParameterError:
        raise
    except (ValueError, TypeError, OSError) as error:  # of TRL's and transformers' own checks
        reason = one_line(error).rstrip(".")
        raise InvalidParameterError(f"The recipe or the flags cannot be used: {reason}; change that.") from error
    if stray:
        _refuse_stray(" ".join(stray))
    return run, config, model


def _canonical(recipe: dict[str, Any]) -> dict[str, Any]:
    """Under the fields' own names: a recipe may write hyphens, and `preset`."""
    names = {key: ALIASES.get(key, key.replace("-", "_")) for key in recipe}
    twice = next((name for name in names.values() if list(names.values()).count(name) > 1), None)
    if twice is not None:
        both = " and ".join(key for key, name in names.items() if name == twice)
        raise InvalidParameterError(f"The recipe holds {both}, which are one key; drop one.")
    return {names[key]: value for key, value in recipe.items()}


def _given(flags: list[str]) -> dict[str, list[str]]:
    """The keys of `--key value …` and `--key=value`, with their values as text."""
    given: dict[str, list[str]] = {}
    for word in flags:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            texts = given[key.replace("-", "_")] = [value] if equals else []
        elif given and (not word.startswith("-") or word[1:2].isdigit() or word[1:2] == "."):
            texts.append(word)
        else:
            _refuse_stray(word)
    return given


def _refuse_stray(words: str) -> None:
    raise InvalidParameterError(f"{words} is no flag and no value of one; remove it.")


def _from_shell(texts: list[str], hint: Any) -> Any:
    """A flag's value in a type that YAML would have read, where it is one."""
    kinds = _kinds(hint)
    if any(_is_list(kind) for kind in kinds):
        return texts
    if len(texts) > 1 and hint is not object:
        _refuse_stray(" ".join(texts[1:]))
    text = texts[0] if texts else ""
    if bool in kinds:
        return SWITCHES.get(text.lower(), text)
    if int in kinds or float in kinds:
        with suppress(ValueError):
            return int(text)
    return text


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
    if key in (*hints, *ALIASES):
        return
    if key.startswith("no_") and hints.get(key[3:]) is bool:
        raise InvalidParameterError(f"{key} is a flag without a value; in a recipe write {key[3:]}: false.")
    if key == "config":  # of TRL's own commands
        raise InvalidParameterError("config is no flag of fipo; write the recipe first: fipo train recipe.yaml.")
    where = "`fipo train --help` lists fipo's keys, --help-all all of them."
    remedy = did_you_mean(key, [*hints, *ALIASES], where)
    raise InvalidParameterError(f"{key} is no key of a recipe and no flag; {remedy}")


def _checked(key: str, value: Any, hint: Any) -> Any:
    """A value of a recipe, converted where YAML reads it as another type: `1e-5` is text to it."""
    kinds = _kinds(hint)
    if not all(kind in SIMPLE or _is_list(kind) for kind in kinds):
        return value  # TRL's own business
    for kind in kinds:
        fits, converted = _as(kind, value)
        if fits:
            return converted
    names = " or ".join(SIMPLE.get(kind, "a list of texts") for kind in kinds if kind is not NoneType)
    raise InvalidParameterError(f"{key} is {value!r}, but must be {names}; change it.")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


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
    if value is None:
        return
    if key.removeprefix("fipo_") in KNOBS:
        KNOBS[key.removeprefix("fipo_")].checked(key, value)
        return
    if key in CHOICES and value not in CHOICES[key]:
        raise InvalidParameterError(f"{key} is {value!r}, but must be one of {', '.join(CHOICES[key])}; change it.")
    if key.endswith("_kwargs") and isinstance(value, str) and not value.startswith("{"):
        raise InvalidParameterError(f"{key} is {value!r}, but must be a mapping, as in {{name: value}}; change it.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise InvalidParameterError(f"{key} is {value}, but must be a finite number; change it.")
    least, most = LIMITS.get(key, (-inf, inf))
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise InvalidParameterError(f"{key} is {value}, but must be {bound}; change it.")
    if key == "max_steps" and number == 0:
        raise InvalidParameterError("max_steps is 0, so nothing would be trained; set it, or -1 for whole epochs.")
