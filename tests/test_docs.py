"""What the documents show runs: every Python block, and every link to a file or a heading."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from support import knobs, tiny

from fipo import FIPOParams, fipo_loss
from fipo.run.rewards import load_rewards

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def test_the_readmes_library(capsys):
    _, loss, one_pass = blocks("README.md")
    namespace = {}
    exec(loss, namespace)
    assert namespace["logps"].grad.abs().sum() > 0 and "tensor" in capsys.readouterr().out
    exec(one_pass, namespace)  # as somebody pastes it below the first
    assert namespace["hidden"].grad.abs().sum() > 0 and namespace["lm_head"].weight.grad.abs().sum() > 0


def test_the_readmes_reward(tmp_path, monkeypatch):
    (tmp_path / "readmes_reward.py").write_text(blocks("README.md")[0])
    monkeypatch.chdir(tmp_path)
    (reward,) = load_rewards(["python:readmes_reward:score"], max_completion_length=8)
    chat = [{"role": "assistant", "content": "It is 84"}]
    assert reward(["It is 83\n", chat], [[0], [0]], prompts=["", []], answer=["83", "83"]) == [1.0, 0.0]


def test_ones_own_reward(tmp_path, monkeypatch):
    (tmp_path / "myrewards.py").write_text(blocks("docs/training.md")[0])
    monkeypatch.chdir(tmp_path)
    (reward,) = load_rewards(["python:myrewards:brief?limit=200&weight=0.5"], max_completion_length=300)
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
