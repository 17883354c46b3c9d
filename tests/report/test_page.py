"""The page as a reader meets it: tokens, credit, arithmetic, groups, summary, in a real Chromium."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from page_driver import facts, slide, slowest_frame, state, token
from playwright.sync_api import expect
from synthetic_traces import HOSTILE, PARAMS, trace, write_metrics

from fipo import fipo_loss, future_kl
from fipo.report import render_report
from fipo.report.channels import CHANNELS
from fipo.traces import read_traces, write_traces
from fipo.traces.analysis import analyze

pytestmark = pytest.mark.browser


def test_tokens_and_channels(html, open_page):
    page = open_page(html)
    assert page.locator("#stage .token").count() == 60
    assert page.locator("#sample-count").text_content() == "26 traces"
    assert "untrained" in token(page, 30).get_attribute("class")
    assert token(page, 7).get_attribute("data-marks") == "o"
    assert token(page, 13).get_attribute("data-marks") == "d"
    mismatch = page.evaluate("Array.from(fipo.page.columns.mismatch.slice(0, 60))")
    assert [t for t, value in enumerate(mismatch) if value == 0] == [30, 31, 32]  # what is not trained is not counted
    colours = set()
    for key, channel in enumerate(CHANNELS, 1):
        page.keyboard.press(str(key))
        assert page.locator("#channels [aria-pressed=true]").text_content() == channel.label
        assert page.locator("#legend").text_content().startswith(channel.label)
        said = page.locator("#help-channels tr").nth(key - 1).text_content()
        assert said == f"{key}colour by {channel.label}: {channel.help}"
        colours.add(token(page, 3).get_attribute("style"))
    assert len(colours) >= 4


def credit(one, knobs):
    """fipo's own, in float64: (future_kl, weight)."""
    params = replace(PARAMS, **knobs)
    log_ratio, mask = torch.from_numpy(one.log_ratio.astype("float64"))[None], torch.from_numpy(one.trained)[None]
    out = fipo_loss(log_ratio, 0 * log_ratio, torch.from_numpy(one.advantages)[None], mask, params)
    return future_kl(log_ratio, mask, params)[0], out.weight[0]


def test_hover_tells_the_arithmetic_and_a_click_shades_what_is_summed(html, open_page):
    page = open_page(html)
    token(page, 3).hover()
    one = trace(0, length=60)
    total = float(credit(one, {})[0][3])
    assert last_number(facts(page, "log π_θ − log π_old")) == pytest.approx(one.log_ratio[3], rel=1e-4)
    assert last_number(facts(page, "exp(future_kl)")) == pytest.approx(np.exp(total), rel=1e-5)
    said = re.search(r"later tokens\) = (−?[\d.e−]+)", facts(page, "future_kl"))[1].replace("−", "-")
    assert float(said) == pytest.approx(total, rel=1e-5)
    weight = min(max(np.exp(total), 0.8), 1.2)
    assert last_number(facts(page, "advantage × weight")) == pytest.approx(0.75 * weight, rel=1e-5)
    token(page, 7).hover()
    assert facts(page, "M").startswith("0 (ratio > 10")
    token(page, 31).hover()
    assert facts(page, "weight") == "1 (not trained)"
    token(page, 5).click()
    assert "contribution" in page.locator("#legend").text_content()
    shaded = [t for t in (4, 5, 7, 9) if token(page, t).get_attribute("style")]
    assert shaded == [5, 9]  # 4 is earlier, 7 outside
    page.keyboard.press("Escape")
    assert state(page)["selected"] is None


def last_number(text):
    return float(re.findall(r"−?\d[\d.]*(?:e−?\d+)?", text)[-1].replace("−", "-"))


@pytest.mark.parametrize("control", ["shuffle", "python:mine:weights, uniform"])
def test_other_weights_than_fipos_are_shown_until_knobs_move(control, tmp_path, open_page):
    """Then the page computes what fipo computes; that its formulas are fipo's under all knobs, golden.json says."""
    used = np.linspace(0.9, 1.1, 60).astype("float32")
    write_traces([trace(0, weight=used)], tmp_path / "a.parquet", PARAMS, control=control)
    page = open_page(render_report(tmp_path / "a.parquet", tmp_path / "a.html"))
    np.testing.assert_array_equal(page.evaluate("fipo.columns(0).weight"), used)
    token(page, 3).hover()
    assert facts(page, "weight in the loss") == f"{used[3]:.6f} (of {control})"
    said = f"Moving one recomputes FIPO's own weights, not the recorded ones of {control}."
    assert page.locator("#knobs-note").text_content() == f"As the run had them. {said}"
    slide(page, "decay_rate", 91)
    assert page.locator("#knobs-note").text_content() == f"Not what the run used: decay_rate. {said}"
    knobs = {"clip_ratio_high": 0.5, "clip_ratio_low": 0.6, "safety_thresh": 2.0}
    for name, place in knobs.items():
        slide(page, name, place)
    page.check("#knob-clip_high_only")
    page.select_option("#knob-distance", "trained")
    others = {"decay_rate": float("inf"), "clip_high_only": True, "distance": "trained"}
    future_kl, weight = credit(trace(0), knobs | others)
    np.testing.assert_allclose(page.evaluate("fipo.columns(0).futureKl"), future_kl, atol=1e-6)
    np.testing.assert_allclose(page.evaluate("fipo.columns(0).weight"), weight, atol=1e-6)


def test_hostile_text_is_only_text(html, open_page):
    page = open_page(html, "#at=25")
    texts = page.locator("#stage .token").all_text_contents()  # of bytes of all kinds tests/web says what is shown
    assert texts[0] == HOSTILE[0].decode()
    assert texts[2].replace("·\u200b", " ") == HOSTILE[2].decode()
    assert texts[17].endswith("… 1,000,000 bytes") and len(texts[17]) < 300
    assert page.locator("#prompt").text_content() == "<b>U+202E</script>"
    assert page.evaluate("window.hacked") is None
    assert page.locator("#stage img, #stage script, #prompt b").count() == 0


def test_an_imported_trace_shows_what_is_known(html, open_page):
    page = open_page(html, "#at=24")
    assert "credit cannot be recovered" in page.locator("#stage .notice").text_content()
    token(page, 2, 24).hover()
    assert facts(page, "advantage") == "−0.5"
    assert facts(page, "entropy").endswith("nats")
    page.keyboard.press("5")
    assert token(page, 2, 24).get_attribute("style")


def test_the_summary_shows_the_numbers_of_the_analysis(tmp_path, open_page):
    rows = [trace(sample, rollout=rollout) for rollout in (0, 8, 16) for sample in range(4)]
    rows.append(trace(50, log_ratio=None, logps=None, group=40))
    for name in ("a", "b"):
        write_traces(rows, tmp_path / name / "a.parquet", PARAMS)
    found = analyze(read_traces(tmp_path / "a"))
    page = open_page(render_report([tmp_path / "a", tmp_path / "b"], tmp_path / "a.html"), "#tab=summary")
    assert "2 have no log-ratio" in page.locator("#summary-body").text_content()

    def column(title, number):
        card = page.locator("section.card", has=page.get_by_role("heading", name=title, exact=True)).first
        return card.locator(f"tbody td:nth-child({number})").all_text_contents()

    assert column("Weights", 1) == ["a", "b"] and column("Weights", 2) == [f"{found['tokens']:,}"] * 2
    assert [float(text) for text in column("Weights", 3)] == pytest.approx([found["weight"]["mean"]] * 2, rel=1e-3)
    assert column("Weight by kind of token", 1) == [row["kind"] for row in found["kinds"]]
    over_time = "Mean weight by kind of token, over training"
    assert column(over_time, 2) == ["0", "8", "16"]
    digits = [row["mean"] for row in found["rollouts"] if row["kind"] == "digits"]
    assert [float(text) for text in column(over_time, 3)] == pytest.approx(digits, abs=1e-3)
    assert column("Most often amplified", 1) == [row["token"].replace(" ", "·\u200b") for row in found["amplified"]]
    assert len(column("What if", 1)) == 15 and len(found["warnings"]) == 1
    assert page.locator("#summary-body .notice").all_text_contents() == [f"{x}: {found['warnings'][0]}" for x in "ab"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(html, open_page, scheme):
    page = open_page(html, color_scheme=scheme)
    names = ["--surface", "--raised", "--ink", "--faint", "--low", "--high", "--seq", "--warn", "--accent"]
    read = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue(n).trim())"
    light = dict(zip(names, map(luminance, page.evaluate(read, names)), strict=True))
    on = {"--ink": ["--surface", "--raised", "--low", "--high", "--seq", "--warn"], "--accent": ["--surface"]}
    on |= {"--faint": ["--surface", "--raised", "--warn"]}
    for front, back in ((front, back) for front, backs in on.items() for back in backs):
        darker, lighter = sorted((light[front], light[back]))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (front, back)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_cut_off(html, open_page, width):
    viewport = {"width": width, "height": 900}
    if width > 390:
        page = open_page(html, "#tab=summary", viewport=viewport)
        assert page.evaluate(CUT_OFF, [".card", "#summary th, #summary td"]) == []
    page = open_page(html, "#tab=credit&mode=group", viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#stage article").count() == 4
    assert page.evaluate(CUT_OFF, ["#stage", "#stage article, #stage .token"]) == []
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator(f"#stage [data-trace='{state(page)['at']}']")).to_be_in_viewport()
    assert page.locator("#stage [aria-current=true]").get_attribute("data-trace") == str(state(page)["at"])


# What lies, in part, left or right of its container.
CUT_OFF = """([container, elements]) => [...document.querySelectorAll(elements)].filter((element) => {
  const [box, inner] = [element.closest(container), element].map((one) => one.getBoundingClientRect());
  return inner.left < box.left - 1 || inner.right > box.right + 1;
}).map((element) => element.textContent.slice(0, 60))"""


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "length"), [(512, 4096), (1, 32_768)])
def test_scale(samples, length, tmp_path, open_page):
    rows = (trace(sample, length=length, group_size=8) for sample in range(samples))
    folder = write_metrics(tmp_path / "run")
    write_traces(rows, folder / "traces" / "a.parquet", PARAMS)
    path = render_report(folder, tmp_path / "report.html")
    page = open_page(path)
    ready = float(page.evaluate("document.body.dataset.ready"))
    page.wait_for_selector(".plot.drawn .scatterlayer")
    curves = page.evaluate("performance.now()")
    page.click("#tab-credit")
    size = path.stat().st_size / (samples * length)
    print(
        f"{samples} × {length}: open after {ready:.0f} ms, curves after {curves:.0f} ms, {size:.2f} MB/million tokens"
    )
    print(f"slowest frame {slowest_frame(page):.0f} ms")
    assert ready < 3000
    assert page.locator("#stage .token").count() < 4000
