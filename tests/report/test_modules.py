"""The front end's modules: who imports whom, and the one script that they become."""

import re
import tomllib
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

from fipo.report.channels import CHANNELS
from fipo.report.page import Report

WEB = Path(str(files("fipo.report") / "web"))
SOURCES = {file.relative_to(WEB).as_posix(): file.read_text(encoding="utf-8") for file in WEB.rglob("*.js")}
UNIT_TESTS = "".join(file.read_text(encoding="utf-8") for file in (Path(__file__).parents[1] / "web").glob("*.js"))
IMPORT = re.compile(r'^import\s[^;]*?from "([^"]+)";', re.M)


IMPORTS = {
    path: {normpath(join(dirname(path), found)) for found in IMPORT.findall(source)} for path, source in SOURCES.items()
}


def test_imports_run_one_way():
    order = list(TopologicalSorter(IMPORTS).static_order())  # raises where they run in a circle
    assert sorted(order) == sorted(SOURCES), "an import of a file that is not there"
    assert order[-1] == "main.js"
    assert {path for path in SOURCES if not any(path in found for found in IMPORTS.values())} == {"main.js"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("model/")])
def test_the_model_knows_neither_view_nor_browser(path):
    assert all(found.startswith("model/") or found == "format.js" for found in IMPORTS[path])
    code = re.sub(r"/\*.*?\*/", "", SOURCES[path], flags=re.S)
    assert not re.search(r"\b(document|window|location|history)\b", code)


def test_what_is_exported_is_imported():
    for path, source in SOURCES.items():
        for name in re.findall(r"^export (?:async )?(?:const|function|class) (\w+)", source, re.M):
            users = [other for other in SOURCES if path in IMPORTS[other] and re.search(rf"\b{name}\b", SOURCES[other])]
            assert users or re.search(rf"\b{name}\b", UNIT_TESTS), f"{path} exports {name}, which nobody imports"


def test_one_script_with_every_module_behind_those_it_imports():
    script = re.findall(r"<script>(.*?)</script>", Report().html(), re.S)[-1]
    assert not re.search(r"^\s*(import|export)\b", script, re.M)
    scopes = [name.replace("_", "/") for name in re.findall(r"^const \$(\w+) = ", script, re.M)]
    assert sorted(f"{name}.js" for name in scopes) == sorted(SOURCES)
    for place, name in enumerate(scopes):
        assert IMPORTS[f"{name}.js"] <= {f"{earlier}.js" for earlier in scopes[:place]}


def test_the_document_shows_the_channels_of_the_package():
    lines = ["| key | channel | in the CSV | meaning |", "| --- | --- | --- | --- |"]
    for key, one in enumerate(CHANNELS, 1):
        lines.append(f"| `{key}` | {one.label} | `{one.name}` | {one.help} |")
    table = "\n".join(lines)
    document = Path(__file__).parents[2] / "docs" / "report.md"
    assert table in document.read_text(encoding="utf-8"), f"put this table there:\n{table}"


def test_a_wheel_holds_every_file():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["fipo"]
    package = WEB.parents[1]
    packed = {file for pattern in patterns for file in package.glob(pattern)}
    assert {file for file in package.rglob("*.*") if file.suffix not in (".py", ".pyc")} <= packed
