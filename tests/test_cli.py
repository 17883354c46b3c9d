"""The command line: usage, versions, and scoring completions without a model."""

import json
import re
import subprocess
import sys

import pytest

from fipo import __version__
from fipo.cli import main

RECIPE = """
dataset: rg:chain_sum
rewards: [last_number, 'overlong?buffer=4&limit=8&weight=0.5']
output_dir: nowhere
use_cpu: true
bf16: false
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_test_reward_prints_scores(recipe, tmp_path, capsys):
    rows = [
        {"completion": "it is 83", "answer": "83"},
        {"completion": "it is 8", "answer": "83", "completion_ids": [1] * 8},
        {"completion": "it is 8", "answer": "unknown"},
    ]
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["test-reward", recipe, str(file)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "it is" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells[0][2:] == ["1", "0", "1"]
    assert cells[1][2:] == ["0", "-1", "-0.5"]
    assert cells[2][2] == cells[2][4] == "failed"


def test_test_reward_tells_what_does_not_apply_from_what_failed(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sparse.py").write_text("def sparse(completions, **columns):\n    return [None] * len(completions)\n")
    lines = [line for line in RECIPE.splitlines() if not line.startswith("rewards")]
    (tmp_path / "recipe.yaml").write_text("\n".join([*lines, "rewards: [last_number, 'python:sparse:sparse']\n"]))
    (tmp_path / "completions.jsonl").write_text('{"completion": "it is 83", "answer": "83"}\n')
    assert main(["test-reward", recipe, "completions.jsonl"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "it is" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][2:] == ["1", "–", "1"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        ("", "has no lines"),
        ("{", "Line 1 of .* is not JSON"),
        ('{"text": "a"}\n', "Line 1 of .* has no text in `completion`"),
    ],
)
def test_bad_completions(recipe, tmp_path, capsys, content, sentence):
    file = tmp_path / "completions.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["test-reward", recipe, str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fipo: ")
    assert re.search(sentence, error)


def test_usage(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fipo {__version__}\n"
    assert main(["--help"]) == 0
    assert "fipo train recipe.yaml" in capsys.readouterr().out
    assert main([]) == main(["nonsense"]) == 2
    assert main(["trian"]) == 2
    assert "trian is no command of fipo; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "nowhere.yaml"], "The recipe nowhere.yaml does not exist"),
        (["train", "recipes/trl/dmo.yaml"], "does not exist; did you mean recipes/trl/demo.yaml?"),
        (["train", "recipe/trl/demo.yaml"], "there is no folder recipe/trl"),
        (
            ["import", "--from", "trl", "x", "--tokenizer", "./no/where"],
            "--tokenizer is ./no/where, but must be a folder",
        ),
    ],
)
def test_a_missing_file_is_a_sentence(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(recipe):
    code = "import sys; sys.modules['trl'] = None; from fipo.cli import main; sys.exit(main(['train', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, recipe], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'fipo[train]' (in a clone: '.[train]')" in done.stderr


@pytest.mark.parametrize(("missing", "remedy"), [("vllm", "pip install '.[vllm]'"), ("deepspeed", "pip install deep")])
def test_a_missing_package_that_no_extra_brings_has_its_own_remedy(missing, remedy, recipe, monkeypatch, capsys):
    def raises(*_):
        raise ImportError(f"{missing} is not available")

    monkeypatch.setattr("fipo.run.train.train", raises)
    assert main(["train", recipe]) == 2
    error = capsys.readouterr().err
    assert f"{missing} is not installed" in error and remedy in error


def test_a_package_that_is_installed_and_does_not_fit_is_not_called_missing(recipe, tmp_path, monkeypatch, capsys):
    def raises(*_):
        raise ImportError("cannot import name 'x' from 'vllm'")

    (tmp_path / "vllm.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fipo.run.train.train", raises)
    assert main(["train", recipe]) == 2
    error = capsys.readouterr().err
    assert "vllm is installed, but cannot be used (cannot import name 'x'" in error and "pip install '.[vllm]'" in error


def test_an_import_error_of_the_users_own_is_not_blamed_on_extras(recipe, monkeypatch):
    def raises(*_):
        raise ImportError("No module named 'my_judge'", name="my_judge")

    monkeypatch.setattr("fipo.run.train.train", raises)
    with pytest.raises(ImportError, match="my_judge"):
        main(["train", recipe])


def test_a_mistyped_path_is_answered_before_slow_imports():
    code = "import sys; from fipo.cli import main; main(['train', 'x.yaml']); sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_shows_fipos_own_settings_first(capsys):
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 60
    assert "fipo_decay_rate" in short and "rg:task" in short and "--help-all" in short
    assert main(["train", "--help-all"]) == 0
    assert "--per_device_train_batch_size" in capsys.readouterr().out


def test_analyze_prints_tables_and_json(tmp_path, capsys):
    import json

    import numpy as np

    from fipo.traces import Trace, write_traces

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
    assert main(["analyze", str(tmp_path)]) == 2
    assert "holds no readable trace" in capsys.readouterr().err


def test_terminal_escapes_in_a_file_are_shown_not_obeyed(tmp_path, capsys):
    (tmp_path / "a\x1b]0;owned\x07").mkdir()
    assert main(["analyze", str(tmp_path / "a\x1b]0;owned\x07")]) == 2
    printed = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07" in printed and "\x1b" not in printed
