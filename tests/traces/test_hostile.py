"""Seeded mutations of dumps, traces and metrics: whatever is read ends in results, strict JSON, or in a FIPOError.

FIPO_FUZZ sets how many mutations of each kind are tried; the default takes seconds.
"""

import copy
import json
import os
import random

import numpy as np
import pytest
import torch
from test_importers import EXPORT, SLIME

from fipo import FIPOError, FIPOParams
from fipo.report.curves import draw_curves, read_metrics
from fipo.report.pack import pack_traces
from fipo.traces import Trace, read_traces, write_traces
from fipo.traces.analysis import analyze
from fipo.traces.importers import import_dump

ROUNDS = int(os.environ.get("FIPO_FUZZ", "40"))
HOSTILE = [
    None, True, "", "text", "\ud800", -1, 2**31, 10**400, 1.5, 1e308, -3e38, float("nan"), float("inf"), [], [[]],
    [[[]]], [None], {}, {"a": 1}, [1e39, 3], [True], [-(2**63)],
]  # fmt: skip
TENSORS = [torch.ones(2), torch.tensor(3), torch.tensor(float("nan")), torch.zeros(0), torch.ones(2, 2).bool()]


def mutated(value, rng, hostile):
    """A copy of nested dicts and lists in which one entry, at any depth, is hostile or gone."""
    value = copy.copy(value)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not places:
        return rng.choice(hostile)
    place = rng.choice(places)
    if isinstance(value[place], dict | list) and rng.random() < 0.6:
        value[place] = mutated(value[place], rng, hostile)
    elif rng.random() < 0.1:
        del value[place]
    else:
        value[place] = rng.choice(hostile)
    return value


def flipped(raw, rng):
    """`raw` with a few bytes changed, and now and then its end cut off."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.1 else raw)


def use(folder, read, *arguments, **options):
    """Everything that is done with traces, if they can be read."""
    try:
        found = read(*arguments, **options)
    except FIPOError:
        return
    pack_traces([("run", found)])
    write_traces(found, folder / "again.parquet", found.params)
    assert len(read_traces(folder / "again.parquet")) == len(found)
    try:
        result = analyze(found)
    except FIPOError:
        return
    json.dumps(result, allow_nan=False)


def save_prime_rl(folder, rng):
    (folder / "rank_0.jsonl").write_bytes(json.dumps(mutated(EXPORT, rng, HOSTILE)).encode())


def save_slime(folder, rng):
    for name in ("rollout_0.pt", "train_0.pt"):
        dump = torch.load(SLIME / "use_rollout_logprobs" / name, weights_only=True)
        dump["samples"] = dump["samples"][:2]
        torch.save(mutated(dump, rng, HOSTILE + TENSORS), folder / name)


@pytest.mark.parametrize(("kind", "save"), [("prime-rl", save_prime_rl), ("slime", save_slime)])
def test_dumps(kind, save, tmp_path):
    rng = random.Random(kind)
    (folder := tmp_path / "dump").mkdir()
    for number in range(ROUNDS):
        save(folder, rng)
        if number % 4 == 0:
            for file in folder.iterdir():
                file.write_bytes(flipped(file.read_bytes(), rng))
        use(tmp_path, import_dump, kind, folder, current_logprobs=True)


def trace(rng):
    special = np.array([0, 0.1, -20, 3e38, -3e38, np.nan, np.inf, -np.inf], "float32")
    columns = {name: rng.choice(special, 5) for name in ("log_ratio", "weight", "advantages", "entropy", "old_logps")}
    known = {name: column for name, column in columns.items() if rng.random() < 0.9}
    trained = rng.random(5) < 0.8
    return Trace(token_ids=np.arange(5, dtype="int32"), token_bytes=[b"\xff"] * 5, trained=trained, **known)


def test_traces(tmp_path):
    rng, numbers = random.Random("traces"), np.random.default_rng(0)
    for number in range(2 * ROUNDS):
        params = FIPOParams(decay_rate=rng.choice([1e-300, 32.0, float("inf")]), clip_ratio_high=rng.choice([0, 1e308]))
        control = rng.choice([None, "shuffle"])
        file = write_traces([trace(numbers) for _ in range(2)], tmp_path / "a.parquet", params, control=control)
        if number % 2:
            file.write_bytes(flipped(file.read_bytes(), rng))
        use(tmp_path, read_traces, file, max_bytes=rng.choice([None, 1, 1000]))


def test_metrics(tmp_path):
    rng = random.Random("metrics")
    record = {"step": 1, "reward": 0.5, "fipo/weight_mean": 1.0, "fipo/weight_min": 0.9, "fipo/weight_max": 1.1}
    for _ in range(ROUNDS):
        lines = [json.dumps(mutated(record, rng, HOSTILE)).encode() for _ in range(3)]
        lines.append(flipped(lines[0], rng))
        lines.append(b'{"step": ' + rng.choice([b"[", b'{"a": ']) * 100_000)
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
        try:
            runs = [read_metrics(tmp_path / "metrics.jsonl", name) for name in ("x_s0", "x_s1", "y")]
        except FIPOError:
            continue
        json.dumps(draw_curves(runs), allow_nan=False)
