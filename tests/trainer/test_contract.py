"""What FIPOTrainer takes for granted about TRL. A failure says what changed; nothing falls back to another loss."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import trl
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

import fipo
from fipo.trainer import contract

SOURCES = Path(fipo.__file__).parent
OF_FIPO = ("reward_total", "rewards_by_name")
LOST = f"TRL {trl.__version__} changed {{}}, which fipo read at {contract.READ_AT}; adapt fipo.trainer."


@pytest.mark.parametrize("name", contract.OVERRIDDEN | contract.CALLED)
def test_methods(name):
    found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    expected = (contract.OVERRIDDEN | contract.CALLED)[name].split()
    assert found[: len(expected)] == expected, LOST.format(f"GRPOTrainer.{name}")


def test_attributes():
    source = "".join(inspect.getsource(base) for base in GRPOTrainer.__mro__[:-1])
    for name in contract.ATTRIBUTES:
        there = any(f"self.{name}{sign}" in source for sign in (" =", ":", ", self.", " +="))
        assert there or hasattr(GRPOTrainer, name), LOST.format(f"the attribute {name}")


@pytest.mark.parametrize("name", contract.HOMES)
def test_homes(name):
    assert hasattr(import_module(contract.HOMES[name]), name), LOST.format(name)


def test_keys_of_a_rollout():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for name in [*contract.MERGED, "num_items_in_batch"]:
        assert name in OF_FIPO or f'"{name}"' in source, LOST.format(f"the rollout's {name}")


@pytest.mark.parametrize("name", contract.PHRASES)
def test_phrases(name):
    for phrase in contract.PHRASES[name]:
        assert phrase in inspect.getsource(getattr(GRPOTrainer, name)), LOST.format(name)


def test_the_sampler():
    found = list(inspect.signature(RepeatSampler.__init__).parameters)[1:]
    assert found == ["data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"]


def trainer_classes():
    """The syntax trees of FIPOTrainer and of the objects that work for it."""
    trees = [ast.parse(path.read_text()) for path in (SOURCES / "trainer").glob("*.py")]
    names = {"FIPOTrainer", "Scores", "FreshGroups", "WholeCheckpoints"}
    return [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names]


def attributes_of(tree, owner):
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == owner) or ast.unparse(node.value) == f"self.{owner}"
        )
    }


def own_names(classes):
    """Methods, class attributes and what `self.…` is assigned, but for what merely redeclares TRL's."""
    names = set()
    for node in (node for tree in classes for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names - {*contract.ATTRIBUTES, *contract.OVERRIDDEN, *contract.CALLED}


def test_nothing_else_of_trl_is_used_and_nothing_less():
    classes = trainer_classes()
    assert len(classes) == 4
    (whole,) = (tree for tree in classes if tree.name == "FIPOTrainer")
    used = attributes_of(whole, "self") | attributes_of(whole, "super()")
    used |= set().union(*(attributes_of(tree, "trainer") for tree in classes))
    redeclared = [node for tree in classes for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    used |= {name.id for node in redeclared for name in ast.walk(node) if isinstance(name, ast.Name)} & {
        *contract.ATTRIBUTES
    }
    for path in (SOURCES / "run").glob("*.py"):
        tree = ast.parse(path.read_text())
        used |= attributes_of(tree, "trainer")
        if "setattr(" in path.read_text():  # evaluate.py switches attributes by name
            used |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)} & {*contract.ATTRIBUTES}
    used -= own_names(classes)
    defined = {node.name for tree in classes for node in tree.body if isinstance(node, ast.FunctionDef)}
    known = {*contract.ATTRIBUTES, *contract.OVERRIDDEN, *contract.CALLED}
    assert used - known == set(), "uses of TRL that fipo.trainer.contract does not list"
    assert known - used - defined == set(), "fipo.trainer.contract lists what nothing uses"
