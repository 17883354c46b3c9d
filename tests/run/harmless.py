"""Which of reasoning-gym's scorers call nothing but harmless functions, found by walking their code."""

import ast
import inspect
import sys
import textwrap

NAMES = """
    abs all any bool dict enumerate float frozenset int isinstance len list map max min ord range reversed round set
    sorted str sum tuple zip isdigit isalpha isdecimal isnumeric issubset intersection union items keys values get
    append extend pop copy add count index rindex find strip lstrip rstrip split splitlines join lower upper title
    replace startswith endswith loads dumps match search findall fullmatch group groups sub exp prod sqrt isclose
    allclose array Decimal Fraction ValueError compute_decimal_reward complex hasattr difference discard remove insert
    sort format super quantize debug warning
"""
HARMLESS = set(NAMES.split())  # the last part of what is called: builtins, methods of texts and containers, arithmetic


def only_harmless_calls(dataset_class):
    """Whether `score_answer`, and every function of reasoning-gym that it reaches by name, calls HARMLESS alone."""
    return _harmless(dataset_class.score_answer, dataset_class, set())


def _harmless(function, owner, seen):
    if function in seen:
        return True
    seen.add(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    inner = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for call in (node.func for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call)
        reached = _reached(name, function, owner)
        if reached is not None:
            if not _harmless(reached, owner, seen):
                return False
        elif name not in inner and (
            not isinstance(call, ast.Name | ast.Attribute) or name.split(".")[-1] not in HARMLESS
        ):
            return False
    return True


def _reached(name, function, owner):
    """The function of reasoning-gym that `name` stands for in `function`, if it does."""
    home = owner if name.startswith("self.") else sys.modules[function.__module__]
    found = getattr(home, name.removeprefix("self."), None)
    return found if inspect.isfunction(found) and found.__module__.startswith("reasoning_gym") else None
