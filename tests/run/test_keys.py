"""What can be said without TRL: before it is imported, a mistake has cost no time."""

import subprocess
import sys
from dataclasses import fields
from typing import get_args, get_type_hints

from fipo.run.arguments import RunArguments
from fipo.run.keys import key_types
from fipo.run.model_arguments import ModelArguments
from fipo.run.recipe import TRL_COMPLETION_LENGTH, read_settings
from fipo.trainer.config import FIPOConfig

CLASSES = (RunArguments, FIPOConfig, ModelArguments)


def parts(hint):
    """Every class in it, of `str | list[Option]` str, list and Option."""
    inner = [part for argument in get_args(hint) for part in parts(argument)]
    return [*inner, hint] if isinstance(hint, type) else inner


def test_keys_read_from_sources_are_the_fields_of_the_classes():
    hints = {entry.name: get_type_hints(kind)[entry.name] for kind in CLASSES for entry in fields(kind)}
    found = key_types()
    assert found.keys() == hints.keys()
    for name, hint in hints.items():
        left_to_trl = any(hasattr(kind, "__module__") and kind.__module__ != "builtins" for kind in parts(hint))
        assert found[name] == hint or (found[name] is object and left_to_trl), name


def test_the_default_length_is_trls():
    assert FIPOConfig.max_completion_length == TRL_COMPLETION_LENGTH


def test_flags_and_recipes_are_read_alike(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rate: 1e-5\nseed: 1\nrewards: math\nresume: true\nfipo_decay_rate: 8\nrun_name: 007\n")
    flags = "--learning_rate 1e-5 --seed=1 --rewards math --resume --fipo-decay-rate 8 --run_name 7"
    of_recipe, of_flags = read_settings([str(recipe)]), read_settings(flags.split())
    assert of_recipe.values == of_flags.values
    assert of_recipe.run == of_flags.run == RunArguments(rewards=["math"], resume=True)
    assert read_settings([str(recipe), "--seed", "2"]).values["seed"] == 2


SOON_TOLD = {  # flags → what is said of them
    "x.yaml": "The recipe x.yaml does not exist",
    "--fipo_decay_rates 1": "did you mean fipo_decay_rate?",
    "--fipo_decay_rate 0": "fipo_decay_rate is 0",
    "--learning_rate fast": "learning_rate is 'fast'",
    "--dataset nowhere.jsonl": "nowhere.jsonl does not exist",
    "--rewards matth": "did you mean math?",
    "--rewards python:nowhere:score": "cannot be imported",
    "--rewards math?strict=1": "has no option 'strict'",
    "--rewards exact --dataset rg:chain_sums": "did you mean chain_sum?",
    "--rewards exact --prompt_format plain": "prompt_format is 'plain'",
}


def test_what_needs_no_model_is_told_before_torch_and_trl_are_imported(tmp_path):
    code = (
        "import sys; from fipo.cli import main; codes = {main(['train', *line.split()]) for line in sys.argv[1:]}; "
        "sys.exit(codes != {2} or bool({'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, *SOON_TOLD], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line, words in zip(done.stderr.splitlines(), SOON_TOLD.values(), strict=True):
        assert line.startswith("fipo: ") and words in line
