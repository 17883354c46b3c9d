"""One Ray for all runs; slime's train.py on it, as from a command line; what it logs."""

import ast
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
from engine_sources import MEGATRON, SLIME, patched_megatron

HERE = Path(__file__).parent
ENVIRONMENT = {
    "SLIME_ACCELERATOR": "cpu",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron asks for it with tensor or context parallelism
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_AUTH_MODE": "disabled",  # Ray would keep a token in the user's home; there is no network here
    "RAY_DEDUP_LOGS": "0",  # or a line that two ranks share is missing
    "RAY_USAGE_STATS_ENABLED": "0",
}


class SlimeRuns:
    """Every scenario is run once, when it is first asked for."""

    def __init__(self, folder):
        self.slime, megatron = SLIME.folder(), MEGATRON.folder()
        _check_network()
        self.folder, self.model = folder, folder / "tiny" / "model"
        path = [HERE / "on_cpu", HERE, patched_megatron(self.slime, megatron, folder), self.slime]
        self.environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        self.updates, self.prepared = cache(self._updates), cache(self._prepared)
        self.dumps = self.prepared("tiny") / "dumps"

    @contextmanager
    def ray(self):
        """Ray, which takes each process that trains for a GPU's."""
        import ray

        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as short:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            context = ray.init(
                address="local",
                num_cpus=16,
                num_gpus=max(scenario.processes for scenario in SCENARIOS.values()),
                include_dashboard=False,
                object_store_memory=200_000_000,
                _node_ip_address="127.0.0.1",
                _temp_dir=short,  # its sockets' names may have 107 letters
            )
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
        self.python(HERE / "prepare.py", size, folder / "model", folder / "dumps")
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
        log = self.python(*command, cwd=folder)
        (folder / "log").write_text(log)
        return [
            {metric.removeprefix("train/"): value for metric, value in ast.literal_eval(line).items()}
            for line in re.findall(r" - step \d+: (\{.*\})", log)
        ]

    def rewards(self, name):
        """The mean reward of every rollout of a scenario."""
        self.updates(name)
        log = (self.folder / name / "log").read_text()
        return [float(reward) for reward in re.findall(r"'rollout/raw_reward': ([\d.]+)", log)]

    def _start_after_first_rollout(self, folder):
        """A folder as the run "fipo" would have left it, had it been stopped after its first rollout."""
        self.updates("fipo")
        shutil.copytree(self.folder / "fipo" / "checkpoints" / "iter_0000000", folder / "iter_0000000")
        (folder / "latest_checkpointed_iteration.txt").write_text("0")


def _check_network():
    """Ray opens ports on every interface, whatever address it is told."""
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        raise ValueError(
            f"The network interfaces are {', '.join(names)}, but Ray listens on all, so there must be lo alone; "
            "start this with `make test-slime`, which runs it in a network namespace of its own."
        )
