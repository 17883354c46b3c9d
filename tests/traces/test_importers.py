"""Dumps of other stacks: what they tell is there, what they do not is None and said."""

import json
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from support import tiny

from fipo import DataError, FIPOParams, fipo_loss
from fipo.traces import FLAGS, read_traces, write_traces
from fipo.traces.importers import import_dump

SLIME = Path(__file__).parents[1] / "data" / "slime"


def test_slime_with_the_current_policys_log_probs(tmp_path):
    params = FIPOParams(decay_rate=8.0)
    found = import_dump("slime", SLIME / "use_rollout_logprobs", params=params, current_logprobs=True)
    assert found.problems == [] and len(found) == 12
    assert [trace.group for trace in found][5:7] == [5, 5]  # two samples of one prompt
    dump = torch.load(SLIME / "use_rollout_logprobs" / "train_0.pt", weights_only=True)["samples"]
    for trace, sample in zip(found, dump, strict=True):
        delta = (sample["log_probs"] - sample["rollout_log_probs"]).numpy()
        np.testing.assert_allclose(trace.log_ratio[trace.trained], delta[trace.trained], rtol=1e-6)
        columns = (sample[name][None] for name in ("log_probs", "rollout_log_probs", "advantages", "loss_masks"))
        np.testing.assert_array_equal(trace.weight, fipo_loss(*columns, params).weight[0].numpy())
        assert trace.reward == pytest.approx(float(sample["rewards"]))
        assert len(trace.token_ids) == sample["response_lengths"]
    again = read_traces(write_traces(found, tmp_path / "x.parquet", found.params))
    assert again.params == params and len(again) == 12


def test_slime_with_the_old_policys_log_probs_has_no_credit():
    """And a tokenizer that does not fit is named."""
    found = import_dump("slime", SLIME / "recomputed", tokenizer=tiny.tokenizer())
    assert len(found) == 12
    assert all(trace.log_ratio is None and trace.weight is None and trace.logps is None for trace in found)
    problems = " ".join(found.problems)
    assert "cannot be recovered" in problems
    assert "12 of 12 completions do not decode to the dump's own text" in problems


@pytest.mark.parametrize("tokenizer", [None, tiny.tokenizer()])
def test_trl_completions(tokenizer, tmp_path):
    rows = {"step": [3, 3], "prompt": ["2+2?", "3+3?"], "completion": ["it is 4", " 6 "], "accuracy": [1.0, 0.5]}
    pandas.DataFrame({**rows, "advantage": [0.7, -0.7]}).to_parquet(tmp_path / "completions_00003.parquet")
    found = import_dump("trl", tmp_path, tokenizer=tokenizer)
    assert [trace.text for trace in found] == ["it is 4", " 6 "]
    assert [trace.rewards for trace in found] == [{"accuracy": 1.0}, {"accuracy": 0.5}]
    assert found[1].advantages == pytest.approx(-0.7) and found[0].rollout == 3
    assert "text without log-probs" in found.problems[-1]


def test_the_forks_changes_give_back_its_weights(tmp_path):
    """A micro-batch a line, padded by 0; after a response's end its last token is repeated with Δ 0."""
    lines = [
        ([[5, 6, 7, 0, 0], [8, 0, 0, 0, 0]], [[0.1, -0.2, 0.3, 0.4, 0.0], [3.0, 0, 0, 0, 0]]),
        ([[5, 6, 7, 8, 9]], [[0.0, 0.0, None, 0.0, 0.0]]),
        ([[1, 2]], [[0.1]]),
        ([4, 4], [0.1, 0.2]),  # of one response alone, which the fork calls so
    ]
    names = ["responses"] * 3 + ["response"]
    rows = [{name: ids, "negative_approx_kl": changes} for name, (ids, changes) in zip(names, lines, strict=True)]
    (tmp_path / "negative_approx_kl_global_step_12.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = import_dump("fipo-fork", tmp_path, params=FIPOParams(decay_rate=1.0))
    assert [trace.token_ids.tolist() for trace in found] == [[5, 6, 7, 0], [8, 0], [5, 6, 7, 8, 9], [4, 4]]
    places = [(trace.rollout, trace.group, trace.sample) for trace in found]
    assert places == [(12, 0, 0), (12, 0, 1), (12, 1, 2), (12, 2, 3)]
    first, clipped, unknown, _ = found
    credit = [0.1 - 0.1 + 0.075 + 0.05, -0.2 + 0.15 + 0.1, 0.3 + 0.2, 0.4]
    np.testing.assert_allclose(first.future_kl, credit, rtol=1e-5)
    np.testing.assert_allclose(first.weight, np.exp(first.future_kl).clip(0.8, 1.2), rtol=1e-6)
    assert clipped.future_kl[0] == 0 and clipped.flags[0] == FLAGS["outside"]  # e³ exceeds the dual clip
    assert np.isnan(unknown.log_ratio[2])
    assert first.advantages is None and first.dropped is None and first.logps is None
    assert "line 3 was left out" in found.problems[0]
    assert "Advantages are unknown" in found.problems[1]


def test_prime_rl_token_exports(tmp_path):
    numbers = {"advantages": [0, 0, -1, -1, -1], "entropy": [None, 1, 1, 1, 1]}
    numbers |= {"inference_logprobs": [0, 0, -1, -1, -1], "trainer_logprobs": [-9, -9, -1.5, -0.5, -0.8]}
    row = {"schema_version": 1, "step": 3, "rank": 1, "env_name": "math", "token_ids": [1, 2, 3, 4, 5]} | numbers
    row |= {"micro_step": 0, "micro_sequence_idx": 0, "export_sequence_idx": 0}
    row |= {"loss_mask": [False, False, True, False, True]}
    step = tmp_path / "token_exports" / "step_3"
    step.mkdir(parents=True)
    (step / "rank_1.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'schema_version': 2})}\n")
    (trace,) = found = import_dump("prime-rl", tmp_path)
    assert (trace.prompt, trace.text) == ("⟨1⟩⟨2⟩", "⟨3⟩⟨4⟩⟨5⟩")
    assert trace.trained.tolist() == [True, False, True]
    columns = [torch.tensor([numbers[name][2:]]) for name in ("trainer_logprobs", "inference_logprobs", "advantages")]
    out = fipo_loss(*(column.float() for column in columns), torch.tensor([[1, 0, 1]]), FIPOParams())
    np.testing.assert_array_equal(trace.weight, out.weight[0])
    np.testing.assert_allclose(trace.log_ratio, [-0.5, 0, 0.2], atol=1e-6)
    assert trace.rollout == 3
    assert "schema_version is 2, but this fipo reads 1" in found.problems[0]


@pytest.mark.parametrize("line", ["[" * 100_000, "5", '{"input": 3, "output": "x", "score": 1}', "\xff" * 1000])
def test_hostile_lines_and_files_are_named_once_and_the_rest_is_read(line, tmp_path):
    whole = json.dumps({"input": "\ud800?", "output": "4", "score": 1.0, "step": 7})
    huge = json.dumps({"input": "?", "output": "4", "score": 1.0, "step": 10**12})
    (tmp_path / "7.jsonl").write_text(f"{line}\n{whole}\n{huge}\n")
    (tmp_path / "6.jsonl").mkdir()
    (trace,) = found = import_dump("verl", tmp_path)
    assert (trace.text, trace.reward, trace.rollout) == ("4", 1.0, 7)
    directory, lines, *_ = found.problems
    assert "6.jsonl was left out: [Errno 21] Is a directory" in directory
    assert "7.jsonl, line 1, 3 was left out" in lines and len(lines) < 600
    write_traces(found, tmp_path / "x.parquet")


class Payload:
    def __reduce__(self):
        return pytest.fail, ("executed",)


@pytest.mark.parametrize(
    "dump", [[1], *({"format_version": 2, "samples": x} for x in (5, Payload())), {"format_version": torch.ones(2)}]
)
def test_dumps_that_cannot_be_read_are_a_sentence_and_not_unpickled(dump, tmp_path):
    torch.save(dump, tmp_path / "train_0.pt")
    torch.save({"rollout_id": 0, "samples": ["text"]}, tmp_path / "rollout_0.pt")
    with pytest.raises(DataError, match=r"holds no slime dump that could be read: .*_0\.pt was left out"):
        import_dump("slime", tmp_path)


@pytest.mark.parametrize("wrong", [{"step": None}, {"prompt": ["text"]}, {"completion": [1]}])
def test_rows_that_are_no_completions_are_named(wrong, tmp_path):
    row = {"step": 3, "prompt": [{"role": "user", "content": "?"}], "completion": [{"content": "4"}], "advantage": 0.5}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | wrong]), tmp_path / "b.parquet")
    found = import_dump("trl", tmp_path)
    assert [(trace.prompt, trace.text) for trace in found] == [("?", "4")]
    assert "b.parquet, row 0 was left out" in found.problems[0]


def test_slime_dumps_that_a_killed_run_left_or_that_hold_chats_and_odd_text(tmp_path):
    (tmp_path / "train_0.pt").write_bytes((SLIME / "recomputed" / "train_0.pt").read_bytes())
    (tmp_path / "train_9.pt").write_bytes((SLIME / "recomputed" / "train_0.pt").read_bytes()[:100])
    rollout = torch.load(SLIME / "recomputed" / "rollout_0.pt", weights_only=True)
    for sample in rollout["samples"]:
        sample |= {"prompt": [{"role": "user", "content": "2+2?"}], "response": None, "status": "\ud800"}
    torch.save(rollout, tmp_path / "rollout_0.pt")
    found = import_dump("slime", tmp_path, tokenizer=tiny.tokenizer())
    assert any("train_9.pt was left out" in problem for problem in found.problems)
    written = read_traces(write_traces(found, tmp_path / "x.parquet"))
    assert {(trace.prompt, trace.stop_reason) for trace in written} == {("2+2?", "?")}
