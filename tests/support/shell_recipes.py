"""Runs the shell recipes as a user does, in a clean environment."""

import os
import shlex
import subprocess
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def start(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs recipes/`script` with these variables and nothing of the caller's environment but PATH."""
    environment = {"PATH": os.environ["PATH"]} | variables
    return subprocess.run([RECIPES / script, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def dry_run(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The commands, as lists of words, that recipes/`script` prints with DRY_RUN=1."""
    result = start(script, *arguments, DRY_RUN="1", **variables)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]
