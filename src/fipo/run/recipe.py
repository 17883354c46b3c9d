"""Recipes: a YAML file, overridden by flags, read by TRL's parser."""

from pathlib import Path

import yaml
from trl import TrlParser

from fipo.errors import InvalidParameterError
from fipo.run.arguments import ModelArguments, RunArguments
from fipo.trainer.config import FIPOConfig


def parse_recipe(arguments: list[str]) -> tuple[RunArguments, FIPOConfig, ModelArguments]:
    """`[recipe.yaml] [--flag value …]` as dataclasses.

    Raises:
        InvalidParameterError: No such recipe, an unknown key, or a value that its field refuses.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        recipe = Path(arguments[0])
        if not recipe.is_file():
            raise InvalidParameterError(f"The recipe {recipe} does not exist; check the path.")
        arguments[0:1] = ["--config", str(recipe)]
    parser = TrlParser((RunArguments, FIPOConfig, ModelArguments), prog="fipo train")
    try:
        run, config, model = parser.parse_args_and_config(arguments)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, InvalidParameterError):
            raise
        raise InvalidParameterError(f"The recipe or the flags cannot be used: {error} Change what it names.") from error
    return run, config, model
