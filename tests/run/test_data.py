"""Prompts from files and procedural tasks; what is wrong with them is said before a model is loaded."""

import json

import pytest

from fipo import DataError, FIPOError
from fipo.run.arguments import RunArguments
from fipo.run.data import load_prompts
from fipo.run.prompts import prompts_of
from fipo.trainer.config import FIPOConfig

ROWS = [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": "4"}]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        from datasets import Dataset

        getattr(Dataset.from_list(rows), f"to_{path.suffix[1:]}")(str(path))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files(tmp_path, suffix):
    prompts = load_prompts(write(tmp_path / f"data.{suffix}", ROWS))
    assert prompts["prompt"] == ["1+1", "2+2"]
    assert [str(answer) for answer in prompts["answer"]] == ["2", "4"]


def test_columns_chats_and_extra_columns(tmp_path):
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    file = write(tmp_path / "data.jsonl", [{"question": chat, "solution": "x", "level": 3}])
    prompts = load_prompts(file, prompt_column="question", answer_column="solution")
    assert prompts[0] == {"answer": "x", "level": 3, "prompt": chat}


def test_procedural_task():
    prompts = load_prompts("rg:chain_sum?size=5&min_terms=2&max_terms=2", seed=3)
    assert len(prompts) == 5
    assert isinstance(prompts[0]["prompt"], str)
    assert prompts["answer"] == load_prompts("rg:chain_sum?size=5&min_terms=2&max_terms=2", seed=3)["answer"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.jsonl", r"The dataset file nowhere\.jsonl does not exist"),
        ("rg:nothing", "reasoning-gym has no task 'nothing'"),
        ("rg:chain_sum?colour=1", "reasoning-gym's chain_sum has no option 'colour'"),
        ("nobody/nothing", "The dataset 'nobody/nothing' with split 'train' cannot be loaded"),
    ],
)
def test_bad_sources(source, sentence):
    with pytest.raises(FIPOError, match=sentence):
        load_prompts(source)


def test_bad_files(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="is empty, but training needs prompts"):
        load_prompts(str(empty))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": ')
    with pytest.raises(DataError, match="cannot be read as jsonl"):
        load_prompts(str(broken))
    file = write(tmp_path / "data.jsonl", [{"question": "1+1", "prompt": 5}])
    with pytest.raises(DataError, match="has no column 'answer', only"):
        load_prompts(file, prompt_column="question")
    with pytest.raises(DataError, match="has no column 'text', only"):
        load_prompts(file, prompt_column="text")
    with pytest.raises(DataError, match="has the prompt 5, but prompts are text or a list"):
        load_prompts(file, answer_column="")


def test_held_out_prompts_are_not_trained_on_and_seed_0_is_a_seed(tmp_path):
    run = RunArguments(dataset="rg:chain_sum?max_terms=2&max_digits=1&size=300")

    def prompts(**seeds):
        return prompts_of(run, FIPOConfig(output_dir=str(tmp_path), **seeds))

    found = prompts(seed=7, data_seed=0)
    train, held_out = ({str(prompt) for prompt in part["prompt"]} for part in (found.train, found.held_out))
    assert train and len(held_out) > 20 and not train & held_out
    assert found.train["prompt"] == prompts(seed=0).train["prompt"] != prompts(seed=7).train["prompt"]
