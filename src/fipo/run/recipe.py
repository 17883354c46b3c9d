"""Recipes as text: a YAML file, and the names with options in it. Light: TRL is imported later."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fipo.errors import InvalidParameterError
from fipo.messages import nearest_file, one_line

MERGE = "tag:yaml.org,2002:merge"  # the key <<


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, to which a repeated key is an error: the last one would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != MERGE]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise ValueError(f"the key {twice} stands there twice")
        return super().construct_mapping(node, deep)


def split_command(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The keys of the recipe in `[recipe.yaml] [--flag value …]`, and the flags."""
    if not arguments or arguments[0].startswith("-"):
        return {}, arguments
    recipe = Path(arguments[0])
    if not recipe.is_file():
        raise InvalidParameterError(f"The recipe {recipe} is no file; {nearest_file(recipe)}")
    content = _yaml(recipe.read_bytes(), f"The recipe {recipe}")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidParameterError(f"The recipe {recipe} holds no keys with values; write key: value, a line each.")
    return content, arguments[1:]


def name_and_options(written: Any, key: str) -> tuple[str, dict[str, Any]]:
    """What a recipe or, as text, a flag names for `key`: `math`, or `{overlong: {buffer: 3}}`.

    >>> name_and_options("{rg:chain_sum: {max_terms: 4}}", "dataset")
    ('rg:chain_sum', {'max_terms': 4})
    """
    is_yaml = isinstance(written, str) and written.startswith("{")
    found = _yaml(written, f"{key} is {written!r}, which") if is_yaml else written
    if isinstance(found, str):
        return found, {}
    if isinstance(found, dict) and len(found) == 1:
        ((name, options),) = found.items()
        options = {} if options is None else options
        if isinstance(options, dict) and all(isinstance(word, str) for word in (name, *options)):
            return name, dict(options)
    raise InvalidParameterError(
        f"{key} is {written!r}, but must be a name, or one name with its options, as in "
        "{overlong: {buffer: 64, weight: 0.5}}; change it."
    )


def _yaml(text: str | bytes, what: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidParameterError(f"{what} is not YAML ({one_line(error)}); repair it.") from error
