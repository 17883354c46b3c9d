"""`python -m fipo.engines.slime` in real processes, before a slime whose train.py prints what it was given."""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from cases import SLIME

from fipo import InvalidParameterError
from fipo.engines.slime import fipo_loss_function
from fipo.engines.slime.contract import HOMES, lacking
from fipo.engines.slime.launch import main

STANDIN = Path(__file__).parent / "standin"
LOSS = "fipo.engines.slime.fipo_loss_function"
ARGUMENTS = "slime/utils/arguments.py"
OF_SLIME = {name: f"{home.replace('.', '/')}.py" for name, home in HOMES.items() if home.startswith("slime.")}
SIZES = "--rollout-batch-size 32 --n-samples-per-prompt 16 --global-batch-size 64"
PULL_REQUEST_1801 = (
    f"{SIZES} --lr 1e-6 --eps-clip 0.2 --eps-clip-high 0.28 --loss-type fipo_loss --fipo-decay-rate 32.0 "
    "--fipo-chunk-size 128 --fipo-clip-ratio-low 0.2 --fipo-clip-ratio-high 0.28 --fipo-clip-high-only "
    "--fipo-safety-thresh 3.0 --fipo-dual-clip-c 10.0"
)


def subprocess_run(command, cwd, slime=STANDIN):
    """`python COMMAND` with this slime on its path: (exit code, output, errors)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(slime), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *command.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def launched(tmp_path, monkeypatch, capsys):
    """`python -m fipo.engines.slime FLAGS` in an empty folder, in this process, which need not import torch again."""

    def run(flags, slime=STANDIN):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(slime)
        monkeypatch.setattr(sys, "argv", ["python"])
        for name in [name for name in sys.modules if name.split(".")[0] in ("slime", "train")]:
            monkeypatch.delitem(sys.modules, name)
        try:
            code = main(flags.split())
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


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
    given = started(subprocess_run(f"-m fipo.engines.slime train.py {PULL_REQUEST_1801}", tmp_path))
    assert given["name"] == "__main__"
    assert given["argv"][0] == str(STANDIN / "train.py") and given["path"] == str(STANDIN)
    assert (given["loss_type"], given["custom_loss_function_path"]) == ("custom_loss", LOSS)
    assert given["custom_megatron_before_train_step_hook_path"] == "fipo.engines.slime.before_train_step"
    knobs = {name: value for name, value in given.items() if name.startswith("fipo_") and value is not None}
    expected = {"decay_rate": 32.0, "chunk_size": "128", "clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
    expected |= {"clip_high_only": True, "safety_thresh": 3.0, "dual_clip_c": 10.0}
    assert knobs == {f"fipo_{name}": value for name, value in expected.items()}
    assert given["lr"] == 1e-6


@pytest.mark.parametrize(
    ("command", "script", "preset"),
    [
        (f"train_async.py {SIZES} --loss-type=fipo_loss --fipo-preset 32b", "train_async.py", "32b"),
        (f"--loss-type fipo_loss {SIZES}", "train.py", None),
        (f"train.py {SIZES} --loss-type custom_loss --custom-loss-function-path {LOSS}", "train.py", None),
    ],
)
def test_other_ways_to_say_it(launched, command, script, preset):
    given = started(launched(command))
    assert Path(given["argv"][0]).name == script
    assert given["custom_loss_function_path"] == LOSS and given["fipo_preset"] == preset


def test_stock_train_py_with_a_config_file(tmp_path):
    """The other right way; and the wrong one, which slime does not notice: the loss must."""
    (tmp_path / "fipo.yaml").write_text(f"loss_type: custom_loss\ncustom_loss_function_path: {LOSS}\nfipo_preset: 7b\n")
    command = f"{STANDIN / 'train.py'} {SIZES}"
    given = started(subprocess_run(f"{command} --custom-config-path fipo.yaml", tmp_path))
    assert given["fipo_preset"] == "7b" and given["loss_type"] == "custom_loss"
    raw = f"--loss-type custom_loss --custom-loss-function-path {LOSS} --fipo-decay-rate 32.0"
    given = started(subprocess_run(f"{command} {raw}", tmp_path))
    with pytest.raises(
        InvalidParameterError, match=r"fipo_decay_rate is missing, .*-m fipo\.engines\.slime .*YAML file"
    ):
        fipo_loss_function(Namespace(**given), {}, torch.zeros(1), torch.sum)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (  # which only slime's parser turns into a batch size
            "--rollout-batch-size 32 --n-samples-per-prompt 16 --num-steps-per-rollout 1 --loss-type fipo_loss",
            "512 samples gives 1 update",
        ),
        (f"{PULL_REQUEST_1801} --custom-loss-function-path mine.loss", "mine.loss, but .*no other loss"),
        (f"{PULL_REQUEST_1801} --custom-config-path other.yaml", "--loss-type is policy_loss"),
        (f"{SIZES} --fipo-decay-rate 32", "--loss-type is policy_loss .*pass --loss-type fipo_loss"),
        (f"{PULL_REQUEST_1801} --fipo_decay_rate 64", r"--fipo_decay_rate .*did you mean --fipo-decay-rate\?"),
        (f"{PULL_REQUEST_1801} --fipo-decay_rate 64", r"--fipo-decay_rate .*did you mean --fipo-decay-rate\?"),
        (f"{PULL_REQUEST_1801} --fipo-decay-rate fast", "--fipo-decay-rate.*'fast'"),
        (f"{PULL_REQUEST_1801} --fipo-decay-rate 0", "decay_rate is 0.0.*above 0"),
        (f"train_twice.py {PULL_REQUEST_1801}", f"train_twice.py is neither at {STANDIN} nor here"),
    ],
)
def test_refused_before_anything_starts(launched, tmp_path, command, sentence):
    (tmp_path / "other.yaml").write_text("loss_type: policy_loss\n")
    assert re.search(sentence, refused(launched(command)))


def test_slime_is_missing(tmp_path):
    (tmp_path / "slime").mkdir()  # a folder of that name is no package
    sentence = refused(subprocess_run(f"-m fipo.engines.slime {PULL_REQUEST_1801}", tmp_path, slime=tmp_path))
    assert "slime is not installed" in sentence and "pip install -e" in sentence


def test_a_script_of_the_users_own(launched, tmp_path):
    shutil.copy(STANDIN / "train.py", tmp_path / "mine.py")
    (tmp_path / "train.py").write_text("raise SystemExit('this is not slime')\n")
    for script, found in (("mine.py", tmp_path / "mine.py"), ("train.py", STANDIN / "train.py")):
        assert started(launched(f"{script} {PULL_REQUEST_1801}"))["argv"][0] == str(found)


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (ARGUMENTS, "import yaml", "import sglang_that_is_not_there", "No module named 'sglang_that_is_not"),
        (ARGUMENTS, "add_custom_arguments=None", "more_arguments=None", "add_custom_arguments"),
        *((path, f"def {of}", "def other", rf"does not define .*\.{of}.* 0\.3\.1") for of, path in OF_SLIME.items()),
    ],
)
def test_another_version_of_slime_or_one_without_its_requirements(launched, tmp_path, file, old, new, sentence):
    other = shutil.copytree(STANDIN, tmp_path / "slime")
    source = other / file
    source.write_text(source.read_text().replace(old, new))
    assert re.search(sentence, refused(launched(PULL_REQUEST_1801, other)))


def test_the_source_has_every_name_of_the_contract(tmp_path):
    assert lacking(Path(SLIME or STANDIN, "slime")) == []
    assert len(lacking(tmp_path)) == len(HOMES) - 1  # all but Megatron's


def test_help_and_nothing(launched):
    for flags, expected, stream in (("--help", 0, 1), ("", 2, 2)):
        done = launched(flags)
        assert done[0] == expected and "--loss-type fipo_loss" in done[stream]
