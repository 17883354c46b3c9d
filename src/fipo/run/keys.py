"""The keys of a recipe and their types, as the sources of the dataclasses state them: importing TRL takes seconds."""

import ast
import typing
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLASSES = (  # package, file, dataclass; what a later one states wins
    ("fipo", "run/arguments.py", "RunArguments"),
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/grpo_config.py", "GRPOConfig"),
    ("fipo", "trainer/config.py", "FIPOConfig"),
    ("trl", "trainer/model_config.py", "ModelConfig"),
    ("fipo", "run/model_arguments.py", "ModelArguments"),
)


@cache
def key_types() -> dict[str, Any]:
    """Key → type, or `object` where the annotation names a class that is not Python's own.

    Raises:
        ModuleNotFoundError: TRL or transformers is not installed.
    """
    return {name: kind for entry in CLASSES for name, kind in _annotations(*entry)}


def _annotations(package: str, file: str, name: str) -> list[tuple[str, Any]]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    source = (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    lines = [line for line in found.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
    return [(line.target.id, _type(line.annotation)) for line in lines]  # type: ignore[union-attr]


def _type(annotation: ast.expr) -> Any:
    """Of `float | None` and the like; nothing is called."""
    if any(isinstance(node, ast.Call) for node in ast.walk(annotation)):
        return object
    try:
        return eval(ast.unparse(annotation), vars(typing).copy())
    except NameError:
        return object
