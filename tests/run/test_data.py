"""Prompts from files and procedural tasks; what may be wrong with them, test_mistakes.py lists."""

import json

import pytest
from datasets import Dataset

from fipo.errors import DataError
from fipo.run.arguments import RunArguments
from fipo.run.data import load_prompts, prompts_in, with_prompts
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
    assert prompts["answer"] == ["2", "4"]


@pytest.mark.parametrize(("suffix", "sep"), [("csv", ","), ("tsv", "\t")])
def test_cells_stay_what_was_written(tmp_path, suffix, sep):
    """A reader that types would make 7, NaN, 1.1, True and 72.0 of them."""
    answers = ["007", "NA", "1.10", "TRUE", "72", ""]
    path = tmp_path / f"data.{suffix}"
    path.write_text(
        "\n".join([f"prompt{sep}answer{sep}level", *(f"{n}{sep}{a}{sep}{n}" for n, a in enumerate(answers))])
    )
    prompts = load_prompts(str(path))
    assert prompts["answer"] == answers and prompts["prompt"] == list("012345") and prompts["level"] == [*range(6)]


def test_what_lies_in_a_column(tmp_path):
    """As verl's and DAPO's files have it; and chat messages as JSON text."""
    chat = [{"role": "user", "content": "1+1"}]
    row = {"prompt": json.dumps(chat), "reward_model": {"style": "rule-lighteval/MATH_v2", "ground_truth": "34"}}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    prompts = load_prompts(str(path), answer_column="reward_model.ground_truth")
    assert prompts[0]["answer"] == "34" and prompts[0]["prompt"] == chat
    with pytest.raises(DataError, match="has no 'truth' there"):
        load_prompts(str(path), answer_column="reward_model.truth")


def test_a_message_keeps_what_it_has(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    (tmp_path / "data.jsonl").write_text(
        json.dumps({"prompt": chat, "answer": "3", "messages": chat, "completion": ""})
    )
    prompts = load_prompts(str(tmp_path / "data.jsonl"))
    assert set(prompts.column_names) == {"answer", "prompt"}  # TRL would take the others for another format
    found = [{key: value for key, value in turn.items() if value is not None} for turn in prompts[0]["prompt"]]
    assert found == [{key: value for key, value in turn.items() if value is not None} for turn in chat]


def test_tool_calls_do_not_take_the_arguments_of_others():
    calls = [[{"function": {"name": name, "arguments": {name: 1}}}] for name in ("add", "subtract")]
    chats = [[{"role": "assistant", "tool_calls": call}, {"role": "tool", "content": "3"}] for call in calls]
    assert prompts_in(with_prompts(Dataset.from_list(ROWS), chats)) == chats


def test_a_part_of_a_file(tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(ROWS[0]) + "\n" for _ in range(10)))
    assert len(load_prompts(str(tmp_path / "data.jsonl"), split="train[:3]")) == 3


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
