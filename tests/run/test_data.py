"""Prompts from files and procedural tasks; what may be wrong with them, test_mistakes.py lists."""

import json

import pytest
from datasets import Dataset

from fipo.run.arguments import RunArguments
from fipo.run.data import load_prompts
from fipo.run.prompts import prompts_of
from fipo.trainer.config import FIPOConfig

ROWS = [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": "4"}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(ROWS))
    else:
        getattr(Dataset.from_list(ROWS), f"to_{suffix.replace('jsonl', 'json')}")(str(path))
    prompts = load_prompts(str(path))
    assert prompts["prompt"] == ["1+1", "2+2"]
    assert [str(answer) for answer in prompts["answer"]] == ["2", "4"]


def test_columns_chats_and_extra_columns(tmp_path):
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": chat, "solution": "x", "level": 3}))
    prompts = load_prompts(str(tmp_path / "data.jsonl"), prompt_column="question", answer_column="solution")
    assert prompts[0] == {"answer": "x", "level": 3, "prompt": chat}


def test_held_out_prompts_are_not_trained_on_and_seed_0_is_a_seed(tmp_path):
    run = RunArguments(dataset={"rg:chain_sum": {"max_terms": 2, "max_digits": 1, "size": 300}})

    def prompts(**seeds):
        return prompts_of(run, FIPOConfig(output_dir=str(tmp_path), **seeds))

    found = prompts(seed=7, data_seed=0)
    train, held_out = ({str(prompt) for prompt in part["prompt"]} for part in (found.train, found.held_out))
    assert train and len(held_out) > 20 and not train & held_out
    assert found.train["prompt"] == prompts(seed=0).train["prompt"] != prompts(seed=7).train["prompt"]
