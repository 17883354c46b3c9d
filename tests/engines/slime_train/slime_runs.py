"""One Ray for all runs; slime's train.py on it, as from a command line; what it logs."""

import ast
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from commands import SCENARIOS

HERE = Path(__file__).parent
SOURCES = {  # what slime ships with: the package, the digest of its Python files, the commit
    "SLIME_SRC": ("slime", "17cbbec5144fe241", "https://github.com/THUDM/slime at 624b824a"),
    "MEGATRON_SRC": ("megatron", "9720e959b68409da", "https://github.com/NVIDIA/Megatron-LM at 1dcf0daf"),
}
PATCH = "docker/patch/v0.5.15.post1/megatron.patch"  # in slime's source: what its Docker image does to Megatron
ENVIRONMENT = {"SLIME_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {
    "TORCHDYNAMO_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron asks for it with tensor or context parallelism
    "RAY_AUTH_MODE": "disabled",  # Ray would keep a token in the user's home; there is no network here
    "RAY_DEDUP_LOGS": "0",  # or a line that two ranks share is missing
}


class SlimeRuns:
    """Every scenario is run once, when it is first asked for."""

    def __init__(self, folder):
        self.slime, megatron = (_source(variable) for variable in SOURCES)
        _check_network()
        self.folder, self.model = folder, folder / "tiny" / "model"
        shutil.copytree(megatron / "megatron", folder / "megatron")
        subprocess.run(["git", "apply", self.slime / PATCH], cwd=folder, check=True)
        path = [HERE / "on_cpu", HERE, folder, self.slime]
        self.environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        self.updates, self.prepared = cache(self._updates), cache(self._prepared)

    @contextmanager
    def ray(self):
        """Ray, which takes each process that trains for a GPU's."""
        import ray

        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as short:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            gpus = max(scenario.processes for scenario in SCENARIOS.values())
            small = {"include_dashboard": False, "object_store_memory": 200_000_000}
            here = {"_node_ip_address": "127.0.0.1", "_temp_dir": short}  # its sockets' names may have 107 letters
            context = ray.init(address="local", num_cpus=16, num_gpus=gpus, **small, **here)
            patch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
            try:
                yield
            finally:
                ray.shutdown()

    def python(self, *arguments, cwd=None, stdin=None):
        """What a Python with slime and Megatron prints; if it fails, the error has its end."""
        command = [sys.executable, *map(str, arguments)]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 500}
        done = subprocess.run(command, cwd=cwd, env=os.environ | self.environment, input=stdin, **how)
        assert done.returncode == 0, done.stdout[-10_000:]
        return done.stdout

    def _prepared(self, size):
        """The folder with a model of this size and its rollouts."""
        folder = self.folder / size.replace(" ", "_")
        folder.mkdir()
        self.python(HERE / "debug_dumps.py", size, folder / "model", folder / "dumps")
        return folder

    def _updates(self, name):
        """The metrics of a scenario's updates, each a dictionary, as slime logs them."""
        folder = self.folder / name
        folder.mkdir()
        if name == "resumed":
            self._start_after_first_rollout(folder / "start")
        scenario = SCENARIOS[name]
        made = self.prepared(scenario.size)
        command = scenario.command(self.slime, folder, made / "model", made / "dumps")
        (folder / "log").write_text(self.python(*command, cwd=folder))
        return [
            {metric.removeprefix("train/"): value for metric, value in ast.literal_eval(line).items()}
            for line in self.logged(name, r" - step \d+: (\{.*\})")
        ]

    def logged(self, name, pattern):
        """What of a scenario's log matches."""
        return re.findall(pattern, (self.folder / name / "log").read_text())

    def _start_after_first_rollout(self, folder):
        """A folder as the run "fipo" would have left it, had it been stopped after its first rollout."""
        self.updates("fipo")
        shutil.copytree(self.folder / "fipo" / "checkpoints" / "iter_0000000", folder / "iter_0000000")
        (folder / "latest_checkpointed_iteration.txt").write_text("0")


def _source(variable):
    """The folder that the variable names; a ValueError of one sentence if it is not that commit's, unpatched."""
    package, expected, commit = SOURCES[variable]
    folder, digest = Path(os.environ.get(variable, "")).resolve(), hashlib.sha256()
    for file in sorted(folder.joinpath(package).rglob("*.py"), key=Path.as_posix):
        digest.update(f"{file.relative_to(folder / package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    if (found := digest.hexdigest()[:16]) != expected:
        raise ValueError(
            f"{variable} is {os.environ.get(variable)}, whose folder {package} has the digest {found} and not "
            f"{expected}; name a checkout or an export of {commit}, unpatched."
        )
    return folder


def _check_network():
    """Ray opens ports on every interface, whatever address it is told."""
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        raise ValueError(
            f"The network interfaces are {', '.join(names)}, but Ray listens on all, so there must be lo alone; "
            "start this with `make test-slime`, which runs it in a network namespace of its own."
        )
