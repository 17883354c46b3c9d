import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
TESTS = str(Path(__file__).parent)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests make their tensors: cpu, cuda, or pretend")


def pytest_configure(config):
    device = config.getoption("--device")
    if device == "pretend":
        from support import pretend  # noqa: F401 - makes the device known
    os.environ["FIPO_TEST_DEVICE"] = device  # for support.harness
    if device != "cpu":
        MadeOn(torch.device(device)).__enter__()


def pytest_ignore_collect(collection_path, config):
    """What only an accelerator shows is no test on a CPU."""
    return True if collection_path.name == "test_accelerator.py" and config.getoption("--device") == "cpu" else None


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("--device") == "pretend":  # torch's threads for a device of Python's may abort at exit
        session.config.add_cleanup(partial(os._exit, exitstatus))


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class MadeOn(TorchFunctionMode):
    """Puts every tensor that a test makes on a device, and no tensor that fipo makes."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.makers = _device_constructors() | {torch.from_numpy}

    def __torch_function__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        made = function in self.makers and "device" not in (named or {})
        if made and sys._getframe(1).f_code.co_filename.startswith(TESTS):
            return result.detach().to(self.device).requires_grad_(result.requires_grad)
        return result
