"""Keys, filters, the list of samples, the address and the exports, in a real Chromium."""

import numpy as np
import pytest
from page_driver import click_on_curve, facts, slide, state
from playwright.sync_api import expect
from synthetic_traces import PARAMS, trace, write_metrics

from fipo.params import KNOBS
from fipo.report import render_report
from fipo.report.channels import CHANNELS
from fipo.traces import write_traces

pytestmark = pytest.mark.browser


def test_keys_and_the_address_holds_what_they_chose(html, open_page):
    page = open_page(html)
    page.focus("#samples")  # arrows move in the list that has the focus; those after a button move over tokens
    for keys, at in (("End", 25), ("Home ArrowDown ArrowDown ArrowUp", 1), ("j j k", 2)):
        for key in keys.split():
            page.keyboard.press(key)
        assert state(page)["at"] == at and state(page)["active"] is None
    page.click("#channels button")
    page.keyboard.press("ArrowRight")
    assert state(page)["active"] == 0
    page.evaluate("document.activeElement.blur()")
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert state(page)["active"] > 15  # on the second line
    assert facts(page, "token").startswith(f"position {state(page)['active']} of 61")
    page.keyboard.press("Enter")
    assert state(page)["selected"] == state(page)["active"]
    for key in ("5", "g", "Enter"):  # a channel ends the selection
        page.keyboard.press(key)
    slide(page, "decay_rate", 91)
    assert page.locator("#value-decay_rate").text_content() == "∞ tokens"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("jk1 & see=#1")
    expect_count(page, 0)
    assert state(page)["filters"]["text"] == "jk1 & see=#1"
    assert state(open_page(html, "#" + page.url.split("#", 1)[1])) == state(page)


def test_the_report_opens_on_what_has_something_to_show(tmp_path, open_page):
    rows = [trace(0, advantages=np.zeros(60, "float32")), trace(2), trace(3), trace(4, spread=0.5, reward=0.0)]
    write_traces(rows, tmp_path / "a.parquet", PARAMS)
    page = open_page(render_report(tmp_path / "a.parquet", tmp_path / "a.html"), "")
    assert state(page)["at"] == 1  # went wrong where 3 did not; the last one's weights are wider, but it has no rival
    assert page.locator("#sample-rows [aria-selected=true]").get_attribute("id") == "row-1"


def test_knobs_have_the_helps_and_choices_of_fipo(html, open_page):
    page = open_page(html)
    for name in KNOBS.keys() - {"dual_clip_c", "max_dual_clipped"}:
        assert page.locator(f"label.knob:has(#knob-{name})").get_attribute("title") == KNOBS[name].help
    assert page.locator("#knob-distance option").all_text_contents() == list(KNOBS["distance"].choices)


def expect_count(page, count):
    expect(page.locator("#sample-count")).to_have_text(f"{count} of 26 traces", timeout=4000)


def test_filters_search_and_order(html, open_page):
    page = open_page(html)
    page.click("#filters summary")
    page.fill("#filter-text", "<IMG")
    expect_count(page, 1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert "match" in page.locator("#stage .token").nth(2).get_attribute("class")
    page.click("#filter-reset")
    page.evaluate("""() => {
      for (const [id, value] of [["filter-reward-min", "0.5"], ["filter-length-max", "62"]]) {
        const input = document.getElementById(id);
        input.value = value;
        input.dispatchEvent(new Event("input"));
      }
    }""")
    expect_count(page, 3)  # both, changed in one breath: sample 0 at both updates, and the hostile one
    page = open_page(html, "#filter.flag=safety_capped")
    expect_count(page, 16)  # at exp(1.5) > 3, of those whose advantage is negative; the traces do not record it
    page.select_option("#sort", "length")
    assert page.locator("#sample-rows .row").first.get_attribute("data-index") == "22"  # the longest
    slide(page, "safety_thresh", 20)
    expect_count(page, 0)


def test_export(html, open_page):
    page = open_page(html)
    with page.expect_download() as csv:
        page.click("#export-csv")
    lines = csv.value.path().read_text().splitlines()
    assert len(lines) == 61
    names, first = lines[0].split(","), lines[4].split(",")
    assert names[:3] == ["run", "rollout", "update"]
    assert names[-1 - len(CHANNELS) :] == [*(channel.name for channel in CHANNELS), "flags"]
    value = dict(zip(names[::-1], first[::-1], strict=False))  # from the right: texts may hold commas
    assert float(value["ratio"]) == pytest.approx(np.exp(trace(0).log_ratio[3]))


def test_one_completion_in_two_runs_side_by_side(tmp_path, open_page):
    """As two runs from one seed sample the same at first; the second's weights differ."""
    for run, spread in {"fipo": 0.05, "mean": 0.2}.items():
        rows = [trace(sample, run=run, spread=spread) for sample in range(3)]
        write_traces(rows, tmp_path / run / "traces" / "a.parquet", PARAMS)
    page = open_page(render_report([tmp_path / "fipo", tmp_path / "mean"], tmp_path / "a.html"))
    rows = page.locator("#sample-rows .row")
    assert [row.split("rollout")[0] for row in rows.all_text_contents()] == ["fipo"] * 3 + ["mean"] * 3
    assert rows.nth(1).bounding_box()["y"] - rows.nth(0).bounding_box()["y"] >= 3 * 19
    page.keyboard.press("u")
    heads = page.locator("#stage article header")
    assert [head.split(" · ")[0] for head in heads.locator("h3").all_text_contents()] == ["fipo", "mean"]
    (change,) = page.locator("#stage .change").all_text_contents()
    assert change.startswith("mean change from the first column: weight ")
    first, second = (page.evaluate(f"fipo.columns({at}).weight") for at in (0, 3))
    expected = np.abs(np.array(second) - np.array(first))[trace(0).trained].mean()
    assert float(change.split("weight ")[1].split(",")[0]) == pytest.approx(expected, rel=0.01)


def test_a_point_of_a_curve_opens_the_nearest_rollout(tmp_path, open_page):
    run = write_metrics(tmp_path / "run")
    rows = [trace(sample, rollout=rollout, update=sample % 2) for rollout in (0, 2) for sample in range(8)]
    write_traces(rows, run / "traces" / "a.parquet", PARAMS, updates_per_rollout=2)
    page = open_page(render_report(run, tmp_path / "a.html"), "")
    page.wait_for_selector(".plot.drawn .scatterlayer")
    assert page.evaluate("fipo.page.tracedSteps") == [1, 5]
    assert page.locator("#curves-hint").is_visible()
    for place, expected in {0.15: (0, 0), 0.98: (2, 1)}.items():  # steps 1 and 7
        page.click("#tab-curves")
        click_on_curve(page, place)
        page.wait_for_selector("#stage .token")
        at = page.evaluate("fipo.page.traces[fipo.state.at]")
        assert (at["rollout"], at["update"]) == expected
