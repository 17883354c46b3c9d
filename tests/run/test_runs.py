"""Real processes of `fipo train`, interrupted for real."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import tiny

from fipo import InvalidParameterError
from fipo.cli import main
from fipo.run.output_folder import other_runs_files
from fipo.run.prompts import _require_room
from fipo.run.train import write_report
from fipo.run_folder import status_of
from fipo.traces import read_traces

FIPO = [sys.executable, "-m", "fipo.cli", "train"]
REWARD = """
import os, time
def digits(completions, **_):
    time.sleep(float(os.environ.get("SLOW", 0)))
    return [sum(c.isdigit() for c in x[0]["content"]) / 8 for x in completions]
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe of 12 updates in 3 rollouts over 4 prompts: three epochs, dynamic sampling and a KL term included."""
    tiny.save(tmp_path / "model")
    (tmp_path / "my_reward.py").write_text(REWARD)
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset": str(tmp_path / "data.jsonl"),
        "rewards": "[python:my_reward:digits]",
        "output_dir": str(tmp_path / "run"),
        "dtype": "float32",
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "steps_per_generation": 4,
        "max_completion_length": 8,
        "max_steps": 12,
        "learning_rate": 0.01,
        "beta": 0.01,
        "logging_steps": 1,
        "save_steps": 3,
        "eval_size": 2,
        "eval_k": 2,
        "eval_every": 5,
        "fipo_dynamic_sampling_rounds": 2,
        "gradient_checkpointing": "false",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def train(recipe, *flags, expect=0, **env):
    done = subprocess.run(
        [*FIPO, str(recipe), *flags], capture_output=True, text=True, cwd=recipe.parent, env=environment(**env)
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def start_slowly(recipe, *flags):
    """Half a second for every scoring, so that there is time to interrupt it."""
    return subprocess.Popen(
        [*FIPO, str(recipe), *flags],
        cwd=recipe.parent,
        env=environment(SLOW="0.5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def inside(recipe, monkeypatch, capfd):
    """`fipo train` in this process, which saves the imports; for what kills nothing."""
    monkeypatch.chdir(recipe.parent)
    monkeypatch.syspath_prepend(recipe.parent)

    def run(*flags, expect=0):
        sys.modules.pop("my_reward", None)
        capfd.readouterr()
        code = main(["train", str(recipe), *flags])
        printed = capfd.readouterr()
        assert code == expect, printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed

    return run


def curve(run, *names):
    """step → metric, from metrics.jsonl."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: [record.get(name) for name in names] for record in records if "loss" in record}


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.02)


NAMES = ("loss", "grad_norm", "reward", "kl", "fipo/weight_std", "fipo/update_2/weight_mean", "learning_rate")


def test_killed_between_checkpoints_and_resumed_equals_uninterrupted(recipe):
    whole = train(recipe, "--output_dir", "whole")
    expected = curve(recipe.parent / "whole", *NAMES)
    assert sorted(expected) == list(range(1, 13))
    assert "held-out" in whole.stdout

    run = recipe.parent / "killed"
    process = start_slowly(recipe, "--output_dir", "killed")
    wait_for(run / "checkpoint-6", process)  # update 6 is the second of four in its rollout
    while len(curve(run)) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status_of(run) == "killed"
    assert not (run / "checkpoint-9").exists() and not (run / "checkpoint-12").exists()

    train(recipe, "--output_dir", "killed", "--resume", "true")
    resumed = curve(run, *NAMES)
    assert resumed == expected
    assert status_of(run) == "finished"


def test_ctrl_c_checkpoints_and_leaves(recipe):
    process = start_slowly(recipe, "--save_steps", "1000")
    run = recipe.parent / "run"
    while not (run / "metrics.jsonl").exists() or not curve(run):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert status_of(run) == "stopped"
    (checkpoint,) = run.glob("checkpoint-*")
    assert f"Stopped at update {checkpoint.name.removeprefix('checkpoint-')}, with a checkpoint" in stdout.decode()
    assert "Stopping after this update" in stdout.decode()
    train(recipe, "--resume", "true")


def test_a_full_disk_leaves_the_last_good_checkpoint(recipe):
    """From update 5 on the kernel refuses files beyond 8 kB, as it would on a full disk."""
    (recipe.parent / "my_reward.py").write_text(
        REWARD
        + """
import resource
def full(trainer_state, completions, **_):
    if trainer_state.global_step >= 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    return digits(completions)
"""
    )
    flags = ["--rewards", "python:my_reward:full", "--save_total_limit", "1", "--eval_size", "0"]
    failed = train(recipe, *flags, expect=2)
    assert "the last whole checkpoint is untouched: make room" in failed.stderr
    run = recipe.parent / "run"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    train(recipe, "--resume", "true", "--save_total_limit", "1", "--eval_size", "0")
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-12"]


def test_another_runs_checkpoints_are_refused(recipe, inside):
    inside("--max_steps", "3")
    refused = inside("--max_steps", "3", expect=2)
    assert "holds checkpoint-3, which this run would not continue; go on from it with --resume" in refused.err
    bad = inside("--overwrite", "true", "--rewards", "nope", expect=2)
    assert "unknown" in bad.err
    assert (recipe.parent / "run" / "checkpoint-3").exists(), "nothing is deleted for a run that cannot start"
    inside("--max_steps", "3", "--overwrite", "true")
    reshaped = inside("--resume", "true", "--max_steps", "6", "--gradient_accumulation_steps", "2", expect=2)
    assert "was saved with gradient_accumulation_steps 1, now 2" in reshaped.err


def test_what_a_run_does_not_continue(tmp_path):
    for name in ("checkpoint-3", "checkpoint-12", "checkpoint-best", "traces", "elsewhere/checkpoint-3"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkpoint-notes.txt").write_text("mine")

    def names(checkpoint):
        return [path.name for path in other_runs_files(tmp_path, checkpoint)]

    assert names(None) == names(str(tmp_path / "elsewhere" / "checkpoint-3")) == ["checkpoint-12", "checkpoint-3"]
    assert names(str(tmp_path / "checkpoint-3")) == ["checkpoint-12"]
    assert names(str(tmp_path / "checkpoint-12")) == []
    (tmp_path / "traces" / "imported.parquet").touch()
    (tmp_path / "metrics.jsonl").touch()
    assert names(None)[2:] == ["metrics.jsonl", "traces"]


def test_a_model_without_room_for_the_completion_is_refused():
    model_config = tiny.model().config
    limit = model_config.max_position_embeddings
    _require_room(limit, model_config)
    with pytest.raises(InvalidParameterError, match=f"are {limit + 1} tokens together, but .* allows {limit}; lower"):
        _require_room(limit + 1, model_config)


def test_two_ranks_resume_in_the_middle_of_an_epoch(recipe):
    """Rollouts, dynamic sampling, evaluation of an uneven share, checkpoints and resuming, on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    flags = ["--per_device_train_batch_size", "2", "--steps_per_generation", "4", "--num_generations", "2"]
    command = [*launcher, "-m", "fipo.cli", "train", str(recipe), *flags, "--save_steps", "7", "--eval_size", "3"]

    def run(*more):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=recipe.parent, env=environment())
        assert done.returncode == 0, done.stderr[-3000:]

    run()
    folder = recipe.parent / "run"
    expected = curve(folder, *NAMES)
    assert sorted(expected) == list(range(1, 13))
    shutil.rmtree(folder / "checkpoint-12")
    run("--resume", "true")
    assert curve(folder, *NAMES) == expected


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--steps_per_generation", "1"], "every weight is 1 and FIPO would silently be GRPO"),
        (["--fipo_decay_rate", "nan"], "fipo_decay_rate is nan, but must be a number above 0"),
        (["--num_generations", "3"], "must be divisible by num_generations"),
        (["--rewards", "nope"], "The reward 'nope' is unknown"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--prompt_column", "text"], "has no column 'text'"),
        (["--model_name_or_path", "nowhere/nothing"], "The model 'nowhere/nothing' cannot be loaded"),
        (["--model_name_or_path", "package:nothing"], "No installed package 'nothing' holds a GGUF file"),
        (["--reward_weights", "0.5"], "reward_weights is [0.5], but a recipe's rewards carry their own"),
        (["--eval_strategy", "steps"], "eval_strategy is 'steps', but fipo evaluates accuracy itself"),
        (["--max_prompt_length", "1"], "max_prompt_length (1 tokens) leaves 0 training prompts"),
        (["--per_device_train_batch_size", "16"], "leaves 8 training prompts, but a rollout takes 16"),
        (["--resume", "true", "--output_dir", "fresh"], "fresh holds no checkpoint to resume"),
        (["--unknown_flag", "1"], "unknown_flag"),
        (["--preset", "8b"], "preset is '8b'"),
        (["--dtype", "float7"], "dtype is 'float7', but must be auto, float32"),
        (["--eval_k", "0"], "eval_k is 0, but must be at least 1"),
        (["--chat_template", "nowhere.jinja"], "The chat template nowhere.jinja does not exist"),
        (["--resume_from_checkpoint", "nowhere"], "resume_from_checkpoint is nowhere, which is no folder"),
        (["--model_name_or_path", "broken.gguf"], "The model 'broken.gguf' cannot be loaded"),
    ],
)
def test_bad_input_is_one_sentence(recipe, flags, sentence, capsys, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    Path("broken.gguf").write_bytes(b"GGUF?")
    assert main(["train", str(recipe), *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("fipo: ") and "Traceback" not in error


def test_a_report_that_cannot_be_written_does_not_end_a_run(tmp_path):
    told = write_report(str(tmp_path))
    assert re.fullmatch(rf"No report was written: .*; .*, `fipo report {tmp_path}` writes it.", told)


def test_a_finished_run_that_is_resumed_trains_nothing_and_writes_what_is_missing(recipe, inside):
    """As after a kill while the model or the report was written."""
    flags = ["--max_steps", "4", "--eval_every", "0", "--fipo_dynamic_sampling_rounds", "0"]
    inside(*flags)
    run = recipe.parent / "run"
    expected = curve(run, *NAMES)
    weights = (run / "model.safetensors").read_bytes()
    for file in ("model.safetensors", "report.html"):
        (run / file).unlink()
    again = inside(*flags, "--resume", "true")
    assert curve(run, *NAMES) == expected and max(expected) == 4
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert (run / "model.safetensors").read_bytes() == weights
    assert (run / "report.html").exists()
    assert re.search(r"held-out +greedy .* → ", again.out), "what was measured before training is in the metrics"


def test_two_runs_never_share_a_folder(recipe, inside):
    first = start_slowly(recipe)
    run = recipe.parent / "run"
    wait_for(run / "checkpoint-3", first)
    second = inside("--overwrite", "true", expect=2)
    assert "belongs to a run that is under way in another process" in second.err
    assert status_of(run) == "running"
    first.communicate(timeout=120)
    assert first.returncode == 0 and sorted(curve(run)) == list(range(1, 13))


def test_a_base_model_is_trained_on_plain_text(recipe, inside):
    """No chat template: prompts, completions and rewards are text."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    for leftover in (recipe.parent / "model").glob("chat_template*"):
        leftover.unlink()
    tokenizer.save_pretrained(recipe.parent / "model")
    (recipe.parent / "my_reward.py").write_text(
        "def digits(prompts, completions, **_):\n"
        "    assert all(isinstance(text, str) for text in (*prompts, *completions))\n"
        "    return [sum(c.isdigit() for c in x) / 8 for x in completions]\n"
    )
    flags = ["--max_steps", "4", "--sample_every", "1", "--eval_every", "0"]
    done = inside(*flags)
    assert re.search(r"sample: \d\+\d= →", done.out) and re.search(r"Prompt:  \d\+\d=", done.out)
    (trace, *_) = read_traces(recipe.parent / "run")
    assert re.fullmatch(r"\d\+\d=", trace.prompt)
    for more, words in [
        (["--prompt_format", "chat"], "the model's tokenizer has no chat template; name a Jinja file"),
        (["--system_prompt", "Be brief."], "system_prompt is set, but the prompts stay text"),
        (["--prompt_format", "prose"], "prompt_format is 'prose', but must be one of auto, chat, text"),
    ]:
        assert words in inside(*flags, "--overwrite", "true", *more, expect=2).err
    (recipe.parent / "chat.jinja").write_text(tiny.CHAT)
    (recipe.parent / "my_reward.py").write_text(REWARD)
    inside(*flags, "--overwrite", "true", "--prompt_format", "chat", "--chat_template", "chat.jinja")


def test_a_response_ends_at_a_character(recipe, inside):
    """In rollouts, in evaluations, and in what the saved model says of itself."""
    inside("--max_steps", "4", "--stop_character", "a", "--fipo_trace_every", "1", "--max_completion_length", "40")
    traces = read_traces(recipe.parent / "run")
    texts = [b"".join(trace.token_bytes) for trace in traces]
    assert all(b"a" not in text[:-1] for text in texts) and any(text.endswith(b"a") for text in texts)
    assert not any(trace.truncated for trace in traces if trace.token_bytes[-1] == b"a")
    saved = json.loads((recipe.parent / "run" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, tiny.tokenizer().convert_tokens_to_ids("a")]


def test_a_damaged_checkpoint_points_to_the_one_before(recipe, inside):
    inside("--max_steps", "6", "--eval_size", "0")
    run = recipe.parent / "run"
    for file, content in [("optimizer.pt", b"no"), ("model.safetensors", b"no"), ("trainer_state.json", b"{")]:
        whole = (run / "checkpoint-6" / file).read_bytes()
        (run / "checkpoint-6" / file).write_bytes(content)
        failed = inside("--resume", "true", expect=2)
        assert "checkpoint-6" in failed.err
        assert f"--resume_from_checkpoint {run / 'checkpoint-3'}" in failed.err
        (run / "checkpoint-6" / file).write_bytes(whole)


def test_a_run_in_which_nothing_could_be_scored_has_failed(recipe, inside):
    (recipe.parent / "my_reward.py").write_text("def digits(completions, **_): raise OSError('down')\n")
    failed = inside("--max_steps", "4", "--eval_size", "0", "--fipo_dynamic_sampling_rounds", "0", expect=2)
    assert "Scoring raised for every sample of the last rollout" in failed.err


def test_resuming_from_an_older_checkpoint_removes_the_branch_that_it_leaves(recipe, inside):
    short = ["--eval_size", "0", "--max_steps", "8", "--fipo_dynamic_sampling_rounds", "0"]
    inside("--fipo_trace_every", "1", *short)
    run = recipe.parent / "run"
    assert {trace.rollout for trace in read_traces(run)} == {0, 1}
    flags = ["--resume_from_checkpoint", str(run / "checkpoint-3"), "--fipo_trace_every", "0", *short]
    assert "holds checkpoint-8" in inside(*flags, expect=2).err
    inside(*flags, "--overwrite", "true")
    assert {trace.rollout for trace in read_traces(run)} == {0}
    assert sorted(curve(run)) == list(range(1, 9))


def test_trackers_are_not_written_to_after_their_end(recipe, inside, monkeypatch):
    """Held-out accuracy after the training is measured before they end."""
    flags = ["--max_steps", "4", "--overwrite", "true", "--report_to"]
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(recipe.parent / "events"))
    train(recipe, *flags, "trackio", TRACKIO_DIR=str(recipe.parent / "trackio"))
    inside(*flags, "tensorboard")
    assert len([*recipe.parent.glob("**/events.out.tfevents*")]) == 1


def test_prompts_that_are_too_long_are_counted(recipe):
    data = recipe.parent / "data.jsonl"
    data.write_text(data.read_text() + json.dumps({"prompt": "1" * 50, "answer": "1"}) + "\n")
    done = train(recipe, "--max_prompt_length", "20", "--eval_size", "0", "--max_steps", "4")
    assert "1 of 11 training prompts are longer than max_prompt_length (20 tokens) and left out." in done.stderr


def test_recipes_need_no_file(recipe):
    text = [line.split(": ", 1) for line in recipe.read_text().splitlines()]
    flags = [part for key, value in text for part in (f"--{key}", value.strip("[]"))]
    done = subprocess.run(
        [*FIPO, *flags, "--max_steps", "4"], capture_output=True, text=True, cwd=recipe.parent, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert (Path(recipe.parent) / "run" / "model.safetensors").exists()
