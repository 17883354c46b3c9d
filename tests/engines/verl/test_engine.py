"""verl's own engine (TrainingWorker, FSDP2, ppo_loss) on gloo: the gradient does not know how a batch was split."""

import os
import subprocess
import sys
from pathlib import Path

import engine_batch
import pytest
import torch
from support import tiny

pytestmark = [pytest.mark.verl, pytest.mark.timeout(600)]
HERE = Path(__file__).parent


def run(ranks, model, out, *options):
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
    }
    command = [sys.executable, *launcher, str(HERE / "engine_run.py"), model, str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {ranks: run(ranks, model, folder / f"{ranks}.pt") for ranks in (1, 2)}


def test_every_split_gives_the_gradient_of_the_naive_twin(runs, model):
    gradients, weights, dropped = engine_batch.naive_update(model)
    assert weights.std() > 0.1
    assert dropped == [row == engine_batch.DROPPED for row in range(engine_batch.ROWS)]
    for cases in runs.values():
        for result in cases.values():
            for name, expected in gradients.items():
                torch.testing.assert_close(result["gradients"][name], expected, rtol=1e-4, atol=1e-7)


def test_every_split_reports_the_same(runs):
    def reported(metrics):
        names = [name for name in metrics if name.startswith(("actor/", "fipo/"))]
        return {name: metrics[name] for name in (*names, "loss", "grad_norm")}

    expected = reported(runs[1]["whole"]["metrics"])
    assert expected["fipo/dropped_sequences"] == 1 / engine_batch.ROWS
    for cases in runs.values():
        for result in cases.values():
            assert reported(result["metrics"]) == pytest.approx(expected, rel=1e-6)


def test_metrics_are_means_over_the_trained_tokens(runs, model):
    _, weights, _ = engine_batch.naive_update(model)
    metrics = runs[2]["dynamic"]["metrics"]
    assert metrics["fipo/weight_mean"] == pytest.approx(weights.mean().item(), rel=1e-6)
    assert metrics["fipo/weight_min"] == pytest.approx(weights.min().item(), rel=1e-5)
    assert metrics["fipo/weight_max"] == pytest.approx(weights.max().item(), rel=1e-5)
    assert metrics["fipo/weight_at_high"] == pytest.approx((weights == 1.2).double().mean().item(), rel=1e-6)


def test_fused_kernels_give_the_same_gradients(tmp_path):
    """Log-probs out of the model's forward. Embeddings are tied: else FSDP2 leaves the head sharded, and verl fails."""
    model = tiny.save(tmp_path / "tied", tie_word_embeddings=True)
    cases = run(1, model, tmp_path / "fused.pt", "fused")
    whole, fused = cases["whole"], cases["fused kernels"]
    for name, expected in whole["gradients"].items():
        torch.testing.assert_close(fused["gradients"][name], expected, rtol=1e-4, atol=1e-7)
    assert fused["metrics"]["fipo/weight_mean"] == pytest.approx(whole["metrics"]["fipo/weight_mean"], rel=1e-5)
