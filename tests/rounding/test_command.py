"""`fipo precision`, from end to end and with what it cannot do."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from support import tiny

from fipo.cli import main
from fipo.rounding import command
from fipo.rounding.drift import Updates, sample
from fipo.rounding.errors import Estimate, WeightErrors
from fipo.rounding.verdict import Row, best_dtype, verdict
from fipo.traces import Trace, write_traces

FEW = ["--responses", "4", "--updates", "2", "--tokens", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"), hidden_size=64, initializer_range=0.3)


def run(capsys, *arguments):
    code = main(["precision", *arguments])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())


def test_the_table_and_what_to_set(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, said = run(capsys, model, "--learning_rate", "1e-3", *FEW)
    assert code == 0
    assert "4 responses of" in said and "2 updates at learning rate 0.001, each on 2 others (cpu)" in said
    for way in ("bfloat16", "bfloat16, exact logits", "bfloat16 autocast", "float16"):
        assert re.search(rf"{way} [\d.e-]+ [\d.e-]+ [\d.e-]+ [\d.e-]+±", said), way
    assert re.search(r"float32 [\d.e-]+ 0 [\d.e-]+ 0±0 1.00±", said)  # by itself it is the truth
    assert "fipo train: --dtype float32" in said and "slime" in said and "prime-rl" in said


def test_prompts_from_a_file_and_responses_from_traces(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"{number}+1="}) + "\n" for number in range(9)))
    assert run(capsys, model, "--dataset", str(prompts), "--prompt_column", "question", *FEW)[0] == 0

    ids = np.arange(3, 9, dtype="int32")
    traces = [
        Trace(sample=row, prompt="1+1=", token_ids=ids, token_bytes=[b"x"] * 6, trained=ids > 3) for row in range(8)
    ]
    write_traces(traces, tmp_path / "traces.parquet", None)
    code, said = run(capsys, model, "--traces", str(tmp_path / "traces.parquet"), *FEW)
    assert code == 0 and "4 responses of 5 tokens" in said  # of those that were trained


def test_what_cannot_be_measured_is_a_sentence(model, tmp_path, capsys, monkeypatch):
    def refused(*arguments):  # in one sentence
        code, said = run(capsys, *arguments, *FEW)
        assert code == 2 and "fipo: " in said and said.count("Traceback") == 0
        return said

    assert "dtypes has 'float8', but knows bfloat16, float16, float32" in refused(model, "--dtypes", "float8")
    assert "learning_rate is 0.0, but must be above 0" in refused(model, "--learning_rate", "0")
    assert "nowhere" in refused(str(tmp_path / "nowhere"))
    assert "does not exist" in refused(model, "--dataset", str(tmp_path / "none.jsonl"))
    ids = np.array([3, 999], dtype="int32")
    trace = {"prompt": "1", "token_ids": ids, "token_bytes": [b"x"] * 2, "trained": ids > 0}
    write_traces([Trace(sample=row, **trace) for row in range(8)], tmp_path / "other.parquet", None)
    assert "token ids beyond the model's" in refused(model, "--traces", str(tmp_path / "other.parquet"))
    write_traces([Trace(**trace)], tmp_path / "few.parquet", None)
    assert "1 responses, but 8 are needed" in refused(model, "--traces", str(tmp_path / "few.parquet"))

    certain = tiny.model()
    certain.get_output_embeddings().weight.data.mul_(1e5)
    certain.save_pretrained(tmp_path / "certain")
    tiny.tokenizer().save_pretrained(tmp_path / "certain")
    assert "certain of its responses" in refused(str(tmp_path / "certain"))

    monkeypatch.setattr(command, "get_max_memory", lambda: {"cpu": 1000})
    assert "GiB of memory are free; take a smaller model" in refused(model)


def test_moments_are_filled_without_moving_the_model():
    model = tiny.model()
    before = [weight.clone() for weight in model.parameters()]
    responses = sample(model, tiny.tokenizer(), [[5, 6], [7]], 2, 6)
    training = Updates(model, 1e-2)
    training.fill_moments([(responses, torch.tensor([1.0, -1.0, 1.0, -1.0]))])
    assert all(map(torch.equal, before, model.parameters()))
    assert all(state["exp_avg_sq"].any() for state in training.optimizer.state.values())
    training.update(responses, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert not any(map(torch.equal, before, model.parameters()))


def test_a_response_ends_with_its_first_end():
    model = tiny.model()
    responses = sample(model, tiny.tokenizer(), [[5, 6], [7]], 40, 20)
    assert responses.attended[:, :2].sum(-1).tolist() == [2] * 40 + [1] * 40
    for ids, trained in zip(responses.ids[:, 2:].tolist(), responses.trained.tolist(), strict=True):
        length = ids.index(1) + 1 if 1 in ids else len(ids)
        assert trained == [place < length for place in range(len(ids))]


def of(dtype, weight, correlation, moved=0.08):
    found = dict.fromkeys((field.name for field in fields(WeightErrors)), Estimate(0.0, 0.0))
    known = {"weight": weight, "correlation": correlation, "true_weight": moved}
    return Row(dtype, dtype, WeightErrors(**found | {name: Estimate(value, 0.0) for name, value in known.items()}))


def test_the_verdict():
    noise, good, exact = of("bfloat16", 0.12, 0.1), of("float16", 0.012, 0.98), of("float32", 0.0, 1.0)
    assert verdict([noise, good, exact]) == (
        "Rounding hides what updates do to weights: bfloat16 is off by 12 % (correlation 0.10), "
        "float16 is off by 1.2 % (correlation 0.98)."
    )
    assert best_dtype([noise, good, exact]) == "float16"
    bad = of("float16", 0.012, 0.3)
    assert "float32 is off by 0 %" in verdict([noise, bad, exact]) and best_dtype([noise, bad, exact]) == "float32"
    assert "the best that was measured, float16" in verdict([noise, bad])
    assert verdict([good, exact]) == "Rounding leaves the weights what they are in every precision that was measured."
    still = verdict([of("bfloat16", 0.12, 0.0, 0.003), of("float32", 0.0, 1.0, 0.004)])
    assert "these updates move weights by 0.4 %, so FIPO is almost GRPO anyway" in still
