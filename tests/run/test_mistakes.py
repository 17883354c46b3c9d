"""Ordinary mistakes of a user end in one line that names them, with exit code 2, before a model is loaded."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest
from support import tiny

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
    monkeypatch.setattr(os, "environ", os.environ.copy())  # transformers tells accelerate of FSDP there
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


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return '1.0'", "The reward score returned '1.0', but must return a list of numbers; repair it"),
        ("return ['1.0'] * len(completions)", "The reward score returned ['1.0'], but must return a list of numbers"),
        ("return [float('nan')]", "The reward score returned [nan], but scores must be finite; repair it"),
        ("return [1.0, 2.0]", "The reward score returned 2 scores for 1 completions"),
        ("return columns['gold']", "raised for the completion '2' of the first prompt (KeyError: 'gold'); repair it"),
    ],
)
def test_a_reward_is_tried_before_a_model_is_loaded(folder, capsys, body, words):
    (folder / "mine.py").write_text(f"def score(completions, **columns):\n    {body}\n")
    sys.modules.pop("mine", None)
    (folder / "data.jsonl").write_bytes(lines_of([{"prompt": f"{i}+1=", "answer": "2"} for i in range(10)]))
    write(folder, rewards=["python:mine:score"])
    refused(["train", "recipe.yaml"], words, capsys)


def test_a_column_that_only_the_held_out_prompts_miss(folder, capsys):
    (folder / "by_level.py").write_text("def score(completions, level, **columns):\n    return level\n")
    rows = [{"prompt": f"{i}?", "answer": str(i), "level": 1} for i in range(9)]
    (folder / "levels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(folder, dataset="levels.jsonl", eval_dataset="data.jsonl", rewards=["python:by_level:score"])
    words = "On the held-out prompts: The reward 'python:by_level:score' reads level … the data's columns are answer"
    refused(["train", "recipe.yaml"], words, capsys)
    del sys.modules["by_level"]


def test_a_file_beside_the_reward_does_not_stand_for_a_library(folder):
    """In a process of its own, in which `datasets` has not been imported yet."""
    (folder / "own.py").write_text("def score(completions, **columns):\n    return [1.0] * len(completions)\n")
    (folder / "datasets.py").write_text("raise SystemExit('a script that prepares data')\n")
    write(folder, rewards=["python:own:score"])
    command = [sys.executable, "-c", "from fipo.cli import main; raise SystemExit(main(['train', 'recipe.yaml']))"]
    done = subprocess.run([*command[:1], "-P", *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0 and "nothing was run" in done.stdout, done.stderr


def test_a_reward_for_chat_may_be_tried_on_text_prompts(folder, capsys):
    """Whether prompts become chat messages the model's template decides, which a dry run does not see."""
    body = "return iter([float(messages[-1]['content'] == '2') for messages in completions])"
    (folder / "mine.py").write_text(f"def score(completions, **columns):\n    {body}\n")
    (folder / "data.jsonl").write_bytes(lines_of([{"prompt": f"{i}+1=", "answer": "2"} for i in range(10)]))
    for prompt_format, works in (("auto", True), ("chat", True), ("text", False)):
        sys.modules.pop("mine", None)
        write(folder, rewards=["python:mine:score"], prompt_format=prompt_format)
        if works:
            assert main(["train", "recipe.yaml"]) == 0
            assert "rewards of its answer '2': score 1\n" in capsys.readouterr().out
        else:
            refused(["train", "recipe.yaml"], "raised for the completion '2' of the first prompt (TypeError", capsys)


def test_a_dry_run_shows_a_prompt_and_what_its_answer_gets(folder, capsys):
    (folder / "data.jsonl").write_bytes(lines_of([{"prompt": f"{i}+1=2\n1+1=", "answer": "2"} for i in range(10)]))
    write(folder, rewards=["last_number", "overlong"], stop_character="\\n")
    assert main(["train", "recipe.yaml"]) == 0
    assert "First prompt: … 1+1=\n  rewards of its answer '2': last_number 1, overlong 0\n" in capsys.readouterr().out


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
    ({"rewards": ["nope"]}, "The reward 'nope' is unknown; use one of"),
    ({"rewards": ["last_numbr"]}, "The reward 'last_numbr' is unknown; did you mean last_number?"),
    ({"dataset": "date.jsonl"}, "date.jsonl does not exist; did you mean data.jsonl?"),
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
    ({"no_fipo_streaming": True}, "no_fipo_streaming is a flag … in a recipe write fipo_streaming: false"),
    ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ({"dataset": "rg:nothing"}, "reasoning-gym has no task 'nothing'"),
    ({"dataset": "rg:chain_sum?size=x"}, "size of reasoning-gym's chain_sum is 'x', but must be a whole number"),
    ({"prompt_column": "text"}, "has no column 'text'"),
    ({"answer_column": "solution"}, "has no column 'solution'"),
    ({"per_device_train_batch_size": 64}, "a rollout takes"),
    ({"model_name_or_path": ""}, "model_name_or_path is empty"),
    ({"resume": True, "dry_run": False}, "holds no checkpoint to resume"),
    ({"resume_from_checkpoint": "nowhere", "dry_run": False}, "resume_from_checkpoint is nowhere, which is no folder"),
    ({"resume_from_checkpoint": ".", "dry_run": False}, "which holds no trainer_state.json"),
    ({"output_dir": None}, "output_dir is trainer_output, which TRL takes where none is given"),
    ({"output_dir": "data.jsonl", "dry_run": False}, "output_dir is data.jsonl, which is a file"),
    (
        {"output_dir": "data.jsonl/run", "dry_run": False},
        "output_dir is data.jsonl/run…, which cannot be a folder (Not a directory)",
    ),
    ({"output_dir": "x" * 300, "dry_run": False}, "which cannot be a folder (File name too long)"),
    (
        {"output_dir": "a\0b", "dry_run": False},
        f"which cannot be a folder ({'embedded null byte' if sys.version_info < (3, 13) else 'stat: embedded null'}",
    ),
    ({"steps-per-generation": 4}, "holds steps_per_generation and steps-per-generation, which are one key"),
    ({"preset": "7b", "fipo_preset": "7b"}, "holds preset and fipo_preset, which are one key"),
    ({"config": "recipe.yaml"}, "config is no flag of fipo; write the recipe first"),
    ({"env": {"A": "1"}}, "env is no key of a recipe"),
    ({"max_completion_length": None}, "max_completion_length is None, but a rollout needs a limit"),
    ({"model_init_kwargs": {"a": 1}}, "model_init_kwargs is {'a': 1}, but fipo loads the model itself"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs is 'x', but must be a mapping"),
    ({"lr_scheduler_kwargs": "x"}, "lr_scheduler_kwargs is 'x', but must be a mapping"),
    ({"accelerator_config": "nowhere.json"}, "No such file or directory: 'nowhere.json'"),
    ({"learning_rate": "inf"}, "learning_rate is inf, but must be a finite number"),
    ({"learning_rate": "-.inf"}, "learning_rate is '-.inf', but must be a number"),
    ({"top_p": 2}, "top_p is 2, but must be at most 1"),
    ({"top_k": -5}, "top_k is -5, but must be at least 0"),
    ({"min_p": 5}, "min_p is 5, but must be at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"top_entropy_quantile": 3}, "top_entropy_quantile is 3, but must be at most 1"),
    ({"num_train_epochs": -1}, "num_train_epochs is -1"),
    ({"max_steps": -5}, "max_steps is -5, but must be at least -1"),
    ({"data_seed": -3}, "data_seed is -3"),
    ({"save_total_limit": -1}, "save_total_limit is -1, but must be at least 1"),
    ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1"),
    ({"neftune_noise_alpha": -1}, "neftune_noise_alpha is -1"),
    ({"lora_r": 0}, "lora_r is 0"),
    ({"lora_alpha": 0}, "lora_alpha is 0"),
    ({"lora_dropout": 3}, "lora_dropout is 3, but must be at most 1"),
    ({"scale_rewards": "foo"}, "scale_rewards is 'foo', but must be one of group, batch, none"),
    ({"multi_objective_aggregation": "sum"}, "multi_objective_aggregation is 'sum', but must be one of"),
    ({"vllm_mode": "zz"}, "vllm_mode is 'zz', but must be one of colocate, server"),
    ({"prompt_format": "prose"}, "prompt_format is 'prose', but must be one of auto, chat, text"),
    ({"stop_character": "ab"}, "stop_character is 'ab', but must be one character"),
    ({"optim": "adamm"}, "adamm is not a valid OptimizerNames"),
    ({"save_strategy": "often"}, "often is not a valid SaveStrategy"),
    ({"deepspeed": "nowhere.json"}, "deepspeed is not installed … pip install deepspeed"),
    ({"fsdp": "nonsense"}, "Unknown `fsdp` option: nonsense"),
    ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported"),
    ({"system_prompt": ["a", "b"]}, "system_prompt is ['a', 'b'], but must be a text"),
    ({"rewards": [None]}, "rewards is [None], but must be a list of texts"),
    ({"rewards": {"a": 1}}, "rewards is {'a': 1}, but must be a list of texts"),
    ({"rewards": [""]}, "The reward '' is unknown"),
    ({"rewards": ["python:builtins:int?x=1"]}, "The parameters of the reward 'python:builtins:int' cannot be read"),
    ({"rewards": ["python:.x:f"]}, "python:.x:f"),
    ({"prompt_column": "answer"}, "prompt_column and answer_column are both answer"),
    ({"answer_column": "prompt"}, "prompt_column and answer_column are both prompt"),
    ({"dataset": "d.CSV"}, "d.CSV does not exist"),
    ({"dataset": "/nowhere/data"}, "/nowhere/data does not exist"),
    ({"dataset": "~/d.parquet"}, "~/d.parquet does not exist"),
    ({"dataset": "d.jsnl"}, "'d.jsnl' with split 'train' cannot be loaded"),
    ({"dataset": "rg:"}, "reasoning-gym has no task ''"),
    ({"dataset": "rg:chain_sum?size=0"}, "size must be positive"),
    ({"dataset": "rg:chain_sum?size=1e3"}, "size of reasoning-gym's chain_sum is '1e3', but must be a whole number"),
    ({"dataset": "rg:chain_sum?min_terms=5&max_terms=2"}, "max_terms must be >= min_terms"),
    ({"dataset": "rg:chain_sum?max_term=2"}, "has no option 'max_term'; did you mean max_terms?"),
    ({"dataset": "rg:chain_sum?size=3&size=4"}, "has the option size twice"),
    ({"dataset": "rg:chain_sum?allow_negation=perhaps"}, "is 'perhaps', but must be true or false"),
]


@pytest.mark.parametrize(("changes", "words"), KEYS, ids=lambda value: str(value)[:40])
def test_keys_of_a_recipe(changes, words, folder, capsys):
    write(folder, **changes)
    refused(["train", "recipe.yaml"], words, capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lerning_rate", "1"], "lerning_rate is no key … did you mean learning_rate?"),
        (["--num_generations", "four"], "num_generations is 'four', but must be a whole number"),
        (["--num_generations"], "num_generations has no value, but needs one"),
        (["--learning_rate", "-1"], "learning_rate"),
        (["--fipo_clip_high_only", "perhaps"], "fipo_clip_high_only is 'perhaps', but must be true or false"),
        (["--num_generations=0"], "num_generations is 0, but must be at least 2"),
        (["--learning_rate=-1"], "learning_rate is -1, but must be at least 0"),
        (["--learning_rate", "inf"], "learning_rate is inf, but must be a finite number"),
        (["--max-steps", "0"], "max_steps is 0, so nothing would be trained"),
        (["--max_steps", "1e3"], "max_steps is '1e3', but must be a whole number"),
        (["--chat_template_kwargs", "x"], "chat_template_kwargs is 'x', but must be a mapping"),
        (["--config", "recipe.yaml"], "write the recipe first: fipo train recipe.yaml"),
        (["--num_gen", "8"], "num_gen is no key of a recipe and no flag; did you mean num_generations?"),
        (["stray"], "stray is no flag and no value of one; remove it"),
        (["-x"], "-x is no flag and no value of one"),
        (["--seed="], "seed is '', but must be a whole number"),
        (["--preset", "8b"], "preset is '8b'"),
        (["--seed", "9" * 400], "but must be a finite number"),
        (["--seed", "1", "2"], "2 is no flag and no value of one; remove it"),
        (["--output_dir"], "output_dir has no value, but needs one; write --output_dir value"),
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
        (["doctor", "miles"], "invalid choice: 'miles'"),
        (["test-reward"], "recipe"),
        (["test-reward", "nowhere.yaml", "data.jsonl"], "nowhere.yaml does not exist"),
        (["trian"], "did you mean train?"),
        (["-x"], "unrecognized arguments: -x"),
        (["report", "data.jsonl", "-o", ""], "data.jsonl"),
        (["import", "--from", "trl", "data.jsonl", "--tokenizer", "nowhere"], "--tokenizer is nowhere"),
        (["test-reward", "data.jsonl", "data.jsonl"], "is not YAML"),
        (["zzz"], "zzz is no command of fipo; the commands are train"),
    ],
)
def test_commands(arguments, words, folder, capsys):
    refused(arguments, words, capsys)


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PLAIN = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
CHAT = [{"prompt": [{"role": "user", "content": f"{i}"}], "answer": "1"} for i in range(10)]
DATA = [
    ("a.jsonl", "".join('{"prompt": "é", "answer": "1"}\n' * 10).encode("latin-1"), "codec can't decode"),
    ("a.jsonl", lines_of(PLAIN).decode().encode("utf-16"), "cannot be read as jsonl"),
    ("a.jsonl", lines_of(PLAIN[:2]) + b'{"prompt": "x\n' + lines_of(PLAIN), "cannot be read as jsonl … in row 2"),
    ("a.jsonl", b"[1, 2]\n[3, 4]\n", "cannot be read as jsonl"),
    ("a.jsonl", b"", "a.jsonl is empty"),
    ("a.jsonl.gz", lines_of(PLAIN), "cannot be read as jsonl (Not a gzipped file"),
    ("a.json", b'{"a": 1}', "has no column 'prompt', only ['a']"),
    ("a.csv", b"prompt,answer\n1,2\n3,4\n", "has the prompt 1, but prompts are text … make numbers"),
    ("a.csv", b"prompt,answer\na,b\na,b,c,d\n", "cannot be read as csv"),
    ("a.txt", b"line\n" * 10, "has no column 'prompt', only ['text']"),
    ("a.xlsx", b"PK", "is a file of an unknown kind; name a file that ends in .jsonl"),
    ("a", lines_of(PLAIN), "is a file of an unknown kind"),
    ("a.parquet", b"PAR1", "cannot be read as parquet"),
    ("a.jsonl", lines_of([*CHAT, *PLAIN]), "that are text and prompts that are chat messages"),
    ("a.jsonl", lines_of([{**row, "images": ["x"]} for row in PLAIN]), "has the column images, but fipo train reads"),
    *(
        ("a.jsonl", lines_of([{**row, name: "x"} for row in PLAIN]), f"has the column {name}, but rewards get")
        for name in ("completions", "completion_ids", "prompts", "trainer_state", "log_metric", "environments")
    ),
    *(
        ("a.jsonl", lines_of([{"prompt": prompt, "answer": "1"}] * 10), "but prompts are text or a list of chat")
        for prompt in (
            None,
            3,
            [],
            [{"role": "user", "content": None}],
            [{"content": "x"}],
            [{"role": 3, "content": ""}],
        )
    ),
]


@pytest.mark.parametrize(("name", "content", "words"), DATA, ids=[f"{row[0]}-{row[2][:40]}" for row in DATA])
def test_data(name, content, words, folder, capsys):
    (folder / name).write_bytes(content)
    write(folder, dataset=name)
    refused(["train", "recipe.yaml"], words, capsys)


def test_a_parquet_file_without_rows(folder, capsys):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), folder / "a.parquet")
    write(folder, dataset="a.parquet")
    refused(["train", "recipe.yaml"], "a.parquet has no rows", capsys)


def test_stray_words_behind_test_reward(folder, capsys):
    write(folder)
    (folder / "completions.jsonl").write_text('{"completion": "4", "answer": "4"}\n')
    files = ["test-reward", "recipe.yaml", "completions.jsonl"]
    refused([*files, "stray"], "stray is no flag", capsys)
    refused([*files, "--rewards", "matth"], "did you mean math?", capsys)
    assert main([*files, "--rewards", "exact"]) == 0 and "exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"completion": "3", "completion_ids": 3}, "completion_ids that are no list of numbers"),
        ({"completion": "3", "prompts": "x"}, "has the key prompts, but rewards get something else"),
        (b'{"completion": "3", "answer": ' + b"[" * 100000, "is not JSON"),
        (b'{"completion": "\xe9"}', "is not text in UTF-8"),
        ([1], "has no text in `completion`"),
    ],
)
def test_completions(content, words, folder, capsys):
    (folder / "completions.jsonl").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    write(folder)
    refused(["test-reward", "recipe.yaml", "completions.jsonl"], words, capsys)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: a model that works, one without a chat template, and broken ones."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "works")
    for name in ("base", "cut", "reshaped", "no_tokenizer"):
        shutil.copytree(folder / "works", folder / name)
    (folder / "base" / "chat_template.jinja").unlink()
    (folder / "cut" / "model.safetensors").write_bytes(b"no")
    config = json.loads((folder / "works" / "config.json").read_text())
    (folder / "reshaped" / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    for file in (folder / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nowhere"}, "cannot be loaded"),
        ({"model": "cut"}, "cannot be loaded (Error while deserializing header"),
        ({"model": "reshaped"}, "cannot be loaded"),
        ({"model": "no_tokenizer"}, "cannot be loaded"),
        ({"model_name_or_path": "package:a.b"}, "No installed package 'a.b' holds a GGUF file"),
        ({"model_name_or_path": "x.gguf"}, "The model file x.gguf does not exist"),
        ({"attn_implementation": "flash_attention_9"}, "cannot be loaded"),
        ({"dtype": "float7"}, "dtype is 'float7'"),
        ({"load_in_4bit": True}, "needs a package that is not installed … bitsandbytes"),
        ({"use_vllm": True}, "vllm is not installed, but the run asks for it; pip install '.[vllm]'"),
        ({"use_liger_kernel": True}, "liger-kernel is not installed, but the run asks for it"),
        ({"report_to": "wandbb"}, "wandbb is not supported"),
        ({"report_to": "mlflow"}, "pip install mlflow"),
        ({"fsdp": "full_shard"}, "fsdp only works in distributed training"),
        ({"push_to_hub": True}, "offline mode is enabled"),
        ({"use_peft": True, "lora_target_modules": ["nothing"]}, "Target modules {'nothing'} not found"),
        ({"use_peft": True, "lora_target_modules": ["(", "a"]}, "Target modules"),
        ({"use_peft": True, "lora_target_modules": ["(a"]}, "The run cannot be set up: missing )"),
        ({"use_peft": True, "lora_task_type": "ZZZ"}, "Invalid task type: 'ZZZ'"),
        ({"adam_beta1": 2}, "Invalid beta parameter at index 0: 2"),
        ({"adam_epsilon": -1}, "Invalid epsilon value: -1"),
        ({"optim_args": "zzz"}, "The run cannot be set up"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_kwargs": {"x": 1}}, "unexpected keyword argument 'x'"),
        ({"max_prompt_length": 0}, "max_prompt_length (0 tokens) leaves 0 training prompts"),
        ({"max_completion_length": 100000}, "tokens together, but the model's config.json allows"),
        ({"chat_template": "binary.jinja"}, "is no text in UTF-8"),
        ({"chat_template": "syntax.jinja"}, "The chat template cannot be applied"),
        ({"chat_template": "zero.jinja"}, "The chat template cannot be applied to the prompts (division by zero)"),
        ({"chat_template": "empty.jinja"}, "of the training prompts has no tokens"),
        ({"model": "base", "dataset": "blank.jsonl"}, "of the training prompts has no tokens"),
        ({"model": "base", "dataset": "chat.jsonl"}, "The prompts are chat messages, but the model's tokenizer has no"),
        ({"model": "base", "prompt_format": "chat"}, "The prompts are to become chat messages, but"),
        ({"model": "base", "system_prompt": "Be brief."}, "system_prompt is set, but the prompts stay text"),
        ({"prompt_format": "text", "system_prompt": "Be brief."}, "system_prompt is set, but the prompts stay text"),
        ({"prompt_format": "text", "dataset": "chat.jsonl"}, "prompt_format is text, but the dataset holds chat"),
        ({"stop_character": "é"}, "stop_character is 'é', but no token of the model's vocabulary holds it"),
        ({"rewards": ["python:mine:one"]}, "returned 1 scores for 8 completions, but must return one for each"),
        ({"rewards": ["python:mine:mapping"]}, "returned {0: 1.0}, but must return a list of numbers; repair it"),
        ({"rewards": ["python:mine:leaves"]}, "Scoring raised for every sample of the last rollout"),
        ({"rewards": ["python:mine:deletes"]}, "run was deleted while the run was under way"),
        ({"rewards": ["reasoning_gym"]}, "The reward reasoning_gym scores datasets named rg:task alone"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_with_a_model(changes, words, folder, models, capsys):
    for name, content in [("binary", b"\xff"), ("syntax", b"{% for"), ("zero", b"{{ 1 / 0 }}"), ("empty", b"")]:
        (folder / f"{name}.jinja").write_bytes(content)
    (folder / "chat.jsonl").write_bytes(lines_of(CHAT))
    (folder / "blank.jsonl").write_bytes(lines_of([{"prompt": "", "answer": "1"}] * 10))
    (folder / "mine.py").write_text(
        "import shutil\n"
        "def one(completions, **_): return [1.0]\n"
        "def mapping(completions, **_): return {i: 1.0 for i in range(len(completions))}\n"
        "def leaves(completions, **_): exit()\n"
        "def deletes(completions, **_): shutil.rmtree('run'); return [float(i % 2) for i in range(len(completions))]\n"
    )
    sys.modules.pop("mine", None)
    changes = {"model_name_or_path": str(models / changes.pop("model", "works")), **changes}
    write(folder, **TRAINED | changes)
    refused(["train", "recipe.yaml"], words, capsys)


TRAINED = {"dry_run": False, "max_steps": 2, "max_completion_length": 8, "dtype": "float32", "eval_size": 0}
TRAINED |= {"gradient_checkpointing": False, "save_strategy": "no", "sample_every": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "lines.txt", "prompt_column": "text", "answer_column": "", "rewards": ["regex?pattern=1"]},
        {"dataset": "Train.JSONL"},
        {"dataset": "folder"},
        {"use_peft": True, "lora_target_modules": ["q_proj"]},
        {"use_peft": True, "lora_target_modules": [".*q_proj"]},
        {"rewards": ["python:fine:instance?scale=2"]},
    ],
    ids=str,
)
def test_what_looks_wrong_and_is_right(changes, folder, models, capsys):
    (folder / "lines.txt").write_text("".join(f"line {i}\n" for i in range(10)))
    (folder / "Train.JSONL").write_bytes(lines_of(PLAIN))
    (folder / "folder").mkdir()
    (folder / "folder" / "train.jsonl").write_bytes(lines_of(PLAIN))
    (folder / "fine.py").write_text(
        "class Reward:\n"
        "    def __call__(self, completions, scale: int, **_): return [1.0 * scale] * len(completions)\n"
        "instance = Reward()\n"
    )
    write(folder, **TRAINED, model_name_or_path=str(models / "works"), **changes)
    assert main(["train", "recipe.yaml"]) == 0, capsys.readouterr().err


def test_a_checkpoint_that_lacks_a_file_is_not_resumed_from(folder, models, capsys):
    """transformers would go on with a fresh optimizer, and with other random numbers."""
    write(folder, **TRAINED | {"save_strategy": "steps", "save_steps": 1}, model_name_or_path=str(models / "works"))
    assert main(["train", "recipe.yaml"]) == 0
    checkpoint = folder / "run" / "checkpoint-2"
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rollout_0.pt", "model.safetensors"):
        content = (checkpoint / file).read_bytes()
        (checkpoint / file).unlink()
        refused(["train", "recipe.yaml", "--resume", "true", "--max_steps", "4"], "checkpoint-2", capsys)
        (checkpoint / file).write_bytes(b"no")
        words = "checkpoint-2 cannot be loaded … --resume_from_checkpoint run/checkpoint-1"
        refused(["train", "recipe.yaml", "--resume", "true", "--max_steps", "4"], words, capsys)
        if file == "model.safetensors":  # nothing is left to train
            refused(["train", "recipe.yaml", "--resume", "true"], words, capsys)
        (checkpoint / file).write_bytes(content)
    assert not (folder / "run" / "checkpoint-3").exists()
