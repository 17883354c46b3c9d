"""What the recipes for slime would run, before the parsers of slime, Megatron and SGLang."""

import json
from pathlib import Path

import pytest
from support.shell_recipes import dry_run

pytestmark = [pytest.mark.slime, pytest.mark.timeout(300)]
COMMANDS = [(arm, size) for arm in ("fipo", "grpo") for size in ("0.8B", "2B", "4B")]
PATHS = ("SLIME_DIR", "MEGATRON_DIR", "HF_CHECKPOINT", "PROMPT_DATA", "EVAL_DATA")


def train_command(arm, size, *flags):
    """What follows `python3` in the job that recipes/slime/qwen3.5_ARM.sh submits."""
    job = dry_run(f"slime/qwen3.5_{arm}.sh", *flags, MODEL_SIZE=size, **{name: f"/{name}" for name in PATHS})[-1]
    return job[job.index("python3") + 1 :]


def test_every_flag_of_every_recipe_is_known_and_a_misspelled_one_is_found(engines):
    misspelled = ["--rollout-batch-sizes", "--sglang-mem-fraction-statics", "--hidden-sizes"]  # slime, SGLang, Megatron
    commands = [train_command(*command) for command in COMMANDS]
    commands += [train_command(arm, "0.8B", flag, "8") for arm in ("fipo", "grpo") for flag in misspelled]
    program = Path(__file__).with_name("recipe_flags.py")
    unknown = json.loads(engines.python(program, stdin=json.dumps(commands)).splitlines()[-1])
    assert unknown == [[]] * len(COMMANDS) + [[flag] for flag in misspelled] * 2
