"""Ordinary mistakes of a user end in one line that names them, with exit code 2, before a model is loaded."""

import json

import pytest

from fipo.cli import main

RECIPE = {
    "model_name_or_path": "nowhere",
    "dataset": "data.jsonl",
    "rewards": ["last_number"],
    "output_dir": "run",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "eval_size": 2,
    "dry_run": True,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def refused(arguments, words, capsys):
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr().err.splitlines()
    (line,) = [line for line in printed if line.startswith("fipo: ")]
    assert "Traceback" not in "".join(printed)
    for word in words.split(" … "):
        assert word in line, line


def write(folder, **changes):
    recipe = {name: value for name, value in (RECIPE | changes).items() if value is not ...}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML


def test_the_recipe_itself_is_right(folder, capsys):
    write(folder)
    assert main(["train", "recipe.yaml"]) == 0
    assert "nothing was run" in capsys.readouterr().out
    write(folder, preset="7b", fipo_chunk_size=64, learning_rate="1e-5")
    assert main(["train", "recipe.yaml"]) == 0


KEYS = [
    ({"lerning_rate": 1}, "lerning_rate is no key … did you mean learning_rate?"),
    ({"fipo_decayrate": 1}, "did you mean fipo_decay_rate?"),
    ({"zzzz": 1}, "zzzz is no key of a recipe and no flag … --help"),
    ({"preset": "8b"}, "preset is '8b'"),
    ({"rewards": 3}, "rewards is 3, but must be a list of texts"),
    ({"rewards": [3]}, "rewards is [3], but must be a list of texts"),
    ({"rewards": []}, "rewards is empty"),
    ({"rewards": ["nope"]}, "The reward 'nope' is unknown"),
    ({"rewards": ["exact?weight=abc"]}, "'abc', but must be a finite number"),
    ({"rewards": ["python:nowhere"]}, "cannot be imported"),
    ({"num_generations": [4]}, "num_generations is [4], but must be a whole number"),
    ({"num_generations": "four"}, "num_generations is 'four', but must be a whole number"),
    ({"num_generations": 0}, "num_generations is 0 … at least 2"),
    ({"num_generations": 3}, "num_generations"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
    ({"per_device_train_batch_size": 1.5}, "per_device_train_batch_size is 1.5, but must be a whole number"),
    ({"max_completion_length": 0}, "max_completion_length is 0, but must be at least 1"),
    ({"max_completion_length": -1}, "max_completion_length is -1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    ({"learning_rate": "nan"}, "learning_rate is nan"),
    ({"learning_rate": -1}, "learning_rate is -1, but must be at least 0"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast', but must be a number"),
    ({"learning_rate": [1]}, "learning_rate is [1]"),
    ({"seed": -1}, "seed is -1"),
    ({"max_steps": 0}, "max_steps is 0, so nothing would be trained"),
    ({"beta": -1}, "beta is -1"),
    ({"temperature": 0}, "temperature is 0"),
    ({"eval_k": 0}, "eval_k is 0, but must be at least 1"),
    ({"eval_size": -1}, "eval_size is -1"),
    ({"eval_every": "often"}, "eval_every is 'often', but must be a whole number"),
    ({"resume": "perhaps"}, "resume is 'perhaps', but must be true or false"),
    ({"fipo_trace_every": -1}, "fipo_trace_every is -1, but must be at least 0"),
    ({"fipo_trace_samples": -1}, "fipo_trace_samples is -1"),
    ({"fipo_dynamic_sampling_rounds": -1}, "fipo_dynamic_sampling_rounds is -1"),
    ({"fipo_clip_high_only": "yes please"}, "fipo_clip_high_only is 'yes please', but must be true or false"),
    ({"fipo_decay_rate": 0}, "fipo_decay_rate is 0"),
    ({"fipo_decay_rate": -3}, "fipo_decay_rate is -3"),
    ({"fipo_distance": "tokens"}, "fipo_distance is 'tokens', but must be one of position, trained"),
    ({"fipo_control": "random"}, "fipo_control is 'random', but must be one of none, uniform, shuffle"),
    ({"fipo_control": "shuffle"}, "set fipo_streaming to false"),
    ({"loss_type": "cispo"}, "loss_type is 'cispo'"),
    ({"steps_per_generation": 1}, "FIPO would silently be GRPO"),
    ({"reward_weights": [1.0]}, "a recipe's rewards carry their own"),
    ({"eval_strategy": "steps"}, "fipo evaluates accuracy itself"),
    ({"eval_strategy": "sometimes"}, "sometimes is not a valid"),
    ({"lr_scheduler_type": "cosinus"}, "cosinus is not a valid"),
    ({"chat_template": "nowhere.jinja"}, "The chat template nowhere.jinja does not exist"),
    ({"dataset": ""}, "dataset is empty"),
    ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ({"dataset": "rg:nothing"}, "reasoning-gym has no task 'nothing'"),
    ({"dataset": "rg:chain_sum?size=x"}, "size of reasoning-gym's chain_sum is 'x', but must be a whole number"),
    ({"prompt_column": "text"}, "has no column 'text'"),
    ({"answer_column": "solution"}, "has no column 'solution'"),
    ({"per_device_train_batch_size": 64}, "a rollout takes"),
    ({"model_name_or_path": ""}, "model_name_or_path is empty"),
    ({"resume": True}, "holds no checkpoint to resume"),
    ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint is nowhere, which is no folder"),
]


@pytest.mark.parametrize(("changes", "words"), KEYS, ids=lambda value: str(value)[:40])
def test_keys_of_a_recipe(changes, words, folder, capsys):
    write(folder, **changes)
    refused(["train", "recipe.yaml"], words, capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lerning_rate", "1"], "lerning_rate is no key … did you mean learning_rate?"),
        (["--num_generations", "four"], "num_generations … invalid int value: 'four'"),
        (["--num_generations"], "num_generations … expected one argument"),
        (["--learning_rate", "-1"], "learning_rate"),
        (["--fipo_clip_high_only", "perhaps"], "Truthy value expected"),
        (["stray"], "stray"),
        (["--preset", "8b"], "preset is '8b'"),
    ],
)
def test_flags(flags, words, folder, capsys):
    write(folder)
    refused(["train", "recipe.yaml", *flags], words, capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no keys with values"),
        (b"just text", "holds no keys with values"),
        (b"- a\n- b\n", "holds no keys with values"),
        (b"a: 1\na: 2\n", "is not YAML (the key a stands there twice)"),
        (b"a: [1\n", "is not YAML"),
        (b"a: \xff\n", "is not text in UTF-8"),
        (b"\x00\x01", "is not YAML"),
        (b"a: !!python/object/apply:os.system [ls]\n", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
        (b"1: 2\n", "holds no keys with values"),
    ],
)
def test_files_that_are_no_recipe(text, words, folder, capsys):
    (folder / "recipe.yaml").write_bytes(text)
    refused(["train", "recipe.yaml"], words, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "needs a recipe or flags"),
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train", "."], "The recipe . is a folder"),
        (["report"], "RUN"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "."], "holds neither metrics.jsonl nor traces"),
        (["report", "data.jsonl"], "data.jsonl"),
        (["analyze"], "traces"),
        (["analyze", "nowhere"], "nowhere does not exist"),
        (["analyze", "data.jsonl"], "data.jsonl"),
        (["analyze", "data.jsonl", "--jsno"], "--jsno"),
        (["import", "data.jsonl"], "--from"),
        (["import", "--from", "trl", "nowhere"], "nowhere does not exist"),
        (["import", "--from", "nobody", "data.jsonl"], "The kind of dump is 'nobody'"),
        (["import", "--from", "trl", "data.jsonl"], "holds no trl dump that could be read"),
        (["import", "--from", "trl", "data.jsonl", "--preset", "9b"], "preset is '9b'"),
        (["doctor"], "engine"),
        (["doctor", "verl"], "invalid choice: 'verl'"),
        (["test-reward"], "recipe"),
        (["test-reward", "nowhere.yaml", "data.jsonl"], "nowhere.yaml does not exist"),
        (["trian"], "did you mean train?"),
        (["zzz"], "zzz is no command of fipo; the commands are train"),
    ],
)
def test_commands(arguments, words, folder, capsys):
    refused(arguments, words, capsys)
