"""Dumps of other stacks: what they tell is there, what they do not is None and said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from fipo import DataError, FIPOParams, fipo_loss
from fipo.traces import read_traces, write_traces
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


NUMBERS = {
    "advantages": [0, 0, -1, -1, -1], "entropy": [None, 1, 1, 1, 1],
    "inference_logprobs": [0, 0, -1, -1, -1], "trainer_logprobs": [-9, -9, -1.5, -0.5, -0.8],
}  # fmt: skip
EXPORT = NUMBERS | {"schema_version": 1, "step": 3, "rank": 1, "env_name": "math", "token_ids": [1, 2, 3, 4, 5]}
EXPORT |= {"micro_step": 0, "export_sequence_idx": 0, "loss_mask": [False, False, True, False, True]}


def test_prime_rl_token_exports(tmp_path):
    step = tmp_path / "token_exports" / "step_3"
    step.mkdir(parents=True)
    (step / "rank_1.jsonl").write_text(f"{json.dumps(EXPORT)}\n{json.dumps(EXPORT | {'schema_version': 2})}\n")
    (trace,) = found = import_dump("prime-rl", tmp_path)
    assert (trace.prompt, trace.text, trace.rollout) == ("⟨1⟩⟨2⟩", "⟨3⟩⟨4⟩⟨5⟩", 3)
    assert trace.trained.tolist() == [True, False, True]
    columns = [torch.tensor([NUMBERS[name][2:]]) for name in ("trainer_logprobs", "inference_logprobs", "advantages")]
    out = fipo_loss(*(column.float() for column in columns), torch.tensor([[1, 0, 1]]), FIPOParams())
    np.testing.assert_array_equal(trace.weight, out.weight[0])
    np.testing.assert_allclose(trace.log_ratio, [-0.5, 0, 0.2], atol=1e-6)
    assert "schema_version is 2, but this fipo reads 1" in found.problems[0]


@pytest.mark.parametrize("line", ["[" * 100_000, "5", '{"token_ids": 3}', "\xff" * 1000])
def test_hostile_lines_and_files_are_named_once_and_the_rest_is_read(line, tmp_path):
    huge = json.dumps(EXPORT | {"step": 10**12})
    (tmp_path / "rank_1.jsonl").write_text(f"{line}\n{json.dumps(EXPORT)}\n{huge}\n")
    (tmp_path / "rank_0.jsonl").mkdir()
    (trace,) = found = import_dump("prime-rl", tmp_path)
    directory, lines, *_ = found.problems
    assert trace.rollout == 3 and "rank_0.jsonl was left out: [Errno 21] Is a directory" in directory
    assert "rank_1.jsonl, line 1, 3 was left out" in lines and len(lines) < 600


class Payload:
    def __reduce__(self):
        return pytest.fail, ("executed",)


@pytest.mark.parametrize(
    ("dump", "why"),
    [
        ([1], "it is a list, but slime writes a dict"),
        ({"format_version": 2, "samples": 5}, "its samples are a int, but slime writes a list"),
        ({"format_version": 2, "samples": Payload()}, "Weights only load failed"),
        ({"format_version": torch.ones(2)}, "its format_version is tensor"),
        ({"format_version": 2, "rollout_id": 0, "samples": [torch.ones(2)]}, "it is a Tensor, but slime writes a dict"),
    ],
)
def test_dumps_that_cannot_be_read_are_a_sentence_and_not_unpickled(dump, why, tmp_path):
    torch.save(dump, tmp_path / "train_0.pt")
    torch.save({"rollout_id": 0, "samples": ["text"]}, tmp_path / "rollout_0.pt")
    with pytest.raises(DataError, match="holds no slime dump that could be read: ") as caught:
        import_dump("slime", tmp_path)
    rollout, train = str(caught.value).split("; ", 1)
    assert "rollout_0.pt was left out: it is no rollout dump" in rollout
    assert "train_0.pt" in train and " was left out: " in train and why in train and ".." not in train


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
