"""Imports run one way: core ← traces ← report ← trainer, engines ← run ← cli."""

import ast
from pathlib import Path

import pytest

import fipo

SOURCES = Path(fipo.__file__).parent
SHARED = {"errors", "functions", "messages", "params", "run_folder", "__init__"}
BELOW = {  # room → what it may import of fipo, besides itself
    "core": SHARED - {"run_folder"},
    "traces": SHARED | {"core"},
    "report": SHARED | {"core", "traces"},
    "trainer": SHARED | {"core", "traces", "report"},
    "run": SHARED | {"core", "traces", "report", "trainer", "engines"},
    "engines": SHARED | {"core", "traces", "report"},
    **{f"{name}.py": SHARED for name in SHARED - {"__init__"}},
}


def imported(path):
    """The rooms of fipo that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "fipo" else [f"fipo.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name == "fipo" or name.startswith("fipo."):
                yield [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("room", sorted(BELOW))
def test_rooms_import_only_what_lies_below(room):
    for path in (SOURCES / room).rglob("*.py") if (SOURCES / room).is_dir() else [SOURCES / room]:
        rooms = {name for name in imported(path) if (SOURCES / name).is_dir() or (SOURCES / f"{name}.py").is_file()}
        assert rooms - {room} <= BELOW[room], path
