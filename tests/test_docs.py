"""What the documents show runs: every Python block, and every link to a file or a heading."""

import importlib
import inspect
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from support import harness, knobs, tiny

from fipo import FIPOParams, InvalidParameterError, fipo_loss, token_credit
from fipo.core.rules import Weighting
from fipo.run.rewards import load_rewards

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def test_the_readmes_library():
    loss, _, own_loop = blocks("README.md")
    namespace = {}
    exec(loss, namespace)
    assert namespace["logps"].grad.abs().sum() > 0 and namespace["out"].factor.std() > 0
    exec(own_loop, namespace)  # as somebody pastes it below the first
    assert namespace["hidden"].grad.abs().sum() > 0 and namespace["lm_head"].weight.grad.abs().sum() > 0


def test_the_two_rewards(tmp_path, monkeypatch):
    (tmp_path / "readmes_reward.py").write_text(blocks("README.md")[1])
    (tmp_path / "myrewards.py").write_text(blocks("docs/training.md")[0])
    monkeypatch.chdir(tmp_path)
    names = ["python:readmes_reward:score", "{python:myrewards:brief: {limit: 200, weight: 0.5}}"]
    readmes, reward = load_rewards(names, max_completion_length=300)
    chat = [{"role": "assistant", "content": "It is 84"}]
    assert readmes(["It is 83\n", chat], [[0], [0]], prompts=["", []], answer=["83", "83"]) == [1.0, 0.0]
    completions = [[{"role": "assistant", "content": text}] for text in ("It is 83", "It is 84", "Well … it is 83")]
    ids = [[0] * 10, [0] * 10, [0] * 201]
    assert reward(completions, ids, prompts=[[]] * 3, answer=["83"] * 3) == [1.0, 0.0, 0.0]
    assert (reward.weight, reward.failures) == (0.5, 0)


def test_the_trainer_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"model": tiny.model(), "tokenizer": tiny.tokenizer()}
    exec(blocks("docs/training.md")[1], namespace)
    trainer = namespace["trainer"]
    assert trainer.state.global_step == 8
    assert any("fipo/weight_mean" in record for record in trainer.state.log_history)


@pytest.fixture
def my_rules(tmp_path, monkeypatch):
    """docs/rules.md's file, in the folder that one starts from."""
    (tmp_path / "my_rules.py").write_text(blocks("docs/rules.md")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)


def responses():
    """Two padded ones: four and two tokens long to the last trained one, which is token 3 and token 1."""
    nan = torch.nan
    return {
        "logps": torch.tensor([[-1.0, -2.0, -1.0, -3.0], [-1.0, -1.0, nan, nan]]),
        "old_logps": torch.tensor([[-1.1, -1.9, -1.0, -9.0], [nan, -1.1, nan, nan]]),
        "advantages": torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, nan, nan]]),
        "loss_mask": torch.tensor([[True, True, False, True], [True, True, False, False]]),
        "entropy": torch.tensor([[0.1, 0.2, 9.0, 0.6], [0.5, 0.1, nan, nan]]),
    }


def weighed(name, known):
    """Their credit with one of the page's rules."""
    columns = (known[column] for column in ("logps", "old_logps", "advantages", "loss_mask"))
    credit = token_credit(*columns, FIPOParams())
    return Weighting.of(f"python:my_rules:{name}", None).of_rows(credit, known, known["old_logps"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("entropy_gate", [[0.8, 0.8, 1.0, 1.2], [1.2, 0.8, 1.0, 1.0]]),  # the means are 0.3
        ("signed_log_ratio", [[math.exp(0.1), math.exp(-0.1), 1.0, 1.2], [1.0, math.exp(-0.1), 1.0, 1.0]]),
        ("falling", [[1.2, 1.2 - 0.4 / 3, 1.0, 0.8], [1.2, 0.8, 1.0, 1.0]]),
    ],
)
def test_the_three_rules(name, expected, my_rules):
    known, expected = responses(), torch.tensor(expected)
    found = weighed(name, known)
    torch.testing.assert_close(found.weight, expected)
    assert not found.factor[1, 0] and found.factor[1, 1] == found.weight[1, 1]  # one has no π_old
    for row in range(2):  # each response alone: the weights are the same in every split
        alone = {column: values[row : row + 1] for column, values in known.items()}
        torch.testing.assert_close(weighed(name, alone).weight, expected[row : row + 1])


def test_the_entropy_gate_says_that_it_needs_entropies(my_rules):
    with pytest.raises(InvalidParameterError, match=r"entropy_gate raised ValueError: this rule needs entropies"):
        weighed("entropy_gate", responses() | {"entropy": None})


@pytest.mark.parametrize("name", ["entropy_gate", "signed_log_ratio", "falling"])
def test_a_trainer_takes_the_three_rules(name, my_rules, tmp_path):
    trainer = harness.make(tmp_path, fipo_rule=f"python:my_rules:{name}")
    seen = []
    trainer.observers.append(seen.append)
    loss, _ = harness.loss_and_gradients(trainer, tiny.with_old_logps(trainer, tiny.rollout()))
    weight = seen[0].tokens.weight[seen[0].mask]
    assert loss.isfinite() and weight.min() >= 0.8 and weight.max() <= 1.2 and weight.std() > 0.01


def test_five_tokens_by_hand():
    """The table of docs/method.md, number by number."""
    log_ratio = torch.tensor([[0.02, -0.4, 0.3, 0.0, 0.04]], dtype=torch.float64)
    trained, params = torch.ones_like(log_ratio), FIPOParams(decay_rate=1.0)
    out = fipo_loss(log_ratio, torch.zeros_like(log_ratio), torch.tensor([-1.0]), trained, params)
    rows = re.findall(r"^\| `.` \| (.*) \|$", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)
    told = [[float(cell.rpartition("= ")[2].replace("−", "-")) for cell in row.split(" | ")] for row in rows]
    found = torch.stack([out.log_ratio, out.future_kl, out.raw_weight, out.weight, -out.weight])[:, 0].T
    torch.testing.assert_close(torch.tensor(told, dtype=torch.float64), found, atol=5e-5, rtol=0)


@pytest.mark.parametrize("module", ["fipo", "fipo.trainer", "fipo.traces", "fipo.report"])
def test_every_public_name_is_documented(module):
    """In docs/api.md, from a docstring of its own."""
    page = (ROOT / "docs" / "api.md").read_text().split()
    for name in (names := importlib.import_module(module)).__all__:
        public = getattr(names, name)
        assert f"{module}.{name}" in page
        if inspect.isclass(public) or inspect.isfunction(public):
            assert vars(public).get("__doc__") if inspect.isclass(public) else public.__doc__, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        name, _, heading = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target


def test_the_readmes_table_is_that_of_the_package():
    """`python tests/support/knobs.py` prints it."""
    assert knobs.table() in (ROOT / "README.md").read_text()
