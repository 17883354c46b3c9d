"""The page as a reader meets it: tokens, credit, arithmetic, groups, summary, in a real Chromium."""

import json
import re

import numpy as np
import pytest
import torch
from page_driver import facts, slide, state, token
from playwright.sync_api import expect
from synthetic_traces import HOSTILE, PARAMS, trace, write_metrics

from fipo import FIPOParams, fipo_loss, future_kl
from fipo.report import render_report
from fipo.traces import write_traces

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
    for key, name in enumerate(
        [
            *("log_ratio", "future_kl", "weight", "advantage × weight", "entropy", "ratio"),
            *("true advantage", "trainer − engine"),
        ],
        1,
    ):
        page.keyboard.press(str(key))
        assert page.locator("#channels [aria-pressed=true]").text_content() == name
        assert page.locator("#legend").text_content().startswith(name)
        colours.add(token(page, 3).get_attribute("style"))
    assert len(colours) >= 4


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"decay_rate": 2.0, "clip_ratio_high": 0.5, "safety_thresh": 2.0},
        {"decay_rate": float("inf"), "clip_high_only": True},
        {"distance": "trained", "clip_ratio_low": 0.6},
    ],
)
def test_the_page_computes_what_fipo_computes(html, open_page, knobs):
    page = open_page(html)
    params = FIPOParams(**{**PARAMS_DICT, **knobs})
    for name, value in knobs.items():
        if name in ("clip_high_only", "distance"):
            page.evaluate(f"fipo.change({{ knobs: {{ ...fipo.state.knobs, {name}: {json.dumps(value)} }} }})")
        else:
            place = value if name != "decay_rate" else 91 if value == float("inf") else 10 * np.log2(value)
            slide(page, name, place)
    for index, (sample, update) in {0: (0, 0), 3: (1, 1)}.items():
        one = trace(sample, length=60 + sample, update=update)
        log_ratio = torch.from_numpy(one.log_ratio.astype("float64"))[None]
        mask = torch.from_numpy(one.trained)[None]
        found = page.evaluate(f"fipo.columns({index})")
        out = fipo_loss(log_ratio, 0 * log_ratio, torch.from_numpy(one.advantages)[None], mask, params)
        np.testing.assert_allclose(found["futureKl"], future_kl(log_ratio, mask, params)[0], atol=1e-6)
        np.testing.assert_allclose(found["weight"], out.weight[0], atol=1e-6)


PARAMS_DICT = {name: getattr(PARAMS, name) for name in PARAMS.__dataclass_fields__}


def test_hover_tells_the_arithmetic(html, open_page):
    page = open_page(html)
    token(page, 3).hover()
    one = trace(0, length=60)
    log_ratio, mask = torch.from_numpy(one.log_ratio)[None], torch.from_numpy(one.trained)[None]
    total = future_kl(log_ratio.double(), mask, PARAMS)[0, 3].item()
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


def last_number(text):
    return float(re.findall(r"−?\d[\d.]*(?:e−?\d+)?", text)[-1].replace("−", "-"))


def test_a_control_shows_the_weights_of_the_loss_until_a_knob_moves(tmp_path, open_page):
    used = np.linspace(0.9, 1.1, 60).astype("float32")
    write_traces([trace(0, weight=used)], tmp_path / "a.parquet", PARAMS, control="shuffle")
    page = open_page(render_report(tmp_path / "a.parquet", tmp_path / "a.html"))
    np.testing.assert_array_equal(page.evaluate("fipo.columns(0).weight"), used)
    token(page, 3).hover()
    assert facts(page, "weight in the loss") == f"{used[3]:.6f} (fipo_control shuffle)"
    slide(page, "decay_rate", 91)
    one = trace(0)
    log_ratio, mask = torch.from_numpy(one.log_ratio).double()[None], torch.from_numpy(one.trained)[None]
    params = FIPOParams(**{**PARAMS_DICT, "decay_rate": float("inf")})
    out = fipo_loss(log_ratio, 0 * log_ratio, torch.from_numpy(one.advantages)[None], mask, params)
    np.testing.assert_allclose(page.evaluate("fipo.columns(0).weight"), out.weight[0], atol=1e-6)


def test_a_click_shades_what_is_summed(html, open_page):
    page = open_page(html)
    token(page, 5).click()
    assert "contribution" in page.locator("#legend").text_content()
    assert token(page, 9).get_attribute("style")
    assert not token(page, 4).get_attribute("style")  # earlier
    assert not token(page, 7).get_attribute("style")  # outside
    page.keyboard.press("Escape")
    assert state(page)["selected"] is None


def test_groups_and_updates(html, open_page):
    page = open_page(html)
    page.keyboard.press("g")
    heads = page.locator("#stage h3").all_text_contents()
    assert [re.search(r"sample (\d+)", head)[1] for head in heads] == ["0", "3", "1", "2"]  # by reward
    page.keyboard.press("u")
    assert [re.search(r"update (\d+)", head)[1] for head in page.locator("#stage h3").all_text_contents()] == ["0", "1"]


def test_a_group_spread_over_updates(tmp_path, open_page):
    """As a rollout's updates share its completions out."""
    rows = [trace(sample, update=sample % 3) for sample in range(8)]
    write_traces(rows, tmp_path / "a.parquet", PARAMS)
    page = open_page(render_report(tmp_path / "a.parquet", tmp_path / "a.html"))
    page.keyboard.press("g")
    heads = page.locator("#stage h3").all_text_contents()
    assert sorted(re.search(r"sample (\d+)", head)[1] for head in heads) == ["0", "1", "2", "3"]


def test_hostile_text_is_only_text(html, open_page):
    page = open_page(html, "#at=25")
    texts = page.locator("#stage .token").all_text_contents()
    assert texts[0] == HOSTILE[0].decode()
    assert texts[2].replace("·\u200b", " ") == HOSTILE[2].decode()
    assert texts[3:9] == ["U+202Eabc", "FF", "E2", "82", "€", "U+200B"]
    assert texts[9:13] == ["U+0000U+001B[31m", "U+D800", "C3", "("]
    assert texts[15] == "שלום"
    assert texts[17].startswith("xxx") and texts[17].endswith("… 1,000,000 bytes") and len(texts[17]) < 300
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


def test_summary(html, open_page):
    page = open_page(html, "#tab=summary")
    assert "1 have no log-ratio" in page.locator("#summary-body").text_content()
    assert page.locator("#summary-body .card").count() == 5
    tally = page.evaluate("fipo.summary().classes.reduce((sum, entry) => sum + entry.count, 0)")
    assert tally == sum(2 * (57 + sample) for sample in range(12)) + len(HOSTILE) - 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(html, open_page, scheme):
    page = open_page(html, color_scheme=scheme)
    names = ["--surface", "--raised", "--ink", "--faint", "--low", "--high", "--seq", "--warn", "--accent"]
    read = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue(n).trim())"
    colour = dict(zip(names, page.evaluate(read, names), strict=True))
    for back in ("--surface", "--raised", "--low", "--high", "--seq", "--warn"):
        assert contrast(colour["--ink"], colour[back]) >= 4.5, back
    for back in ("--surface", "--raised", "--warn"):
        assert contrast(colour["--faint"], colour[back]) >= 4.5, back
    assert contrast(colour["--accent"], colour["--surface"]) >= 4.5


def contrast(a, b):
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_a_narrow_screen(html, open_page):
    page = open_page(html, viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    token(page, 3).click()
    assert facts(page, "token").startswith("position 3")


@pytest.mark.parametrize("width", [1440, 1024])
def test_no_table_is_cut_off(html, open_page, width):
    page = open_page(html, "#tab=summary", viewport={"width": width, "height": 900})
    assert page.evaluate(CUT_OFF, [".card", "#summary th, #summary td"]) == []


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_no_column_of_a_group_is_cut_off(html, open_page, width):
    page = open_page(html, "#tab=credit&mode=group", viewport={"width": width, "height": 900})
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
    frames = page.evaluate(SCROLL)
    size = path.stat().st_size / (samples * length)
    told = (
        f"{samples} × {length}: open after {ready:.0f} ms, curves after {curves:.0f} ms, {size:.2f} MB/million "
        f"tokens, slowest frame {frames:.0f} ms"
    )
    print(told)
    assert ready < 3000
    assert page.locator("#stage .token").count() < 4000


SCROLL = """async () => {
  const stage = document.getElementById("stage");
  let [slowest, before] = [0, await new Promise(requestAnimationFrame)];
  for (let i = 0; i < 60; i++) {
    stage.scrollTop += 300;
    const now = await new Promise(requestAnimationFrame);
    [slowest, before] = [Math.max(slowest, now - before), now];
  }
  return slowest;
}"""
