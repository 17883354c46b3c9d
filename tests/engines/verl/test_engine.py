"""verl's own engine (TrainingWorker, FSDP2, ppo_loss) on gloo: the gradient does not know how a batch was split."""

from pathlib import Path

import engine_batch
import numpy as np
import pytest
import torch
from overrides import run_on_cpu
from support import one_truth, tiny
from transformers import AutoModelForCausalLM

from fipo.traces import read_traces

pytestmark = [pytest.mark.verl, pytest.mark.timeout(600)]


def run(ranks, model, out, *options):
    launcher = ["torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    done = run_on_cpu([*launcher, str(Path(__file__).with_name("engine_run.py")), model, str(out), *options])
    assert done.returncode == 0, done.stdout[-4000:]
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def model(folder):
    return tiny.save(folder / "model")


@pytest.fixture(scope="module")
def runs(model, folder):
    return {ranks: run(ranks, model, folder / f"{ranks}.pt") for ranks in (1, 2)}


def test_every_split_gives_the_gradient_of_the_naive_twin(runs, model):
    gradients, _ = engine_batch.naive_update(model)
    for result in (result for cases in runs.values() for result in cases.values()):
        for name, expected in gradients.items():
            torch.testing.assert_close(result["gradients"][name], expected, rtol=1e-4, atol=1e-7)


def test_every_split_reports_the_means_over_the_trained_tokens(runs, model):
    """And over rows; verl's own metrics are means of micro-batches."""
    weights, whole = torch.cat(engine_batch.naive_update(model)[1]), runs[1]["whole"]["metrics"]
    assert whole["fipo/weight_mean"] == pytest.approx(weights.mean().item(), rel=1e-6)
    expected = {name: whole[name] for name in whole if name.startswith("fipo/") or name in ("loss", "grad_norm")}
    for result in (result for cases in runs.values() for result in cases.values()):
        assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_split_traces_what_was_trained_on(runs, folder, model, ranks):
    """Of the second rollout, in both epochs, every row but those of padding."""
    data, tokenizer = engine_batch.batch(model), tiny.tokenizer()
    with torch.no_grad():
        logps = engine_batch.logps(AutoModelForCausalLM.from_pretrained(model), data)
    lengths = data["attention_mask"][:, engine_batch.PROMPT :].sum(1).tolist()
    rows = [row for row in range(engine_batch.ROWS) if row not in engine_batch.PADDING]
    by_response = {tuple(data["responses"][row, : lengths[row]].tolist()): row for row in rows}
    for case in runs[ranks]:
        found = read_traces(folder / f"{ranks}.pt.traces" / case)
        assert not found.problems
        assert len(found) == 2 * len(rows), case
        assert {trace.rollout for trace in found} == {2}
        assert len({(trace.sample, trace.update) for trace in found}) == len(found)
        weights = {0: [], 1: []}
        for trace in found:
            row = by_response[tuple(trace.token_ids.tolist())]
            prompt = data["input_ids"][row, : engine_batch.PROMPT]
            assert trace.prompt == "".join(tokenizer.convert_ids_to_tokens(prompt[prompt > 0].tolist()))
            part = slice(lengths[row])
            assert trace.trained.tolist() == data["response_mask"][row, part].bool().tolist()
            for name, expected in {"old_logps": data["old_log_probs"], "logps": logps}.items():
                np.testing.assert_allclose(getattr(trace, name), expected[row, part], atol=1e-5)
            assert trace.dropped == (row == one_truth.DROPPED)
            weights[trace.update] += trace.weight[trace.trained].tolist()
        expected = sorted(torch.cat(engine_batch.naive_update(model)[1]).tolist())
        for epoch in weights.values():
            np.testing.assert_allclose(sorted(epoch), expected, rtol=1e-5)


def test_fused_kernels_give_the_same_gradients(tmp_path):
    """Log-probs out of the model's forward. Embeddings are tied: else FSDP2 leaves the head sharded, and verl fails."""
    model = tiny.save(tmp_path / "tied", tie_word_embeddings=True)
    cases = run(1, model, tmp_path / "fused.pt", "fused")
    whole, fused = cases["whole"], cases["fused kernels"]
    for name, expected in whole["gradients"].items():
        torch.testing.assert_close(fused["gradients"][name], expected, rtol=1e-4, atol=1e-7)
    assert fused["metrics"]["fipo/weight_mean"] == pytest.approx(whole["metrics"]["fipo/weight_mean"], rel=1e-5)
