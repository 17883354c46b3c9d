"""Measuring: repeated calls, peak memory, one process a contender, and the machine that did it."""

import argparse
import gc
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fipo.core.precision import multiplies_into_float32, processor_has_bfloat16

PACKAGES = ("torch", "trl", "transformers", "liger-kernel")


def times_and_peak(
    call: Callable[[], object], repeats: int, budget: float = 60.0, device: str = "cpu"
) -> tuple[list[float], int]:
    """Seconds of up to `repeats` calls within `budget`, and the bytes that the first call added at its highest.

    The first call only warms up, unless it is the only one. Bytes are the process', or on a GPU the allocator's.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark of what went before
        before = memory("VmRSS")
    first = seconds(call, 1, device=device)
    peak = (torch.cuda.max_memory_allocated() if device == "cuda" else memory("VmHWM")) - before
    return (seconds(call, repeats, budget, device) if repeats > 1 else first), peak


def seconds(call: Callable[[], object], repeats: int, budget: float = 60.0, device: str = "cpu") -> list[float]:
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < budget):
        finish(device)
        start = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - start)
    return times


def finish(device: str) -> None:
    """Waits for what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    (found,) = re.findall(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found) * 1024


def in_own_process(module: str, **arguments: Any) -> dict[str, Any]:
    """Runs `python -m module --one '<json>'`, which prints its result as JSON in the last line."""
    command = [sys.executable, "-m", module, "--one", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return {**arguments, **json.loads(done.stdout.splitlines()[-1])}


def summary(times: Iterable[float]) -> dict[str, float]:
    times = sorted(times)
    return {"median_s": statistics.median(times), "min_s": times[0], "max_s": times[-1], "calls": len(times)}


def machine() -> dict[str, Any]:
    model = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": model[0] if model else platform.machine(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_arithmetic": processor_has_bfloat16(),
        **(_gpu() if torch.cuda.is_available() else {}),
        **{name: version(name) for name in PACKAGES},
    }


def _gpu() -> dict[str, Any]:
    device = torch.device("cuda")
    return {"gpu": torch.cuda.get_device_name(), "bf16_into_float32": multiplies_into_float32(device)}


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main(one: Callable[..., dict[str, Any]], everything: Callable[[], list[dict[str, Any]]]) -> None:
    """A benchmark's command line: `--one` serves `in_own_process`, and without it everything runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", help=argparse.SUPPRESS)
    job = parser.parse_args().one
    if job:
        print(json.dumps(one(**json.loads(job))))
    else:
        everything()
