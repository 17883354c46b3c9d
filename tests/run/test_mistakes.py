"""Ordinary mistakes of a user end in one line that names them, with exit code 2, before a model is loaded."""

import json
import os
import shutil
import subprocess
import sys
from io import BytesIO

import pyarrow.parquet
import pytest
from support import tiny

from fipo.cli import main

RECIPE = {"model_name_or_path": "nowhere", "dataset": "data.jsonl", "rewards": ["last_number"], "output_dir": "run"}
RECIPE |= {"num_generations": 4, "per_device_train_batch_size": 4, "steps_per_generation": 2, "eval_size": 2}
RECIPE |= {"use_cpu": True, "bf16": False, "report_to": "none", "dry_run": True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # transformers tells accelerate of FSDP there
    monkeypatch.setattr(sys, "path", sys.path.copy())
    sys.modules.pop("mine", None)  # every test's own rewards
    (tmp_path / "data.jsonl").write_bytes(lines_of(PLAIN))
    return tmp_path


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PLAIN = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
CHAT = [{"prompt": [{"role": "user", "content": f"{i}"}], "answer": "1"} for i in range(10)]
TWOS = [{"prompt": f"{i}+1=", "answer": "2"} for i in range(10)]


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


TRIED = {  # the body of a reward → what is said of it
    "return [1.0, 2.0]": "The reward score returned 2 scores for 1 completions",
    "return columns['gold']": "raised KeyError: 'gold', for the completion '2' of the first prompt; repair it",
}


@pytest.mark.parametrize("body", TRIED)
def test_a_reward_is_tried_before_a_model_is_loaded(folder, capsys, body):
    (folder / "mine.py").write_text(f"def score(completions, **columns):\n    {body}\n")
    (folder / "data.jsonl").write_bytes(lines_of(TWOS))
    write(folder, rewards=["python:mine:score"])
    refused(["train", "recipe.yaml"], TRIED[body], capsys)


def test_a_column_that_only_the_held_out_prompts_miss(folder, capsys):
    (folder / "mine.py").write_text("def score(completions, level, **columns):\n    return level\n")
    (folder / "levels.jsonl").write_bytes(lines_of(row | {"level": 1} for row in PLAIN))
    write(folder, dataset="levels.jsonl", eval_dataset="data.jsonl", rewards=["python:mine:score"])
    words = "On the held-out prompts: The reward 'python:mine:score' reads level … the data's columns are answer"
    refused(["train", "recipe.yaml"], words, capsys)


def test_a_file_beside_the_reward_does_not_stand_for_a_library(folder):
    """In a process of its own, in which `datasets` has not been imported yet."""
    (folder / "own.py").write_text("def score(completions, **columns):\n    return [1.0] * len(completions)\n")
    (folder / "datasets.py").write_text("raise SystemExit('a script that prepares data')\n")
    write(folder, rewards=["python:own:score"])
    code = "from fipo.cli import main; raise SystemExit(main(['train', 'recipe.yaml']))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "nothing was run" in done.stdout, done.stderr


def test_a_reward_for_chat_may_be_tried_on_text_prompts(folder, capsys):
    """Whether prompts become chat messages the model's template decides, which a dry run does not see."""
    body = "return iter([float(messages[-1]['content'] == '2') for messages in completions])"
    (folder / "mine.py").write_text(f"def score(completions, **columns):\n    {body}\n")
    (folder / "data.jsonl").write_bytes(lines_of(TWOS))
    for prompt_format in ("auto", "chat"):
        write(folder, rewards=["python:mine:score"], prompt_format=prompt_format)
        assert main(["train", "recipe.yaml"]) == 0
        assert "rewards of its answer '2': score 1\n" in capsys.readouterr().out
    write(folder, rewards=["python:mine:score"], prompt_format="text")
    refused(["train", "recipe.yaml"], "The reward score raised TypeError", capsys)


def test_a_dry_run_shows_a_prompt_and_what_its_answer_gets(folder, capsys):
    (folder / "data.jsonl").write_bytes(lines_of([{"prompt": f"{i}+1=2\n1+1=", "answer": "2"} for i in range(10)]))
    right = {"preset": "7b", "fipo_head_memory": 0.5, "learning_rate": "1e-5", "stop_character": "\\n"}
    write(folder, rewards=["last_number", "overlong"], **right)
    assert main(["train", "recipe.yaml"]) == 0
    told = capsys.readouterr().out
    assert "First prompt: … 1+1=\n  rewards of its answer '2': last_number 1, overlong 0\n" in told
    assert "nothing was run" in told


BEYOND = {  # what is said of a flag or a key → values that it does not take
    "of at least 1": "eval_k=0",
    "of at least 0": "eval_size=-1 fipo_trace_every=-1 fipo_trace_samples=-1 fipo_head_memory=-0.5",
    "but must be a number above 0": "fipo_decay_rate=0 fipo_decay_rate=nan",
    "invalid float value: 'fast'": "learning_rate=fast",
    "invalid int value": "num_generations=four per_device_train_batch_size=1.5 eval_every=often seed=",
    "Truthy value expected": "resume=perhaps fipo_clip_high_only=perhaps",
    "one character": "stop_character=ab",
    "one of 7b": "preset=8b fipo_preset=8b",
    "one of position, trained": "fipo_distance=tokens",
    "one of none, uniform, shuffle": "fipo_control=random",
    "choose from 'auto', 'chat', 'text'": "prompt_format=prose",
}


BEYOND = {setting: words for words, settings in BEYOND.items() for setting in settings.split()}


@pytest.mark.parametrize("setting", BEYOND)
def test_values_beyond_what_a_key_takes(setting, folder, capsys):
    write(folder)
    refused(["train", "recipe.yaml", f"--{setting}"], BEYOND[setting], capsys)
    key, _, value = setting.partition("=")
    write(folder, **{key: value})
    refused(["train", "recipe.yaml"], BEYOND[setting], capsys)


RUN = {"dry_run": False}  # the folder is looked at
KEYS = [
    ({"lerning_rate": 1}, "lerning_rate is no key … did you mean learning_rate?"),
    ({"zzzz": 1}, "zzzz is no key of a recipe and no flag … --help"),
    ({"fipo_streaming": False}, "fipo_streaming is no key of a recipe"),
    ({"num_generations": [4]}, "invalid int value: '[4]'"),
    ({"num_generations": True}, "invalid int value: 'True'"),
    ({"num_generations": 3}, "must be divisible by num_generations"),
    ({"max_completion_length": None}, "max_completion_length is not given"),
    ({"per_device_train_batch_size": 64}, "leaves 8 training prompts, but a rollout takes 32"),
    ({"reward_weights": [1.0]}, "reward_weights is [1.0], but a recipe's rewards carry their own"),
    ({"eval_strategy": "steps"}, "eval_strategy is 'steps', but fipo evaluates accuracy itself"),
    ({"eval_strategy": "sometimes"}, "invalid choice: 'sometimes'"),
    ({"accelerator_config": "nowhere.json"}, "No such file or directory: 'nowhere.json'"),
    ({"deepspeed": "nowhere.json"}, "The run cannot start: … deepspeed"),
    ({"system_prompt": ["a", "b"]}, "system_prompt is ['a', 'b'], but must be a text"),
    ({"chat_template": "nowhere.jinja"}, "chat_template is nowhere.jinja, which cannot be read"),
    ({"model_name_or_path": ""}, "model_name_or_path is not given"),
    ({"model_init_kwargs": {"a": 1}}, "model_init_kwargs is {'a': 1}, but fipo loads the model itself"),
    ({"no_use_cpu": True}, "no_use_cpu is no key … did you mean use_cpu?"),
    ({"steps-per-generation": 4}, "holds steps_per_generation in two spellings"),
    ({"preset": "7b", "fipo_preset": "7b"}, "holds fipo_preset in two spellings"),
    ({"config": "recipe.yaml"}, "config is no key of a recipe"),
    ({"env": {"A": "1"}}, "env is no key of a recipe"),
    ({"rewards": "last_numbr"}, "The reward 'last_numbr' is unknown; did you mean last_number?"),
    ({"dataset": ""}, "dataset is empty"),
    ({"dataset": "date.jsonl"}, "date.jsonl does not exist; did you mean data.jsonl?"),
    ({"dataset": "/nowhere/data"}, "/nowhere/data does not exist"),
    ({"dataset": "~/d.parquet"}, "~/d.parquet does not exist"),
    ({"dataset": "d.jsnl"}, "d.jsnl cannot be read as a dataset with split 'train'"),
    ({"dataset": "rg:"}, "reasoning-gym has no task ''"),
    ({"dataset": "rg:chain_sums"}, "reasoning-gym has no task 'chain_sums'; did you mean chain_sum?"),
    ({"dataset": {"rg:chain_sum": {"size": "many"}}}, "reasoning-gym's chain_sum does not take {'size': 'many'}"),
    ({"dataset": {"rg:chain_sum": {"min_terms": 5, "max_terms": 2}}}, "max_terms must be >= min_terms"),
    ({"dataset": "{rg:chain_sum: {max_term: 2}}"}, "unexpected keyword argument 'max_term'"),
    ({"prompt_column": "text"}, "has no column 'text', only"),
    ({"answer_column": "solution"}, "has no column 'solution', only"),
    ({"prompt_column": "answer"}, "prompt_column and answer_column are both answer"),
    ({"resume": True, **RUN}, "run holds no checkpoint to resume"),
    ({"resume_from_checkpoint": ".", **RUN}, "which holds no trainer_state.json"),
    ({"output_dir": None}, "output_dir is not given, but every run needs one"),
    ({"output_dir": "data.jsonl", **RUN}, "output_dir is data.jsonl, which cannot be written to … File exists"),
    ({"output_dir": "data.jsonl/run", **RUN}, "data.jsonl/run, which cannot be written to … Not a directory"),
    ({"output_dir": "a\0b", **RUN}, "which cannot be written to (embedded null"),
]


@pytest.mark.parametrize(("changes", "words"), KEYS, ids=lambda value: str(value)[:40])
def test_keys_of_a_recipe(changes, words, folder, capsys):
    write(folder, **changes)
    refused(["train", "recipe.yaml"], words, capsys)


NO_RECIPES = {  # what a file holds → what it is said to be
    **dict.fromkeys((b"", b"just text", b"- a\n- b\n", b"1: 2\n"), "holds no keys with values"),
    b"a: 1\na: 2\n": "is not YAML (the key a stands there twice)",
    b"a: \xff\n": "is not YAML (unacceptable character #x00ff: invalid",
    **dict.fromkeys((b"\x00\x01", b"a: !!python/object/apply:os.system [ls]\n", b"[" * 5000), "is not YAML"),
}


@pytest.mark.parametrize("text", NO_RECIPES)
def test_files_that_are_no_recipe(text, folder, capsys):
    (folder / "recipe.yaml").write_bytes(text)
    refused(["train", "recipe.yaml"], NO_RECIPES[text], capsys)


COMMANDS = {
    "train": "needs a recipe or flags",
    "train recipe.yml": "The recipe recipe.yml is no file; did you mean recipe.yaml?",
    "train recipes/recipe.yaml": "there is no folder recipes",
    "train .": "The recipe . is no file",
    "train recipe.yaml --num_gen 8": "num_gen is no key of a recipe and no flag; did you mean num_generations?",
    "train recipe.yaml --output_dir": "--output_dir/--output-dir: expected one argument",
    "train recipe.yaml stray": "stray is no flag and no value of one; remove it",
    "train recipe.yaml -x": "-x is no flag and no value of one",
    "report": "RUN",
    "report nowhere": "nowhere does not exist",
    "report .": "holds neither metrics.jsonl nor traces/*.parquet, but … name the output_dir",
    "report data.jsonl": "data.jsonl",
    "analyze": "traces",
    "analyze nowhere": "nowhere does not exist",
    "analyze data.jsonl": "data.jsonl",
    "analyze .": "holds no readable trace",
    "analyze data.jsonl --jsno": "--jsno",
    "import data.jsonl": "--from",
    "import --from prime-rl nowhere": "nowhere does not exist; check the path",
    "import --from nobody data.jsonl": "is 'nobody', but must be one of slime, prime-rl",
    "import --from prime-rl data.jsonl": "holds no prime-rl dump that could be read",
    "import --from prime-rl data.jsonl --preset 9b": "preset is '9b'",
    "import --from prime-rl data.jsonl --tokenizer ./no/where": "The tokenizer is ./no/where, but must be",
    "doctor miles": "invalid choice: 'miles'",
    "test-reward": "recipe",
    "test-reward nowhere.yaml data.jsonl": "nowhere.yaml is no file",
    "test-reward data.jsonl data.jsonl": "is not YAML",
    "test-reward recipe.yaml nowhere.jsonl": "nowhere.jsonl does not exist",
    "test-reward recipe.yaml data.jsonl": "Row 1 of data.jsonl needs a text `completion`",
    "test-reward recipe.yaml data.jsonl stray": "stray is no flag",
    "trian": "invalid choice: 'trian' (choose from 'train', ",
    "-x": "the following arguments are required: COMMAND; see `fipo --help`",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, folder, capsys):
    write(folder)
    refused(line.split(), COMMANDS[line], capsys)


pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), NO_ROWS := BytesIO())
RESERVED = ("images", "completions", "completion_ids", "prompts", "trainer_state", "log_metric", "environments")
DATA = [
    ("a.jsonl", "".join('{"prompt": "é", "answer": "1"}\n' * 10).encode("latin-1"), "cannot be read as jsonl … UTF8"),
    ("a.jsonl", lines_of(PLAIN[:2]) + b'{"prompt": "x\n' + lines_of(PLAIN), "cannot be read as jsonl … in row 2"),
    ("a.jsonl", b"[1, 2]\n[3, 4]\n", "cannot be read as jsonl"),
    ("a.jsonl", b"", "a.jsonl cannot be read as jsonl ("),
    ("a.jsonl.gz", lines_of(PLAIN), "cannot be read as jsonl (Not a gzipped file"),
    ("a.json", b'{"a": 1}', "has no column 'prompt', only ['a']"),
    ("a.csv", b"prompt,answer\na,b\na,b,c,d\n", "cannot be read as csv"),
    ("a.txt", b"line\n" * 10, "has no column 'prompt', only ['text']"),
    ("a.xlsx", b"PK", "is of an unknown kind; name a file that ends in .jsonl"),
    ("a", lines_of(PLAIN), "is of an unknown kind"),
    ("a.parquet", b"PAR1", "cannot be read as parquet"),
    ("a.parquet", NO_ROWS.getvalue(), "a.parquet cannot be read as parquet ("),
    ("a.jsonl", lines_of([*CHAT, *PLAIN]), "that are text and prompts that are chat messages"),
    *(
        ("a.jsonl", lines_of([{**row, name: "x"} for row in PLAIN]), f"has the column {name}, which is something else")
        for name in RESERVED
    ),
    *(
        ("a.jsonl", lines_of([{"prompt": prompt, "answer": "1"}] * 10), "but prompts are text or a list of chat")
        for prompt in (None, 3, [])
    ),
    *(
        ("a.jsonl", lines_of([{"prompt": [{"role": "user"} | turn], "answer": "1"}] * 10), problem)
        for problem, turn in {
            "the content of a message is null; give text": {"content": None},
            "the content of a message must be text": {"content": [{"type": "text", "text": "x"}]},
            "a chat message needs a role": {"role": None, "content": "x"},
            "its last message is the assistant's, so there is nothing to answer": {"role": "assistant", "content": "x"},
        }.items()
    ),
    ("a.jsonl", lines_of([{"prompt": "x", "answer": {"truth": "1"}}] * 10), "an object, but an … as answer.truth"),
    ("a.jsonl", lines_of([{"prompt": "x", "answer": True}] * 10), "True, but an answer is a text, a number, or a list"),
    ("a.jsonl", lines_of([{"prompt": "x", "answer": "1", "tools": []}] * 10), "has the column tools, which is"),
]


@pytest.mark.parametrize(("name", "content", "words"), DATA, ids=[f"{row[0]}-{row[2][:40]}" for row in DATA])
def test_data(name, content, words, folder, capsys):
    (folder / name).write_bytes(content)
    write(folder, dataset=name)
    refused(["train", "recipe.yaml"], words, capsys)


COMPLETIONS = {  # a line of a file → what is said of it
    b'{"completion": "3", "completion_ids": 3}': "needs a text `completion` and a list `completion_ids`",
    b'{"completion": "3", "prompts": "x"}': "has the key prompts, which is something else to TRL",
    b'{"completion": "3", "answer": ' + b"[" * 100000: "cannot be read as jsonl (",
    b'{"completion": "\xe9"}': "cannot be read as jsonl … UTF8",
}


@pytest.mark.parametrize("content", COMPLETIONS, ids=lambda content: content[:40])
def test_completions(content, folder, capsys):
    (folder / "completions.jsonl").write_bytes(content)
    write(folder)
    refused(["test-reward", "recipe.yaml", "completions.jsonl"], COMPLETIONS[content], capsys)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: a model that works, one without a chat template, and broken ones."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "works", max_position_embeddings=64)
    for name in ("base", "cut", "no_tokenizer"):
        shutil.copytree(folder / "works", folder / name)
    (folder / "base" / "chat_template.jinja").unlink()
    (folder / "cut" / "model.safetensors").write_bytes(b"no")
    for file in (folder / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    return folder


MINE = """
import shutil
def one(completions, **_): return [1.0]
def leaves(completions, **_): exit()
def deletes(completions, **_): shutil.rmtree('run'); return [float(i % 2) for i in range(len(completions))]
class Reward:
    def __call__(self, completions, scale: int, **_): return [1.0 * scale] * len(completions)
instance = Reward()
"""
FILES = {  # of both tests below
    "binary.jinja": b"\xff",
    "zero.jinja": b"{{ 1 / 0 }}",
    "empty.jinja": b"",
    "deaf.jinja": b"Answer",
    "chat.jsonl": lines_of(CHAT),
    "blank.jsonl": lines_of([{"prompt": "", "answer": "1"}] * 10),
    "applied.jsonl": lines_of([{"prompt": f"[EOS]{number}", "answer": "1"} for number in range(10)]),
    "lines.txt": "".join(f"line {i}\n" for i in range(10)).encode(),
    "Train.JSONL": lines_of(PLAIN),
    "folder/train.jsonl": lines_of(PLAIN),
    "mine.py": MINE.encode(),
}
TRAINED = {"dry_run": False, "max_steps": 2, "max_completion_length": 8, "dtype": "float32", "eval_size": 0}
TRAINED |= {"gradient_checkpointing": False, "save_strategy": "no", "sample_every": 0}


def write_for_training(folder, models, model="works", **changes):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    write(folder, **TRAINED | {"model_name_or_path": str(models / model)} | changes)


UNFIT = [
    ({"model": "cut"}, "cannot be loaded (SafetensorError: Error while deserializing header"),
    ({"model": "no_tokenizer"}, "cannot be loaded"),
    ({"model_name_or_path": "package:a.b"}, "The model 'package:a.b' cannot be loaded (ModuleNotFoundError"),
    ({"model_name_or_path": "x.gguf"}, "The model 'x.gguf' cannot be loaded (FileNotFoundError"),
    ({"dtype": "float7"}, "--dtype: invalid choice: 'float7' (choose from 'auto', 'float32'"),
    ({"load_in_4bit": True}, "cannot be loaded (ImportError … bitsandbytes"),
    ({"use_liger_kernel": True}, "The run cannot start: ImportError: … liger-kernel"),
    ({"use_peft": True, "lora_target_modules": ["(a"]}, "The run cannot start: error: missing )"),
    ({"adam_beta1": 2}, "Invalid beta parameter at index 0: 2"),
    ({"max_prompt_length": 0}, "max_prompt_length (0) leaves 0 training prompts"),
    ({"max_completion_length": 60}, "are 65 tokens together, but the model's config.json allows 64; lower"),
    ({"chat_template": "binary.jinja"}, "chat_template is binary.jinja, which cannot be read"),
    ({"chat_template": "zero.jinja"}, "The chat template cannot be applied to the prompts (division by zero)"),
    ({"chat_template": "deaf.jinja"}, "makes the same 6 tokens of all 10 prompts, so the model would not see"),
    (
        {"dataset": "applied.jsonl"},
        "holds [EOS], so a chat template was applied to it before; set prompt_format to text",
    ),
    ({"chat_template": "empty.jinja"}, "of the training prompts has no tokens"),
    ({"model": "base", "dataset": "blank.jsonl"}, "of the training prompts has no tokens"),
    ({"model": "base", "dataset": "chat.jsonl"}, "The prompts are chat messages, or to become some, but the model"),
    ({"model": "base", "prompt_format": "chat"}, "The prompts are chat messages, or to become some"),
    ({"model": "base", "system_prompt": "Be brief."}, "system_prompt is set, but the prompts stay text"),
    ({"prompt_format": "text", "dataset": "chat.jsonl"}, "prompt_format is text, but the dataset holds chat"),
    ({"stop_character": "é"}, "stop_character is 'é', but no token of the model's vocabulary holds it"),
    ({"rewards": ["python:mine:one"]}, "returned 1 scores for 8 completions, but must return one for each"),
    ({"rewards": ["python:mine:leaves"]}, "Scoring raised for every sample of the last rollout"),
    ({"rewards": ["python:mine:deletes"]}, "run was deleted while the run was under way"),
    ({"rewards": ["reasoning_gym"]}, "The reward reasoning_gym scores datasets named rg:task alone"),
]


@pytest.mark.parametrize(("changes", "words"), UNFIT, ids=lambda value: str(value)[:50])
def test_with_a_model(changes, words, folder, models, capsys):
    write_for_training(folder, models, **changes)
    refused(["train", "recipe.yaml"], words, capsys)


def test_a_broken_gguf_leaves_nothing_in_the_cache(folder, models, capsys, monkeypatch):
    monkeypatch.setattr("fipo.run.model.CACHE", folder / "cache")
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    write_for_training(folder, models, model_name_or_path="broken.gguf")
    refused(["train", "recipe.yaml"], "The model 'broken.gguf' cannot be loaded", capsys)
    assert list((folder / "cache").iterdir()) == []


RIGHT = [
    {"dataset": "lines.txt", "prompt_column": "text", "answer_column": "", "rewards": [{"regex": {"pattern": "1"}}]},
    {"dataset": "Train.JSONL"},
    {"dataset": "folder", "max_completion_length": 59},  # as many as the model has room for
    {"use_peft": True, "lora_target_modules": [".*q_proj"]},
    {"rewards": [{"python:mine:instance": {"scale": 2}}]},
    {"save_strategy": False, "scale_rewards": False},  # as TRL takes it, and YAML reads an unquoted no
]


@pytest.mark.parametrize("changes", RIGHT, ids=str)
def test_what_looks_wrong_and_is_right(changes, folder, models, capsys):
    write_for_training(folder, models, **changes)
    assert main(["train", "recipe.yaml"]) == 0, capsys.readouterr().err


def test_a_checkpoint_that_lacks_a_file_or_holds_a_damaged_one_is_not_resumed_from(folder, models, capsys):
    """transformers would go on with a fresh optimizer, and with other random numbers."""
    write_for_training(folder, models, save_strategy="steps", save_steps=1)
    assert main(["train", "recipe.yaml"]) == 0
    checkpoint = folder / "run" / "checkpoint-2"
    resume = ["train", "recipe.yaml", "--resume", "true"]
    damaged = "checkpoint-2 cannot be loaded … --resume_from_checkpoint run/checkpoint-1"
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rollout_0.pt", "model.safetensors"):
        content = (checkpoint / file).read_bytes()
        (checkpoint / file).unlink()
        refused([*resume, "--max_steps", "4"], "checkpoint-2", capsys)
        (checkpoint / file).write_bytes(b"no")
        refused([*resume, "--max_steps", "4"], damaged, capsys)
        if file == "model.safetensors":  # nothing is left to train
            refused(resume, damaged, capsys)
        (checkpoint / file).write_bytes(content)
    (checkpoint / "trainer_state.json").write_text("{")
    refused([*resume, "--max_steps", "4"], "checkpoint-2 … --resume_from_checkpoint run/checkpoint-1", capsys)
    assert not (folder / "run" / "checkpoint-3").exists()


def test_what_needs_no_import_is_told_before_torch_is_imported(folder):
    (folder / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    code = (
        "import sys; from fipo.cli import main; codes = {main(line.split()) for line in sys.argv[1:]}; "
        "sys.exit(codes != {2} or bool({'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys()))"
    )
    told = {"trian": "invalid choice", "train x.yaml": "is no file", "train twice.yaml": "stands there twice"}
    done = subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(words in line for line, words in zip(done.stderr.splitlines(), told.values(), strict=True))
