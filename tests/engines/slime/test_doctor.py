"""`fipo doctor slime` on nodes made of small packages on PYTHONPATH; every import happens in a real process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run.test_trainer_doctor import checks

from fipo.cli import main
from fipo.run import doctor

SOURCE, STANDIN = Path(__file__).parents[3] / "src", Path(__file__).parent / "standin"
BYE = """import atexit; atexit.register(print, '{"error": "bye"}')"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A folder on PYTHONPATH with all that the plugin needs of slime."""
    shutil.copytree(STANDIN, tmp_path, dirs_exist_ok=True)
    (tmp_path / "slime/__init__.py").write_text("__version__ = '0.5'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(SOURCE)]))
    return tmp_path


def problems(capsys):
    """{check: what was found} of what is missing."""
    return {name: check["found"] for name, check in checks(capsys, "slime").items() if not check["ok"]}


def test_a_complete_node(node, capsys):
    assert main(["doctor", "slime"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"ok     slime: 0.5 in {node}/slime",
        "ok     slime's hooks: all that the plugin calls",
        f"ok     slime's train.py: {node}/train.py",
    ]
    assert problems(capsys) == {}


def test_a_node_without_anything(tmp_path):
    """As a command: in a folder called like the package, which Ray's actors would not see."""
    (tmp_path / "slime").mkdir()
    command = [sys.executable, "-m", "fipo.cli", "doctor", "slime"]
    environment = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.strip() == (
        "fails  slime: ModuleNotFoundError: No module named 'slime'; install slime from its source, or add the "
        "folder of its source to PYTHONPATH"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("raise ImportError('libcudart.so.13: not there\\nand a story')", "and a story"),
        ("raise SystemExit(0)", "ended with exit code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with exit code -11"),
        ("import os; os._exit(3)", "ended with exit code 3"),
        ("import time; time.sleep(600)", "did not answer within 4 seconds"),
        (f"__version__ = '0.5'; print('{{}}'); {BYE}", None),  # what it prints is not its answer
    ],
)
def test_a_broken_import_is_one_line(node, capsys, monkeypatch, text, found):
    monkeypatch.setattr(doctor, "TIMEOUT", 4)
    (node / "slime/__init__.py").write_text(text)
    assert problems(capsys) == ({"slime": found} if found else {})


def test_a_file_is_not_the_package(node, capsys):
    (node / "slime").rename(node / "elsewhere")
    (node / "slime.py").touch()
    assert "module 'slime' has no attribute '__path__'" in problems(capsys)["slime"]


def test_a_slime_without_the_hooks(node, capsys):
    (node / "slime/utils/arguments.py").write_text("def parse_args():\n    pass\n")
    (node / "slime/backends/megatron_utils/cp_utils.py").write_text("def slice_log_prob_with_cp(:\n")
    (node / "slime/utils/misc.py").write_text("load_function = None\n")
    (node / "train.py").unlink()
    assert problems(capsys) == {
        "slime's hooks": "lacks slime.backends.megatron_utils.cp_utils.all_gather_with_cp, "
        "slime.utils.misc.load_function, --custom-loss-function-path",
        "slime's train.py": f"{node}/train.py",
    }
