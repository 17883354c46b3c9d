"""What a report is made of: several runs, metrics alone, nothing at all, damaged files."""

import json

import numpy as np
import pytest
from synthetic_traces import write_metrics

from fipo.cli import main
from fipo.report import render_report
from fipo.report.curves import draw_curves, read_metrics

pytestmark = pytest.mark.browser


def test_curves_of_two_seeds(run, tmp_path, open_page):
    other = write_metrics(tmp_path / "demo_s1", offset=0.5)
    page = open_page(render_report([run, other], tmp_path / "deep" / "report.html"))
    page.wait_for_selector(".plot.drawn .scatterlayer")
    assert page.locator("#charts h3").all_text_contents() == ["Reward", "Weight: mean, and least to greatest"]
    band, line = page.evaluate("fipo.page.charts[0].figure.data")
    assert line["y"] == pytest.approx([step / 10 + 0.25 for step in range(8)])
    assert band["y"][:8] == pytest.approx([step / 10 + 0.5 for step in range(8)])
    page.click("#tab-credit")
    assert page.locator("#stage .token").count() == 60


def test_a_run_without_a_seed_is_no_seed_of_another(tmp_path):
    def names(*folders):
        runs = [read_metrics(write_metrics(tmp_path / name) / "metrics.jsonl", name) for name in folders]
        return [line["name"] for line in draw_curves(runs)[0]["figure"]["data"] if "name" in line]

    assert names("demo", "demo_s1", "x_s0", "demo-s2", "x_s1") == ["demo", "demo, 2 seeds", "x, 2 seeds"]
    assert names("demo", "demo_s1") == ["demo", "demo_s1"]
    assert names("decay-16", "decay-32") == ["decay-16", "decay-32"]  # a trailing number is no seed
    assert names("x_s0", "x_s1") == ["reward, 2 seeds"]  # a lone band has a legend


def test_of_many_updates_a_line_is_the_mean_of_equal_parts_and_a_band_holds_their_peaks(tmp_path):
    values = np.random.default_rng(0).normal(size=10_000)
    values[1234] = 99
    lines = (json.dumps({"step": step, "reward": value}) for step, value in enumerate(values, 1))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    band, line = draw_curves([read_metrics(tmp_path / "metrics.jsonl", "run")])[0]["figure"]["data"]
    assert line["x"][-1] == 10_000 and line["y"] == pytest.approx(values.reshape(500, 20).mean(1), rel=1e-5)
    assert max(band["y"]) == 99 and min(band["y"]) == pytest.approx(values.min(), rel=1e-5) and len(band["x"]) == 1000


def test_metrics_that_nothing_can_draw(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "reward": 1}', '{"step": NaN, "reward": 1}', '{"step": 2, "reward": 1' + "0" * 400 + "}"]
    file.write_text("\n".join([*lines, '{"step": 1e999, "reward": 1}', '{"step": 3, "reward": NaN}']))
    found = read_metrics(file, "run")
    assert list(found.series["reward"]) == [1, 3]
    assert "line 2, 3, 4 is no JSON object with a step and finite numbers" in found.problems[0]
    file.write_text('{"step": 1, "reward": 1}\n{"step": 2, "reward": ' + "[" * 100_000)
    assert "line 2 is no JSON object" in read_metrics(file, "run").problems[0]
    file.write_text('{"step": 1, "loss": 1}')
    assert "none of its metrics (loss) is one that is drawn" in read_metrics(file, "run").problems[0]


def test_the_command_names_page_and_problems(run, tmp_path, capsys, open_page):
    assert main(["report", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []  # where there is nothing to show
    folder = write_metrics(tmp_path / "r")
    (folder / "traces").mkdir()
    (folder / "traces" / "bad.parquet").write_bytes(b"no")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')
    output = tmp_path / "x.html"
    assert main(["report", str(folder), "-o", str(output)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(output)
    assert "line 9 is no JSON object" in said.err and "bad.parquet was left out" in said.err
    page = open_page(output)
    assert page.locator("#problems li").count() == 2
    assert page.locator("#tab-credit").is_hidden()  # there are metrics alone
    assert page.locator("#charts h3").count() == 2


def test_metrics_of_verls_file_logger(tmp_path):
    """One step a rollout, `actor/` before what an actor reports, and null for what is no number."""
    file = tmp_path / "metrics.jsonl"
    data = {"actor/fipo/weight_mean": 1.01, "actor/fipo/weight_min": 0.8, "actor/fipo/weight_max": 1.2, "x": None}
    data |= {"critic/score/mean": 0.5, "val-core/gsm8k/acc/mean@4": 0.25, "response_length/mean": 300.0}
    lines = [json.dumps({"step": step, "data": data}) for step in (1, 2)]
    file.write_text("\n".join([*lines, '{"step": 3, "data": [1]}', '{"data": {"reward": 1}}', ""]))
    metrics = read_metrics(file, "verl")
    assert metrics.steps == "rollout"
    assert metrics.series["fipo/weight_max"] == {1: 1.2, 2: 1.2}
    assert "line 4 is no JSON object with a step" in metrics.problems[0]
    charts = draw_curves([metrics])
    assert [chart["title"] for chart in charts] == [
        *("Reward", "Held-out accuracy", "Response length", "Weight: mean, and least to greatest"),
    ]
    assert charts[0]["figure"]["layout"]["xaxis"]["title"]["text"] == "rollout"
