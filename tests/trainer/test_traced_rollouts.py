"""What the trainer writes is what it trained on."""

import numpy as np
import pytest
import torch
import wandb
from support.harness import make

from fipo import fipo_loss
from fipo.traces import read_traces


def more_ones(completions, **_):
    return [float(completion.count("1")) for completion in completions]


def run(tmp_path, **options):
    options = {"learning_rate": 1e-2, "max_steps": 8, "save_strategy": "no", **options}
    trainer = make(tmp_path, rewards=more_ones, prompts=64, **options)
    trainer.train()
    return trainer


def test_a_run_leaves_its_traces(tmp_path):
    trainer = run(tmp_path, fipo_trace_every=1)
    traces = read_traces(tmp_path / "run")
    assert traces.params == trainer.params and not traces.problems
    assert len(traces) == 64  # 2 rollouts of 4 updates of 8 completions
    assert sorted({(trace.rollout, trace.sample) for trace in traces}) == [(r, s) for r in (0, 1) for s in range(32)]
    for trace in traces:
        assert trace.run == "run"
        assert trace.text == trainer.processing_class.decode(trace.token_ids)
        assert trace.reward == trace.rewards["more_ones"] == trace.text.count("1")
        assert trace.truncated == (trace.stop_reason == "length")
        assert trace.group == trace.sample // 4
        np.testing.assert_allclose(trace.logps - trace.old_logps, trace.log_ratio, atol=1e-5)
        if trace.update == 0:
            assert np.abs(trace.log_ratio).max() < 1e-5
    assert max(np.abs(trace.raw_weight - 1).max() for trace in traces if trace.update == 3) > 0.01
    one = traces[-1]
    columns = (torch.from_numpy(getattr(one, name))[None] for name in ("logps", "old_logps", "advantages", "trained"))
    out = fipo_loss(*columns, traces.params)
    np.testing.assert_allclose(out.weight[0], one.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "rollouts", "expected"),
    [({"fipo_trace_every": 2, "fipo_trace_samples": 8}, {0, 2, 3}, 24), ({}, {0, 3}, 64)],
)
def test_budget(options, rollouts, expected, tmp_path):
    """Of four rollouts of 32 samples; the last is always traced."""
    run(tmp_path, max_steps=16, **options)
    traces = read_traces(tmp_path / "run")
    assert {trace.rollout for trace in traces} == rollouts
    assert len(traces) == expected


def test_trackers_show_the_report(tmp_path, monkeypatch):
    """Every second rollout's credit and that of the last, which ends early, reach W&B and Trackio, one report each."""
    trackers = {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "TRACKIO_DIR": tmp_path / "trackio"}
    for name, value in {**trackers, "TRACKIO_PROJECT": "fipo"}.items():
        monkeypatch.setenv(name, str(value))
    run(tmp_path, fipo_trace_every=2, max_steps=14, report_to=["wandb", "trackio"], project="fipo")
    wandb.finish()
    logged = [*tmp_path.glob("wandb/*/files/media/html/**/*.html"), *tmp_path.glob("trackio/media/**/*.html")]
    pages = [path.read_text() for path in logged]
    assert len(pages) == 6  # rollouts 0, 2 and 3, two trackers
    assert sorted("rollout 3" in page for page in pages) == [False] * 4 + [True] * 2
    assert all("Content-Security-Policy" in page for page in pages)
