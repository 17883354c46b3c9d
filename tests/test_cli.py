"""The command line: usage, versions, and scoring completions without a model."""

import json
import sys
from io import BytesIO, TextIOWrapper

import numpy as np
import pytest

from fipo import __version__
from fipo.cli import main
from fipo.traces import Trace, write_traces


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sparse.py").write_text("def sparse(completions, **columns):\n    return [None] * len(completions)\n")
    rewards = ["last_number", {"overlong": {"buffer": 4, "limit": 8, "weight": 0.5}}, "python:sparse:sparse"]
    recipe = {"dataset": "rg:chain_sum", "rewards": rewards, "output_dir": "nowhere", "use_cpu": True, "bf16": False}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return "recipe.yaml"


def test_test_reward_prints_scores_and_tells_what_does_not_apply_from_what_failed(recipe, tmp_path, capsys):
    rows = [
        {"completion": "it is 83", "answer": "83"},
        {"completion": "it is 8", "answer": "83", "completion_ids": [1] * 8},
        {"completion": "it is 8", "answer": "unknown"},
    ]
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["test-reward", recipe, "completions.jsonl"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "it is" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")][2:] for line in lines]
    assert cells == [["1", "0", "–", "1"], ["0", "-1", "–", "-0.5"], ["failed", "0", "–", "failed"]]
    (tmp_path / "completions.jsonl").write_text(json.dumps(rows[0]))
    assert main(["test-reward", recipe, "completions.jsonl"]) == 0


def test_usage(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fipo {__version__}\n"
    assert main(["--help"]) == 0
    assert "fipo train recipe.yaml" in capsys.readouterr().out
    assert main([]) == 2


def test_help_shows_fipos_own_settings_first(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 60
    assert "fipo_decay_rate" in short and "rg:task" in short and "--help-all" in short
    assert main(["train", "--help-all"]) == 0
    assert "--per_device_train_batch_size" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_is_not_utf_8(encoding, monkeypatch):
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding=encoding))
    assert main(["train", "--help"]) == 0
    sys.stdout.flush()
    assert b"fipo_decay_rate" in written.getvalue()


def test_analyze_prints_warnings_and_json(tmp_path, capsys):
    columns = {"log_ratio": np.linspace(-0.1, 0.1, 40, dtype="float32"), "trained": np.ones(40, bool)}
    ids = np.arange(40, dtype="int32")
    write_traces([Trace(token_ids=ids, token_bytes=[b"a"] * 40, **columns)], tmp_path / "run" / "traces" / "a.parquet")
    (tmp_path / "run" / "traces" / "b.parquet").write_bytes(b"PAR1 no more")
    assert main(["analyze", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "40 trained tokens of 1 completions" in printed
    assert "b.parquet was left out" in printed
    assert main(["analyze", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 40 and len(found["what_if"]) == 15 and len(found["problems"]) == 1


def test_terminal_escapes_in_a_file_are_shown_not_obeyed(tmp_path, capsys):
    (tmp_path / "a\x1b]0;owned\x07").mkdir()
    assert main(["analyze", str(tmp_path / "a\x1b]0;owned\x07")]) == 2
    printed = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07" in printed and "\x1b" not in printed
