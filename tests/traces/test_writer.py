"""What writing traces may never do: end a run, or hide what they lack."""

import builtins
import logging
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from support import tiny

from fipo import FIPOParams, InvalidParameterError, token_credit
from fipo.traces import read_traces
from fipo.traces.columns import trace_columns
from fipo.traces.writer import Completion, TraceOptions, TraceWriter, among, group_number


def completion(tokens=5, sample=0, rollout=8):
    generator = torch.Generator().manual_seed(sample)
    new, old = (-torch.rand(1, tokens, generator=generator) for _ in range(2))
    trained = torch.ones(1, tokens, dtype=torch.bool)
    credit = token_credit(new, old, torch.ones(1), trained, FIPOParams())
    others = {"logps": new, "old_logps": old, "advantages": torch.ones(1, tokens)}
    columns = trace_columns(credit, trained, (0.2, 0.28), **others)
    return Completion(
        place=(rollout, 1, 3, sample),
        prompt=torch.tensor([4, 5]),
        tokens=torch.arange(6, 6 + tokens),
        columns={name: column[0] for name, column in columns.items()},
        dropped=False,
        rewards={"reward": 0.5},
        truncated=False,
    )


def writer(folder, tokenizer=None, **of):
    return TraceWriter(options=TraceOptions(folder), params=FIPOParams(), tokenizer=tokenizer or tiny.tokenizer(), **of)


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("folder", ["run", "run/traces"])
def test_what_is_written_is_read(folder, tmp_path):
    writer(tmp_path / folder).write(8, 2, [completion(sample=7)])
    (trace,) = traces = read_traces(tmp_path / "run")
    (file,) = (tmp_path / folder).glob("*.parquet")
    assert file.name == "rollout_000008_step_0002_rank_0.parquet"
    assert (trace.run, trace.rollout, trace.update, trace.group, trace.sample) == ("run", 8, 1, 3, 7)
    assert (trace.reward, trace.stop_reason, trace.entropy, trace.dropped) == (0.5, "stop", None, False)
    assert trace.text == "".join(tiny.tokenizer().convert_ids_to_tokens(list(range(6, 11))))
    np.testing.assert_allclose(trace.weight, completion(sample=7).columns["weight"])
    assert traces.params == FIPOParams()


@pytest.mark.parametrize("place", ["os.replace", "pyarrow.parquet.ParquetWriter.write_table"])
def test_a_full_disk_costs_the_new_traces_and_one_warning(place, tmp_path, caplog, monkeypatch):
    one = writer(tmp_path)
    one.write(8, 0, [completion()])
    monkeypatch.setattr(place, Mock(side_effect=OSError(28, "No space left on device")))
    for step in range(3):
        one.write(8, step, [completion(sample=1)])
    (sentence,) = warnings(caplog)
    assert "step_0000" in sentence and "the run goes on" in sentence and "No space left on device" in sentence
    monkeypatch.undo()
    one.write(8, 3, [completion(sample=2)])  # somebody made room
    assert [trace.sample for trace in read_traces(tmp_path)] == [0, 2]


@pytest.mark.parametrize("missing", ["pyarrow", "numpy"])
def test_a_missing_package_costs_the_traces_and_one_warning(tmp_path, caplog, monkeypatch, missing):
    importing = builtins.__import__

    def refuse(name, *arguments):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return importing(name, *arguments)

    for name in [name for name in sys.modules if name.startswith("fipo.traces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    one = writer(tmp_path)
    for step in range(3):
        one.write(8, step, [completion()])
    (sentence,) = warnings(caplog)
    assert f"No module named '{missing}'" in sentence


def test_without_a_tokenizer_tokens_show_as_their_ids(tmp_path, caplog):
    one = writer(tmp_path, tokenizer=str(tmp_path / "none"))
    for step in range(2):
        one.write(8, step, [completion(tokens=2, sample=step)])
    assert [trace.text for trace in read_traces(tmp_path)] == ["⟨6⟩⟨7⟩"] * 2
    (sentence,) = warnings(caplog)
    assert sentence.startswith("Traces show tokens as their ids, and the run goes on: ")


def test_a_second_writer_stops_and_says_so(tmp_path, caplog):
    first, second = writer(tmp_path), writer(tmp_path)
    first.write(0, 0, [completion(rollout=0)])
    for step in range(3):
        second.write(8, step, [completion()])
    first.write(8, 0, [completion(sample=1)])
    (sentence,) = warnings(caplog)
    assert f"another run writes into {tmp_path}; give each run a trace_dir of its own" in sentence
    assert [trace.sample for trace in read_traces(tmp_path)] == [0, 1]


def test_a_resumed_run_replaces_its_traces_however_it_splits_them(tmp_path, caplog):
    """Also those that the abandoned branch left later, and those of ranks that are no more."""
    for rank in (0, 1):
        one = writer(tmp_path, rank=rank, ranks=2)
        for rollout in (0, 8, 16):
            for step in range(3):
                one.write(rollout, step, [completion(rollout=rollout, sample=100 * rank + step)])
        del one
    (tmp_path / "rollout_of_mine_rank_0.parquet").write_bytes(b"")
    writer(tmp_path).write(8, 1, [completion(sample=7)])
    found = read_traces(tmp_path, "rollout_0*")
    expected = [*((0, sample) for sample in (0, 1, 2, 100, 101, 102)), (8, 7)]
    assert [(trace.rollout, trace.sample) for trace in found] == expected
    assert (tmp_path / "rollout_of_mine_rank_0.parquet").exists()
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"trace_every": 0}, "trace_every is 0, but must be a whole number of at least 1; change trace_every."),
        ({"trace_samples": True}, "trace_samples is True, but"),
        ({"trace_samples": "64"}, "trace_samples is '64', but"),
        ({"trace_dir": 5}, "trace_dir is 5, but must be a folder"),
    ],
)
def test_settings_that_are_none(given, sentence):
    with pytest.raises(InvalidParameterError, match=sentence):
        TraceOptions.of({"trace_dir": "here"} | given)


def test_a_share_of_groups_is_that_share():
    groups = [group_number(f"prompt {number}".encode()) for number in range(4000)]
    for share in (0.1, 0.5, 1):
        assert sum(among(group, share) for group in groups) / len(groups) == pytest.approx(share, abs=0.03)
