"""`python -m fipo.engines.slime` in real processes, before a slime whose train.py prints what it was given."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from fipo.engines.slime.contract import HOMES, lacking
from fipo.engines.slime.launch import main

STANDIN = Path(__file__).parent / "standin"
SOURCE = Path(os.environ.get("SLIME_SRC") or STANDIN)
LOSS = "fipo.engines.slime.fipo_loss_function"
SIZES = "--rollout-batch-size 32 --n-samples-per-prompt 16 --global-batch-size 64"
PULL_REQUEST_1801 = (
    f"{SIZES} --lr 1e-6 --eps-clip 0.2 --eps-clip-high 0.28 --loss-type fipo_loss --fipo-decay-rate 32.0 "
    "--fipo-chunk-size 128 --fipo-clip-ratio-low 0.2 --fipo-clip-ratio-high 0.28 --fipo-clip-high-only "
    "--fipo-safety-thresh 3.0 --fipo-dual-clip-c 10.0"
)


def subprocess_run(command, slime=STANDIN, cwd=None):
    """`python COMMAND` with this slime on its path: (exit code, output, errors)."""
    paths = [*([str(slime)] if slime else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *command.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)
    return done.returncode, done.stdout, done.stderr


def fork(flags, slime=STANDIN, cwd="."):
    """`python -m fipo.engines.slime FLAGS`, in a child of this process, which need not import torch again."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            try:
                os.chdir(cwd)
                sys.stdout, sys.stderr = output, errors
                sys.path.insert(0, str(slime))
                code = main(flags.split())
            except SystemExit as exit:
                code = exit.code
            except BaseException:
                traceback.print_exc()
                code = 1
            output.flush(), errors.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), *(file.seek(0) or file.read() for file in (output, errors))


def started(done):
    code, output, errors = done
    assert code == 0, errors
    return json.loads(output)


def refused(done):
    code, output, errors = done
    assert code == 2 and output == ""
    (sentence,) = errors.splitlines()
    assert sentence.startswith("fipo: ")
    return sentence


def test_the_command_of_pull_request_1801(tmp_path):
    given = started(subprocess_run(f"-m fipo.engines.slime train.py {PULL_REQUEST_1801}", cwd=tmp_path))
    assert given["name"] == "__main__"
    assert given["argv"][0] == str(STANDIN / "train.py") and given["path"] == str(STANDIN)
    assert (given["loss_type"], given["custom_loss_function_path"]) == ("custom_loss", LOSS)
    assert given["custom_megatron_before_train_step_hook_path"] == "fipo.engines.slime.before_train_step"
    knobs = {name: value for name, value in given.items() if name.startswith("fipo_") and value is not None}
    assert knobs == {
        "fipo_decay_rate": 32.0,
        "fipo_chunk_size": "128",
        "fipo_clip_ratio_low": 0.2,
        "fipo_clip_ratio_high": 0.28,
        "fipo_clip_high_only": True,
        "fipo_safety_thresh": 3.0,
        "fipo_dual_clip_c": 10.0,
    }
    assert given["lr"] == 1e-6


@pytest.mark.parametrize(
    ("command", "script", "preset"),
    [
        (f"train_async.py {SIZES} --loss-type=fipo_loss --fipo-preset 32b", "train_async.py", "32b"),
        (f"--loss-type fipo_loss {SIZES}", "train.py", None),
        (f"train.py {SIZES} --loss-type custom_loss --custom-loss-function-path {LOSS}", "train.py", None),
    ],
)
def test_other_ways_to_say_it(tmp_path, command, script, preset):
    given = started(fork(command, cwd=tmp_path))
    assert Path(given["argv"][0]).name == script
    assert given["custom_loss_function_path"] == LOSS and given["fipo_preset"] == preset


def test_the_users_own_hook_is_kept(tmp_path):
    hook = "--custom-megatron-before-train-step-hook-path mine.hook"
    given = started(fork(f"{PULL_REQUEST_1801} {hook}", cwd=tmp_path))
    assert given["custom_megatron_before_train_step_hook_path"] == "fipo.engines.slime.before_train_step"
    assert given["fipo_next_hook_path"] == "mine.hook"


def test_stock_train_py_with_a_config_file(tmp_path):
    """The other right way; and the wrong one, which slime does not notice: the loss must."""
    (tmp_path / "fipo.yaml").write_text(f"loss_type: custom_loss\ncustom_loss_function_path: {LOSS}\nfipo_preset: 7b\n")
    script = STANDIN / "train.py"
    given = started(subprocess_run(f"{script} {SIZES} --custom-config-path fipo.yaml", cwd=tmp_path))
    assert given["fipo_preset"] == "7b" and given["loss_type"] == "custom_loss"
    raw = f"--loss-type custom_loss --custom-loss-function-path {LOSS} --fipo-decay-rate 32.0"
    given = started(subprocess_run(f"{script} {SIZES} {raw}", cwd=tmp_path))
    assert given["loss_type"] == "custom_loss" and not [name for name in given if name.startswith("fipo_")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (  # one update a rollout, said with each of the two flags
            "--rollout-batch-size 32 --n-samples-per-prompt 16 --global-batch-size 512 --loss-type fipo_loss",
            ["32 prompts × 16 samples = 512 samples", "1 update of global batch size 512", "at most 256"],
        ),
        (
            "--rollout-batch-size 32 --n-samples-per-prompt 16 --num-steps-per-rollout 1 --loss-type fipo_loss",
            ["512 samples gives 1 update", "--num-steps-per-rollout to at least 2"],
        ),
        (  # slime leaves out what does not fill a batch
            "--rollout-batch-size 32 --n-samples-per-prompt 16 --global-batch-size 300 --loss-type fipo_loss",
            ["1 update of global batch size 300"],
        ),
        (f"{PULL_REQUEST_1801} --use-tis --use-rollout-logprobs", ["--use-tis and --use-rollout-logprobs", "drop one"]),
        (f"{PULL_REQUEST_1801} --eps-clip-c 3.0", ["--eps-clip-c is 3.0 and --fipo-dual-clip-c is 10.0"]),
        (f"{PULL_REQUEST_1801} --custom-loss-function-path mine.loss", ["mine.loss", "no other loss"]),
        (f"{SIZES} --fipo-decay-rate 32", ["--loss-type is policy_loss", "pass --loss-type fipo_loss"]),
        (f"{PULL_REQUEST_1801} --fipo_decay_rate 64", ["--fipo_decay_rate", "did you mean --fipo-decay-rate?"]),
        (f"{PULL_REQUEST_1801} --fipo-clip-high-only False", ["--fipo-clip-high-only is followed by False"]),
        (f"{PULL_REQUEST_1801} --fipo-decay_rate 64", ["--fipo-decay_rate", "did you mean --fipo-decay-rate?"]),
        (f"{PULL_REQUEST_1801} --fipo-decay-rate fast", ["--fipo-decay-rate", "'fast'"]),
        (f"{PULL_REQUEST_1801} --fipo-decay-rate 0", ["decay_rate is 0.0", "above 0"]),
        (f"{PULL_REQUEST_1801} --fipo-preset 14b", ["--fipo-preset", "14b"]),
    ],
)
def test_refused_before_anything_starts(tmp_path, flags, words):
    sentence = refused(fork(f"train.py {flags}", cwd=tmp_path))
    assert [word for word in words if word not in sentence] == []


def test_a_config_file_cannot_take_the_loss_away(tmp_path):
    (tmp_path / "other.yaml").write_text("loss_type: policy_loss\n")
    sentence = refused(fork(f"{PULL_REQUEST_1801} --custom-config-path other.yaml", cwd=tmp_path))
    assert "--loss-type is policy_loss" in sentence


def test_slime_is_missing(tmp_path):
    (tmp_path / "slime").mkdir()  # a folder of that name is no package
    sentence = refused(subprocess_run(f"-m fipo.engines.slime {PULL_REQUEST_1801}", slime=None, cwd=tmp_path))
    assert "slime is not installed" in sentence and "pip install -e" in sentence


def test_the_script_is_missing(tmp_path):
    sentence = refused(fork(f"train_twice.py {PULL_REQUEST_1801}", cwd=tmp_path))
    assert f"train_twice.py is neither at {STANDIN} nor here" in sentence


def test_a_script_of_the_users_own(tmp_path):
    shutil.copy(STANDIN / "train.py", tmp_path / "mine.py")
    (tmp_path / "train.py").write_text("raise SystemExit('this is not slime')\n")
    for script, found in (("mine.py", tmp_path / "mine.py"), ("train.py", STANDIN / "train.py")):
        assert started(fork(f"{script} {PULL_REQUEST_1801}", cwd=tmp_path))["argv"][0] == str(found)


def test_slime_lacks_a_requirement(tmp_path):
    broken = shutil.copytree(STANDIN, tmp_path / "slime")
    arguments = broken / "slime" / "utils" / "arguments.py"
    arguments.write_text("import sglang_that_is_not_there\n" + arguments.read_text())
    sentence = refused(fork(PULL_REQUEST_1801, slime=broken, cwd=tmp_path))
    assert "No module named 'sglang_that_is_not_there'" in sentence


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("backends/megatron_utils/loss.py", "get_log_probs_and_entropy"),
        ("backends/megatron_utils/loss.py", "policy_loss_function"),
        ("backends/megatron_utils/cp_utils.py", "all_gather_with_cp"),
        ("utils/arguments.py", "parse_args"),
    ],
)
def test_another_version_of_slime(tmp_path, file, name):
    other = shutil.copytree(STANDIN, tmp_path / "slime")
    source = other / "slime" / file
    source.write_text(source.read_text().replace(f"def {name}", f"def {name}_of_another_version"))
    sentence = refused(fork(PULL_REQUEST_1801, slime=other, cwd=tmp_path))
    assert "does not define" in sentence and f".{name}" in sentence and "0.3.1" in sentence


def test_parse_args_of_another_version(tmp_path):
    other = shutil.copytree(STANDIN, tmp_path / "slime")
    source = other / "slime" / "utils" / "arguments.py"
    source.write_text(source.read_text().replace("add_custom_arguments=None", "more_arguments=None"))
    assert "add_custom_arguments" in refused(fork(PULL_REQUEST_1801, slime=other, cwd=tmp_path))


def test_the_source_has_every_name_of_the_contract(tmp_path):
    assert lacking(SOURCE / "slime") == []
    assert len(lacking(tmp_path)) == len(HOMES) - 1  # all but Megatron's


def test_help_and_nothing():
    code, output, _ = fork("--help")
    assert code == 0 and "--loss-type fipo_loss" in output
    code, _, errors = fork("")
    assert code == 2 and "--loss-type fipo_loss" in errors
