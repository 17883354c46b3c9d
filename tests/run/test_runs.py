"""Real processes of `fipo train`, interrupted for real."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
from support import tiny

from fipo.cli import main
from fipo.run.console import before_and_after
from fipo.run.evaluate import Evaluation
from fipo.run.output_folder import other_runs_files
from fipo.run.train import write_report
from fipo.run_folder import status_of
from fipo.traces import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")
FIPO = [sys.executable, "-m", "fipo.cli", "train"]
REWARDS = """
import os, resource, time

def digits(completions, **_):
    time.sleep(float(os.environ.get("SLOW", 0)))
    return [sum(c.isdigit() for c in x[0]["content"]) / 8 for x in completions]

def full(trainer_state, completions, **_):
    if trainer_state.global_step >= 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    return digits(completions)

def of_text(prompts, completions, **_):
    assert all(isinstance(text, str) for text in (*prompts, *completions))
    return [sum(c.isdigit() for c in x) / 8 for x in completions]
"""
AND_LIST_THREADS = """
import sys
from pathlib import Path
from fipo.cli import main

code = main()
print("threads:", *(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, data, and a recipe of 12 updates in 3 rollouts over 4 prompts: three epochs, dynamic sampling and a KL
    term included."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.save(folder / "model")
    (folder / "my_reward.py").write_text(REWARDS)
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"model_name_or_path": str(folder / "model"), "dataset": str(folder / "data.jsonl"), "output_dir": "run"}
    recipe |= {"rewards": ["python:my_reward:digits"], "eval_size": 2, "eval_k": 2, "eval_every": 5}
    recipe |= {"num_generations": 4, "per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 12}
    recipe |= {"max_completion_length": 8, "learning_rate": 0.01, "beta": 0.01, "fipo_dynamic_sampling_rounds": 2}
    recipe |= {"dtype": "float32", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    recipe |= {"logging_steps": 1, "save_steps": 3, "report_to": "none"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder


def train(folder, *flags, command=(*FIPO, "recipe.yaml"), expect=0, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def start_slowly(folder, *flags):
    """Half a second for every scoring, so that there is time to interrupt it."""
    options = {"cwd": folder, "env": {**os.environ, "OMP_NUM_THREADS": "1", "SLOW": "0.5"}}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*FIPO, "recipe.yaml", *flags], **options)


def train_here(folder, *flags, expect=0):
    """`fipo train` in this process, which saves the imports; for what kills nothing. Returns what it printed."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        code = main(["train", "recipe.yaml", *flags])
    assert code == expect, out.getvalue() + err.getvalue()
    assert "Traceback" not in err.getvalue()
    return out.getvalue() if expect == 0 else err.getvalue()


def curve(run, *names):
    """step → metric, from metrics.jsonl."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: [record.get(name) for name in names] for record in records if "loss" in record}


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.02)


def checkpoints(run):
    return sorted(path.name for path in run.glob("checkpoint-*"))


NAMES = ("loss", "grad_norm", "reward", "kl", "fipo/weight_std", "fipo/update_2/weight_mean", "learning_rate")


def test_killed_between_checkpoints_and_resumed_equals_uninterrupted(folder):
    whole = train_here(folder, "--output_dir", "whole")
    expected = curve(folder / "whole", *NAMES)
    assert sorted(expected) == list(range(1, 13))
    assert "held-out" in whole

    run = folder / "killed"
    process = start_slowly(folder, "--output_dir", "killed")
    wait_until((run / "checkpoint-6").exists, process)  # update 6 is the second of four in its rollout
    wait_until(lambda: len(curve(run)) >= 8, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status_of(run) == "killed"
    assert not (run / "checkpoint-9").exists() and not (run / "checkpoint-12").exists()

    train_here(folder, "--output_dir", "killed", "--resume", "true")
    assert curve(run, *NAMES) == expected
    assert status_of(run) == "finished"


def test_a_clock_that_was_set_back_costs_no_checkpoint(folder):
    flags = ["--output_dir", "clock", "--save_total_limit", "1", "--eval_size", "0"]
    train_here(folder, *flags, "--max_steps", "6")
    tomorrow = time.time() + 86400
    os.utime(folder / "clock" / "checkpoint-6", (tomorrow, tomorrow))
    train_here(folder, *flags, "--resume", "true")
    assert checkpoints(folder / "clock") == ["checkpoint-12"]


def test_ctrl_c_checkpoints_and_leaves_a_folder_that_was_its_own(folder):
    run, flags = folder / "interrupted", ["--output_dir", "interrupted", "--save_steps", "1000"]
    process = start_slowly(folder, *flags, "--max_steps", "1000")
    wait_until(lambda: (run / "metrics.jsonl").exists() and curve(run), process)
    refused = train_here(folder, *flags, "--overwrite", "true", expect=2)
    assert "belongs to a run that is under way in another process" in refused
    assert status_of(run) == "running"
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert status_of(run) == "stopped"
    (checkpoint,) = checkpoints(run)
    update = checkpoint.removeprefix("checkpoint-")
    assert f"Stopped at update {update}, with a checkpoint" in stdout.decode()
    assert "Stopping after this update" in stdout.decode()
    train_here(folder, *flags, "--resume", "true", "--max_steps", str(int(update) + 1))
    assert status_of(run) == "finished"


def test_a_full_disk_leaves_the_last_good_checkpoint(folder):
    """From update 5 on the kernel refuses files beyond 8 kB, as it would on a full disk."""
    flags = ["--output_dir", "full", "--save_total_limit", "1", "--eval_size", "0", "--max_steps", "6"]
    failed = train(folder, *flags, "--rewards", "python:my_reward:full", expect=2)
    assert "the last whole checkpoint is untouched: make room" in failed.stderr
    assert checkpoints(folder / "full") == ["checkpoint-3"]
    train_here(folder, *flags, "--resume", "true")
    assert checkpoints(folder / "full") == ["checkpoint-6"]


def test_two_ranks_resume_in_the_middle_of_an_epoch(folder):
    """Rollouts, dynamic sampling, evaluation of an uneven share, checkpoints and resuming, on two processes."""
    (folder / "and_list_threads.py").write_text(AND_LIST_THREADS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*launcher, "and_list_threads.py", "train", "recipe.yaml"]
    flags = ["--output_dir", "ranks", "--per_device_train_batch_size", "2", "--steps_per_generation", "4"]
    flags += ["--num_generations", "2", "--save_steps", "7", "--eval_size", "3"]
    train(folder, *flags, command=command)
    expected = curve(folder / "ranks", *NAMES)
    assert sorted(expected) == list(range(1, 13))
    shutil.rmtree(folder / "ranks" / "checkpoint-12")
    done = train(folder, *flags, "--resume", "true", command=command)
    assert curve(folder / "ranks", *NAMES) == expected
    assert done.stdout.count("threads: ") == 2 and "gloo" not in done.stdout  # they would abort Python at its end


def test_trackers_and_a_prompt_that_is_too_long(folder):
    """Trackers are not written to after their end: held-out accuracy after the training is measured before."""
    data = (folder / "data.jsonl").read_text() + json.dumps({"prompt": "1" * 50, "answer": "1"}) + "\n"
    (folder / "long.jsonl").write_text(data)
    recipe = json.loads((folder / "recipe.yaml").read_text())
    recipe |= {"report_to": ["trackio", "tensorboard"], "max_prompt_length": 20, "dataset": "long.jsonl"}
    (folder / "tracked.yaml").write_text(json.dumps(recipe))
    folders = {"TRACKIO_DIR": str(folder / "trackio"), "TENSORBOARD_LOGGING_DIR": str(folder / "events")}
    flags = ["tracked.yaml", "--max_steps=4", "--output_dir=tracked"]
    done = train(folder, *flags, command=FIPO, **folders)
    assert "1 of 9 training prompts are longer than max_prompt_length (20 tokens), and are left out." in done.stderr
    assert len([*folder.glob("events/**/events.out.tfevents*")]) == 1 and [*folder.glob("trackio/*.db")]


FINISHED = {"max_steps": 8, "max_completion_length": 40, "stop_character": "a", "eval_every": 0}
FINISHED |= {"fipo_trace_every": 1, "fipo_dynamic_sampling_rounds": 0}
SAME = [f"--{name}={value}" for name, value in FINISHED.items()]


@pytest.fixture(scope="module")
def finished(folder):
    """A run of two rollouts, with checkpoints 3, 6 and 8."""
    train_here(folder, *SAME, "--output_dir=finished")
    return folder / "finished"


@pytest.fixture
def copied(finished):
    """The same run, for a test to do with as it likes."""
    folder = shutil.copytree(finished, finished.with_name("copied"))
    yield folder
    shutil.rmtree(folder)


def test_a_response_ends_at_a_character(finished):
    """In rollouts, in evaluations, and in what the saved model says of itself."""
    traces = read_traces(finished)
    texts = [b"".join(trace.token_bytes) for trace in traces]
    assert all(b"a" not in text[:-1] for text in texts) and any(text.endswith(b"a") for text in texts)
    assert not any(trace.truncated for trace in traces if trace.token_bytes[-1] == b"a")
    saved = json.loads((finished / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, tiny.tokenizer().convert_tokens_to_ids("a")]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "holds checkpoint-8, which this run would not continue; go on from it with --resume"),
        (["--resume_from_checkpoint=copied/checkpoint-3"], "holds checkpoint-8, which this run would not continue"),
        (["--overwrite=true", "--rewards=nope"], "unknown"),
        (["--resume=true", "--gradient_accumulation_steps=2"], "was saved with gradient_accumulation_steps 1, now 2"),
    ],
)
def test_another_runs_checkpoints_are_refused_and_kept(copied, flags, sentence):
    assert sentence in train_here(copied.parent, *SAME, "--output_dir=copied", *flags, expect=2)
    assert checkpoints(copied) == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]


def test_a_finished_run_that_is_resumed_trains_nothing_and_writes_what_is_missing(finished, copied):
    """As after a kill while the model or the report was written."""
    for file in ("model.safetensors", "report.html"):
        (copied / file).unlink()
    again = train_here(copied.parent, *SAME, "--output_dir=copied", "--resume=true")
    assert curve(copied, *NAMES) == curve(finished, *NAMES)
    assert checkpoints(copied) == checkpoints(finished)
    assert (copied / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (copied / "report.html").exists()
    assert re.search(r"held-out +greedy .* → ", again), "what was measured before training is in the metrics"


def test_resuming_from_an_older_checkpoint_removes_the_branch_that_it_leaves(copied):
    assert {trace.rollout for trace in read_traces(copied)} == {0, 1}
    older = ["--resume_from_checkpoint=copied/checkpoint-3", "--overwrite=true", "--fipo_trace_every=0"]
    train_here(copied.parent, *SAME, "--output_dir=copied", *older)
    assert {trace.rollout for trace in read_traces(copied)} == {0}
    assert sorted(curve(copied)) == list(range(1, 9))


def test_a_base_model_is_trained_on_plain_text(folder):
    """No chat template: prompts, completions and rewards are text."""
    shutil.copytree(folder / "model", folder / "base")
    (folder / "base" / "chat_template.jinja").unlink()
    flags = ["--model_name_or_path=base", "--output_dir=text", "--max_steps=4", "--sample_every=1", "--eval_every=0"]
    told = train_here(folder, *flags, "--rewards=python:my_reward:of_text")
    assert re.search(r"sample: \d\+\d= →", told) and re.search(r"Prompt:  \d\+\d=", told)
    (trace, *_) = read_traces(folder / "text")
    assert re.fullmatch(r"\d\+\d=", trace.prompt)
    (folder / "chat.jinja").write_text(tiny.CHAT)
    train_here(folder, *flags, "--overwrite=true", "--prompt_format=chat", "--chat_template=chat.jinja")


def test_what_a_run_does_not_continue(tmp_path):
    for name in ("checkpoint-3", "checkpoint-12", "checkpoint-best-40", "traces", "elsewhere/checkpoint-3"):
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


def test_a_report_that_cannot_be_written_does_not_end_a_run(tmp_path):
    told = write_report(str(tmp_path))
    assert re.fullmatch(rf"No report was written: .*; .*, `fipo report {tmp_path}` writes it.", told)


def evaluation(*completions):
    return Evaluation(shares={}, failed=0, completions=list(completions))


def test_the_first_prompt_whose_score_went_with_the_others():
    worse = evaluation((" 2\n", 1.0), (" 3", None), (" 5\n", 0.0), (" 9", 0.0))
    better = evaluation((" 1", 0.0), (" 4", 1.0), (" 4\n", 1.0), (" 6", 1.0))
    chat = [{"role": "user", "content": "2 + 2 ="}]
    prompts = ["1 + 1 =", "1 + 3 =", chat, "3 + 3 ="]
    assert before_and_after(prompts, worse, better) == "Prompt:  2 + 2 =\n  before   5\n  after    4"
    assert before_and_after(prompts, better, worse) == "Prompt:  2 + 2 =\n  before   4\n  after    5"
    examples = ["1 + 1 = 2\n2 + 2 = 4\n1 + 0 =", "", "", ""]
    assert before_and_after(examples, worse, worse).startswith("Prompt:  … 1 + 0 =\n")
