"""The report as a reader meets it: in a real Chromium, from disk, with nothing to reach."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import expect, sync_playwright
from synthetic_traces import PARAMS, trace

import fipo.report
from fipo import DataError, FIPOParams, fipo_loss, future_kl
from fipo.cli import main
from fipo.report import render_report
from fipo.traces import write_traces

STATIC = Path(fipo.report.__file__).parent / "static"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = [
    b"</script><script>window.hacked=1</script>", b"<!--", b"<img src=https://example.com/x onerror=window.hacked=1>",
    "\u202eabc".encode(), b"\xff", b"\xe2", b"\x82", b"\xac", "\u200b".encode(), b"\x00\x1b[31m", b"\xed\xa0\x80",
    b"\xc3", b"(", b"\t", b"\n", "שלום".encode(), "e\u0301".encode(), b"x" * 1_000_000, b"",
]  # fmt: skip

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} does not exist, but these tests drive it; install Debian's package `chromium`.")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with traces of 12 completions at 2 updates, an imported one, and metrics."""
    folder = tmp_path_factory.mktemp("report") / "demo_s0"
    rows = [trace(sample, length=60 + sample, update=update) for sample in range(12) for update in range(2)]
    rows.append(trace(50, log_ratio=None, logps=None, group=40))
    rows.append(trace(51, pieces=HOSTILE, group=41, prompt="<b>\u202e</script>", stop_reason="<i>"))
    write_traces(rows, folder / "traces" / "a.parquet", PARAMS)
    write_metrics(folder)
    return folder


def write_metrics(folder, offset=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "step": step,
            "reward": step / 10 + offset,
            "fipo/weight_mean": 1,
            "fipo/weight_min": 0.8,
            "fipo/weight_max": 1.2,
        }
        for step in range(8)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def html(run):
    return render_report(run / "traces" / "a.parquet", run.parent / "traces.html")


@pytest.fixture
def open_page(browser):
    """Opens a page; fails the test if the page throws, or asks for anything but itself."""
    contexts, complaints = [], []

    def open_it(path, fragment="", **options):
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: complaints.append(request.url) if is_outside(request.url) else None)
        page.goto(f"{path.as_uri()}{fragment}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


def is_outside(url):
    return not url.startswith(("file:", "blob:", "data:"))


def state(page):
    return page.evaluate("fipo.state")


def token(page, t, index=0):
    return page.locator(f"#token-{index}-{t}")


def facts(page, name):
    return page.locator(f"#arithmetic dt:text-is('{name}') + dd").text_content()


def slide(page, name, value):
    page.eval_on_selector(f"#knob-{name}", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def test_tokens_and_channels(html, open_page):
    page = open_page(html)
    assert page.locator("#stage .token").count() == 60
    assert page.locator("#sample-count").text_content() == "26 traces"
    assert "untrained" in token(page, 30).get_attribute("class")
    assert token(page, 7).get_attribute("data-marks") == "o"
    assert token(page, 13).get_attribute("data-marks") == "d"
    colours = set()
    for key, name in enumerate(["log_ratio", "future_kl", "weight", "advantage × weight", "entropy", "ratio"], 1):
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


def test_keys(html, open_page):
    page = open_page(html)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert state(page)["at"] == 1
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert state(page)["active"] > 15  # on the second line
    assert facts(page, "token").startswith(f"position {state(page)['active']} of 60")
    page.keyboard.press("Enter")
    assert state(page)["selected"] == state(page)["active"]
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("jk1")
    assert page.locator("#filter-text").input_value() == "jk1"


def expect_count(page, count):
    expect(page.locator("#sample-count")).to_have_text(f"{count} of 26 traces", timeout=4000)


def test_filters_and_search(html, open_page):
    page = open_page(html)
    page.click("#filters summary")
    page.fill("#filter-reward-min", "0.5")
    expect_count(page, 9)
    page.select_option("#filter-sign", "-1")
    expect_count(page, 0)
    page.click("#filter-reset")
    page.fill("#filter-text", "<IMG")
    expect_count(page, 1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert "match" in page.locator("#stage .token").nth(2).get_attribute("class")
    page.click("#filter-reset")
    page.select_option("#filter-flag", "untrained")
    page.fill("#filter-length-max", "60")
    expect_count(page, 4)


def test_the_address_holds_the_view(html, open_page):
    page = open_page(html)
    page.keyboard.press("j")
    page.keyboard.press("5")
    page.keyboard.press("g")
    slide(page, "decay_rate", 91)
    page.evaluate("fipo.change({ filters: { ...fipo.state.filters, text: 'wait & see=#1' }, active: 3, selected: 3 })")
    expected = state(page)
    again = open_page(html, "#" + page.url.split("#", 1)[1])
    assert state(again) == expected
    open_page(html, "#at=9999&mode=x&selected=-1&knob.decay_rate=-3&knob.__proto__=1&filter.x=1&channel=%00")


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


def test_export(html, open_page):
    page = open_page(html)
    with page.expect_download() as csv:
        page.click("#export-csv")
    lines = csv.value.path().read_text().splitlines()
    assert len(lines) == 61
    assert lines[0].startswith("run,rollout,update")
    with page.expect_download() as png:
        page.click("#export-png")
    assert png.value.path().read_bytes().startswith(b"\x89PNG")


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


def test_metrics_alone(tmp_path, open_page):
    page = open_page(render_report(write_metrics(tmp_path / "only"), tmp_path / "report.html"))
    assert page.locator("#tab-credit").is_hidden()
    assert page.locator("#charts h3").count() == 2


def test_nothing_to_show(tmp_path):
    with pytest.raises(
        DataError, match=r"holds neither metrics.jsonl nor traces/\*.parquet, but .* name the output_dir"
    ):
        render_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(DataError, match="nowhere does not exist"):
        render_report(tmp_path / "nowhere", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_page_and_problems(run, tmp_path, capsys, open_page):
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
    assert open_page(output).locator("#problems li").count() == 2


def test_scripts_share_a_scope_without_clashes():
    names = [
        name
        for file in STATIC.glob("*.js")
        for name in re.findall(r"^(?:async )?function (\w+)", file.read_text(), re.M)
    ]
    assert len(names) > 100
    assert sorted(names) == sorted(set(names))


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
