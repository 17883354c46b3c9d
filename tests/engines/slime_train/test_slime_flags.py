"""What the recipes for slime would run, before the parsers of slime, Megatron and SGLang."""

import json
from pathlib import Path

import pytest
from recipes.test_slime_recipes import ARMS, SIZES, train_command

pytestmark = [pytest.mark.slime, pytest.mark.timeout(300)]


def test_every_flag_of_every_recipe_is_known_and_a_misspelled_one_is_found(engines):
    misspelled = ["--rollout-batch-sizes", "--sglang-mem-fraction-statics", "--hidden-sizes"]  # slime, SGLang, Megatron
    commands = [train_command(arm, size) for arm in ARMS for size in SIZES]
    unknown = [[]] * len(commands) + [[flag] for flag in misspelled] * len(ARMS)
    commands += [train_command(arm, "0.8B", flag, "8") for arm in ARMS for flag in misspelled]
    program = Path(__file__).with_name("recipe_flags.py")
    assert json.loads(engines.python(program, stdin=json.dumps(commands)).splitlines()[-1]) == unknown
