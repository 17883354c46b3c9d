"""Runs of other trainers, by whatever logged them, become the tables of docs/evidence.md."""

import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from experiments import statistics
from experiments.collect import collect, main
from experiments.protocol import FIPO, GRPO, SHUFFLED, Elsewhere, Run

pytestmark = pytest.mark.beside

METRIC = "eval/aime-2024"
CURVE = {0: 0.1, 20: 0.3, 40: 0.4}


def ours(folder, curve=CURVE):
    """metrics.jsonl as `fipo train` writes it: not every line has the metric."""
    folder.mkdir(parents=True)
    lines = [{"step": step, METRIC: value} for step, value in curve.items()] + [{"step": 41, "loss": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def verls(file):
    lines = [json.dumps({"step": step, "data": {METRIC: value}}) for step, value in CURVE.items()]
    file.write_text("\n".join(lines))
    return file


def tensorboards(folder):
    with SummaryWriter(str(folder)) as writer:
        for step, value in CURVE.items():
            writer.add_scalar(METRIC, value, step)
    return folder


def wandbs(file):
    """As a chart is exported: runs log at steps of their own, and slime's names end in something random."""
    first, second = "Qwen3.5-0.8B-fipo-s0_a1b2c3-RANK_0", "Qwen3.5-0.8B-grpo-s0_d4e5f6-RANK_0"
    columns = [f"{run} - {METRIC}{bound}" for run in (first, second) for bound in ("", "__MIN", "__MAX")]
    rows = [(0, 0.1, 0.1), (20, 0.3, ""), (40, 0.4, 0.2)]
    text = ",".join(f'"{name}"' for name in ("eval/step", *columns)) + "\n"
    file.write_text(text + "".join(f"{step},{a},{a},{a},{b},{b},{b}\n" for step, a, b in rows))
    return file


def test_every_logger_gives_the_same_run(tmp_path):
    sources = {
        "trl-fipo-s0": ours(tmp_path / "trl-fipo-s0"),
        "verl-shuffled-s3": verls(tmp_path / "verl-shuffled-s3.jsonl"),
        "slime-grpo-s12": tensorboards(tmp_path / "slime-grpo-s12"),
        "named-dapo-s1": f"named-dapo-s1={ours(tmp_path / 'anything')}",
    }
    results = collect(list(map(str, sources.values())), METRIC)
    assert list(results) == [
        Run(Elsewhere("trl"), FIPO, 0),
        Run(Elsewhere("verl"), SHUFFLED, 3),
        Run(Elsewhere("slime"), GRPO, 12),
        Run(Elsewhere("named"), GRPO, 1),
    ]
    for result in results.values():
        assert result["evaluations"]["samples"] == [0, 20, 40]
        assert statistics.final_accuracy(result) == pytest.approx(0.4)
        assert statistics.area_under_curve(result) == pytest.approx((0.2 + 0.35) / 2)


def test_a_chart_of_wandb_holds_many_runs(tmp_path):
    results = collect([str(wandbs(tmp_path / "chart.csv"))], METRIC)
    fipo, grpo = (results[Run(Elsewhere("Qwen3.5-0.8B"), arm, 0)]["evaluations"] for arm in (FIPO, GRPO))
    assert fipo == {"samples": [0, 20, 40], "accuracy": [0.1, 0.3, 0.4]}
    assert grpo == {"samples": [0, 40], "accuracy": [0.1, 0.2]}


def test_the_tables_pair_equal_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(statistics, "REPETITIONS", 200)
    sources = []
    for arm, gain in (("fipo", 0.1), ("grpo", 0.0)):
        for seed in range(3):
            curve = {step: value + gain + seed / 50 for step, value in CURVE.items()}
            sources.append(str(ours(tmp_path / f"q-{arm}-s{seed}", curve)))
    assert main([*sources, "--metric", METRIC]) == 0
    accuracy, comparisons = capsys.readouterr().out.strip().split("\n\n")
    assert "| q | fipo | 3 | 22.0 | 52.0 [50.0, 54.0]" in accuracy
    assert "| q | fipo − grpo | +10.0 [+10.0, +10.0] | 0.25 |" in comparisons


def test_what_cannot_be_compared_is_one_sentence(tmp_path, capsys):
    for folder in ("a/q-fipo-s0", "b/q-fipo-s0", "run7"):
        ours(tmp_path / folder)
    ours(tmp_path / "percent" / "q-fipo-s0", {0: 10.0, 20: 30.0})
    ours(tmp_path / "single" / "q-fipo-s0", {40: 0.4})
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("Step,loss\n0,1\n")
    for names, metric, sentence in (
        ("run7", METRIC, "does not tell arm and seed, but a name must be NAME-ARM-sSEED"),
        ("a/q-fipo-s0", "eval/aime2024", "has no metric 'eval/aime2024'; did you mean eval/aime-2024?"),
        ("percent/q-fipo-s0", METRIC, "but must be at least two between 0 and 1"),
        ("single/q-fipo-s0", METRIC, "is 1 values from 0.4 to 0.4"),
        ("a/q-fipo-s0 b/q-fipo-s0", METRIC, "q/fipo/0 is there twice"),
        ("q-fipo-s0=empty", METRIC, "holds neither metrics.jsonl nor TensorBoard's events"),
        ("q-fipo-s0=missing", METRIC, "holds neither metrics.jsonl nor TensorBoard's events"),
        ("other.csv", METRIC, "has no column RUN - METRIC"),
    ):
        places = [name.replace("=", f"={tmp_path}/") if "=" in name else str(tmp_path / name) for name in names.split()]
        assert main([*places, "--metric", metric]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
