"""`fipo init` writes recipes that run as they are."""

import json

import pytest
import yaml

from fipo.cli import main
from fipo.run import init

DATA = {  # → the reward that fits its answers, and its columns of prompts and answers
    "numbers.jsonl": ([{"prompt": f"{i} + 1", "answer": f"{i + 1}"} for i in range(40)], "last_number"),
    "gsm8k.jsonl": ([{"question": f"{i} + 1", "answer": f"So.\n#### {i + 1}"} for i in range(40)], "last_number"),
    "latex.jsonl": ([{"problem": f"{i}", "solution": f"$\\frac{{{i}}}{{2}}$"} for i in range(40)], "math"),
    "words.jsonl": ([{"query": f"{i}?", "target": "yes"} for i in range(40)], "exact"),
    "few.jsonl": ([{"prompt": f"{i}", "answer": f"{i}"} for i in range(3)], "last_number"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (rows, _) in DATA.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def written(dataset, *more):
    assert main(["init", "mine.yaml", "--model", "a/model", "--dataset", dataset, *more]) == 0
    with open("mine.yaml") as file:
        return yaml.safe_load(file)


@pytest.mark.parametrize("dataset", [*DATA, "rg:chain_sum"])
def test_a_recipe_runs_as_it_is(folder, dataset, capsys):
    recipe = written(dataset)
    assert recipe["rewards"] == [DATA[dataset][1] if dataset in DATA else "reasoning_gym"]
    assert recipe["use_cpu"] is True
    assert main(["train", "mine.yaml", "--dry_run", "true"]) == 0
    assert "nothing was run" in capsys.readouterr().out


def test_answers_that_no_reward_fits_and_a_column_of_answers_by_another_name(folder, capsys):
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "Why?", "gold": "Because " * 20}) + "\n")
    for more in ([], ["--answer-column", "glod"]):
        assert main(["init", "mine.yaml", "--model", "a/model", "--dataset", "long.jsonl", *more]) == 2
        assert not (folder / "mine.yaml").exists()  # so that the next try is not refused
    said = capsys.readouterr().err
    assert "no column of answers among prompt, gold; name it with --answer-column, or ''" in said
    assert "did you mean gold?" in said
    assert written("long.jsonl", "--answer-column", "gold")["rewards"] == ["python:my_reward:score"]
    assert "Write my_reward.py first, with `def score(completions, **columns)`" in capsys.readouterr().out


def test_on_a_gpu(folder, monkeypatch):
    monkeypatch.setattr(init.torch.cuda, "is_available", lambda: True)
    recipe = written("rg:chain_sum")
    assert recipe["per_device_train_batch_size"] * recipe["steps_per_generation"] == 64 * recipe["num_generations"]
    assert recipe["steps_per_generation"] // recipe["gradient_accumulation_steps"] == 8
    assert recipe["fp16"] is True and "use_cpu" not in recipe


def test_mistakes(folder, capsys):
    (folder / "odd.jsonl").write_text(json.dumps({"promt": "1", "reply": "1"}) + "\n")
    for arguments, words in {
        "--dataset odd.jsonl": "has no column of prompts among promt, reply",
        "--dataset odd.jsonl --prompt-column prompt": "did you mean promt?",
        "--dataset nowhere.jsonl": "nowhere.jsonl does not exist",
    }.items():
        assert main(["init", "mine.yaml", "--model", "m", *arguments.split()]) == 2
        assert words in capsys.readouterr().err
    assert written("odd.jsonl", "--prompt-column", "promt", "--answer-column", "reply")["answer_column"] == "reply"
    assert main(["init", "mine.yaml", "--model", "m", "--dataset", "few.jsonl"]) == 2
    assert "mine.yaml exists already" in capsys.readouterr().err
