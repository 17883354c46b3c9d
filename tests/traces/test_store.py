"""Traces survive the disk exactly, and what cannot be read is named while the rest is shown."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fipo import DataError, FIPOParams, InvalidInputError
from fipo.traces import SCHEMA_VERSION, Trace, read_traces, write_traces
from fipo.traces.schema import PER_TOKEN, SCHEMA


def make(sample=0, length=7, **changes):
    rng = np.random.default_rng(sample)
    values = {name: rng.normal(size=length).astype("float32") for name, kind in PER_TOKEN.items() if kind == "float"}
    values |= {
        "token_ids": rng.integers(0, 1000, length).astype("int32"),
        "token_bytes": [bytes(rng.integers(0, 256, 3).astype("uint8")) for _ in range(length)],
        "trained": rng.random(length) < 0.8,
        "flags": rng.integers(0, 32, length).astype("uint8"),
    }
    values |= {"run": "r", "rollout": 3, "update": 1, "group": sample // 2, "sample": sample, "prompt": "2 + 2?"}
    values |= {"reward": 0.5, "rewards": {"math": 1.0, "overlong": -0.5}, "dropped": False, "stop_reason": "stop"}
    return Trace(**values | changes)


def assert_same(found, expected):
    for name in SCHEMA.names:
        a, b = getattr(found, name), getattr(expected, name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, name


def test_round_trip(tmp_path):
    params = FIPOParams(decay_rate=float("inf"), clip_high_only=True)
    traces = [make(2, rollout=1, entropy=None, old_logps=None, reward=None, rewards={}), make(0), make(1, length=0)]
    file = write_traces(traces[::-1], tmp_path / "deep" / "x.parquet", params, updates_per_rollout=0)
    found = read_traces(file)  # by rollout and sample
    assert found.params == params and found.problems == []
    assert found.updates_per_rollout == 0  # not None, which says that nobody knows
    for a, b in zip(found, traces, strict=True):
        assert_same(a, b)
    assert os.listdir(file.parent) == ["x.parquet"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"weight": np.ones(2, "float32")},
            r"weight has the shape \(2,\), but token_ids has 7 entries; give",
        ),
        ({"weight": np.ones((7, 1))}, r"weight has the shape \(7, 1\), but token_ids has 7 entries"),
        *(({"rollout": wrong}, "rollout is .*, but must be an integer of 32") for wrong in (True, 1.5, None, 2**31)),
    ],
)
def test_what_is_no_trace_is_refused(changes, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        make(**changes)


def test_no_traces(tmp_path):
    with pytest.raises(DataError, match=r"holds no readable trace: it holds no \*.parquet file"):
        read_traces(tmp_path)
    write_traces([], tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"none of its \*.parquet files has a row"):
        read_traces(tmp_path)


def with_metadata(name, value):
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, name.encode(): value})


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, [values])


NO_PARAMS = "its fipo.params are not FIPOParams"
DAMAGES = [
    (lambda table: table.drop_columns(["weight"]), "it lacks the columns weight"),
    (with_column("run", pa.array([[1]])), "was left out"),
    (with_column("run", pa.array([None], pa.string())), "run is a NoneType"),
    (with_column("token_ids", pa.array([[None] * 7], pa.list_(pa.int32()))), "holds a null"),
    *((with_metadata("fipo.params", text), NO_PARAMS) for text in ('{"decay": 3}', "[]", "[" * 100_000)),
    (with_metadata("fipo.schema_version", "x"), "its schema version is x"),
    (
        with_metadata("fipo.schema_version", str(SCHEMA_VERSION + 1)),
        f"its schema version is {SCHEMA_VERSION + 1}, but this fipo reads {SCHEMA_VERSION}; read it with the fipo that",
    ),
    (lambda table: pa.table({"completion": ["hello"]}), "its schema version is missing"),
    (None, "was left out"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_of_damaged_files_each_is_a_sentence_and_the_rest_is_read(damage, sentence, tmp_path):
    whole = write_traces([make()], tmp_path / "whole.parquet", FIPOParams())
    if damage is None:
        (tmp_path / "damaged.parquet").write_bytes(whole.read_bytes()[:-200])
    else:
        pq.write_table(damage(pq.read_table(whole)), tmp_path / "damaged.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nowhere")
    found = read_traces(tmp_path, max_bytes=10**9)
    assert len(found) == 1 and len(found.problems) == 2
    assert sentence in found.problems[0] and "damaged.parquet was left out" in found.problems[0]
    assert "link.parquet was left out" in found.problems[1]


def test_a_control_and_several_settings_are_told(tmp_path):
    write_traces([make()], tmp_path / "a.parquet", FIPOParams(decay_rate=2.0), control="shuffle")
    write_traces([make()], tmp_path / "b.parquet", FIPOParams(decay_rate=16.0))
    found = read_traces(tmp_path)
    control, settings = found.problems
    assert found.control == "shuffle" and "trained with the weights of shuffle" in control
    assert "several settings" in settings


def test_of_too_much_the_last_files_are_read(tmp_path):
    for rollout in range(4):
        write_traces([make(rollout=rollout)], tmp_path / f"rollout_{rollout:06d}.parquet", FIPOParams())
    size = (tmp_path / "rollout_000000.parquet").stat().st_size
    found = read_traces(tmp_path, max_bytes=2 * size + size // 2)
    assert [trace.rollout for trace in found] == [2, 3]
    assert "these are the last 2 traces, from rollout_000002.parquet on" in found.problems[0]
    assert [trace.rollout for trace in read_traces(tmp_path, max_bytes=1)] == [3]
    assert not read_traces(tmp_path, max_bytes=5 * size).problems


def test_of_one_large_file_the_last_row_groups_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("fipo.traces.store.ROW_GROUP_TOKENS", 100)
    file = write_traces((make(sample, length=50) for sample in range(20)), tmp_path / "a.parquet", FIPOParams())
    assert pq.read_metadata(file).num_row_groups == 10
    found = read_traces(file, max_bytes=file.stat().st_size // 2)
    assert 1 < len(found) < 11 and found[-1].sample == 19
    assert f"these are the last {len(found)} traces, from a.parquet on" in found.problems[0]
    assert [trace.sample for trace in read_traces(file, max_bytes=1)] == [18, 19]
    assert_same(found[-1], make(19, length=50))
    assert len(read_traces(file)) == 20


PEAK_OF_READING = """
import re, sys
from fipo.traces import read_traces
read_traces(sys.argv[1], max_bytes=int(sys.argv[2]) or None)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def test_a_huge_file_is_read_in_bounded_memory(tmp_path):
    """2 M tokens need at most 100 bytes each at the peak, and with a limit no more than their share."""
    whole = [make(sample, length=4096) for sample in range(8)]
    file = write_traces((whole[sample % 8] for sample in range(512)), tmp_path / "a.parquet", FIPOParams())

    def peak(max_bytes):  # of a process's own memory: ru_maxrss would begin at that of its parent
        command = [sys.executable, "-c", PEAK_OF_READING, str(file), str(max_bytes)]
        return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    least, tokens = peak(1), 512 * 4096  # of the last row group alone
    assert 60 * tokens < peak(0) - least < 100 * tokens
    assert peak(file.stat().st_size // 8) - least < 100 * tokens / 8
