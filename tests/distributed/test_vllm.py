"""Rollouts by vLLM, in the trainer's process and from a server: every rollout is sampled from the current weights."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from distributed.engines import HERE, UPDATES, UPDATES_PER_ROLLOUT, VLLM, assert_same_curve
from run.test_trainer_doctor import install

from fipo.traces import read_traces

pytestmark = pytest.mark.engines

COLOCATED = {"model_name_or_path": "wide", "use_vllm": "true", "vllm_mode": "colocate"}
COLOCATED |= {"vllm_max_model_length": 128, "vllm_gpu_memory_utilization": 0.1}
LORA = {"use_peft": "true", "lora_target_modules": "all-linear", "lora_r": 4, "learning_rate": 0.02}
FIRST_UPDATES = range(1, UPDATES + 1, UPDATES_PER_ROLLOUT)
GAP = "sampling/sampling_logp_difference/mean"  # |log p of the trainer − log p of the engine|


@pytest.fixture(scope="module")
def colocated(workshop):
    return workshop.run("colocated", **COLOCATED)


def assert_sampled_from_the_current_weights(curve, rounding=0.0):
    assert max(curve) == UPDATES
    for step in FIRST_UPDATES:
        assert curve[step][GAP] < 1e-6
        assert curve[step]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-5)
        assert curve[step]["fipo/noise_floor"] <= rounding
    assert max(row.get("fipo/weight_std", 0) for row in curve.values()) > 0.01


def test_colocated_and_lora(colocated, workshop):
    assert_sampled_from_the_current_weights(colocated)
    assert_sampled_from_the_current_weights(workshop.run("lora", **COLOCATED, **LORA))


def test_dynamic_sampling_and_evaluation(workshop):
    """Rewards that are equal in many groups; and greedy completions that are those of transformers."""
    task = {"rewards": "python:reward:begins_with_a_digit", "eval_size": 8}
    curve = workshop.run("dynamic", **COLOCATED, **task, fipo_dynamic_sampling_rounds=4)
    assert_sampled_from_the_current_weights(curve, rounding=1e-6)  # groups are scored again beside longer ones
    assert curve[1]["fipo/dynamic_sampling/replaced_groups"] > 0
    without_vllm = workshop.run("greedy", model_name_or_path="dynamic", **task, max_steps=UPDATES_PER_ROLLOUT)
    assert curve[UPDATES]["eval_greedy"] == without_vllm[0]["eval_greedy"]


def test_a_response_ends_at_a_character(workshop):
    workshop.run("stops", **COLOCATED, stop_character="5", fipo_trace_every=1, max_steps=UPDATES_PER_ROLLOUT)
    texts = [b"".join(trace.token_bytes) for trace in read_traces(workshop.folder / "stops")]
    assert all(b"5" not in text[:-1] for text in texts) and any(text.endswith(b"5") for text in texts)


def test_a_killed_run_resumes_to_the_same_curve(workshop, colocated):
    assert_same_curve(workshop.killed_and_resumed("killed", **COLOCATED), colocated, rel=0)


@pytest.mark.parametrize(("engine", "options"), [(None, {}), (None, LORA), ("fsdp2", {}), ("zero3", {})])
def test_server(workshop, server, engine, options):
    settings = COLOCATED | {"vllm_mode": "server", "vllm_server_base_url": server} | options
    curve = workshop.run(f"server_{engine}_{len(options)}", engine, **settings)
    assert_sampled_from_the_current_weights(curve)


@pytest.fixture(scope="module")
def server(workshop):
    """The address of `trl vllm-serve` on loopback, which knows gloo by a plugin that the folder's metadata names."""
    folder = workshop.folder
    install(folder, "vllm", "0.30.0+cpu")  # TRL asks for a distribution of that name
    plugin = "[vllm.general_plugins]\ngloo = distributed.vllm_on_cpu:register\n"
    (install(folder, "gloo_weights", "0") / "entry_points.txt").write_text(plugin)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"model": "wide", "host": "127.0.0.1", "port": port, "dtype": "float32", "max_model_len": 128}
    flags |= {"enforce_eager": "true", "gpu_memory_utilization": 0.1}
    flags["weight-transfer-config"] = json.dumps({"backend": "gloo"})
    command = [str(Path(sys.executable).with_name("trl")), "vllm-serve"]
    command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, **VLLM, "PYTHONPATH": f"{folder}{os.pathsep}{HERE.parent}"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        _await_health(f"http://127.0.0.1:{port}", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _await_health(url, process, log):
    deadline = time.monotonic() + 240
    while True:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=5)
        except OSError:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(1)
