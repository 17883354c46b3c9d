"""A page of synthetic traces, opened in a real Chromium, from disk, with nothing to reach."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from synthetic_traces import HOSTILE, PARAMS, trace, write_metrics

from fipo.report import render_report
from fipo.traces import write_traces

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


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


@pytest.fixture(scope="module")
def html(run):
    return render_report(run / "traces" / "a.parquet", run.parent / "traces.html")


@pytest.fixture
def open_page(browser):
    """Opens a page; fails the test if the page throws, or asks for anything but itself."""
    contexts, complaints = [], []

    def open_it(path, fragment="#at=0", **options):  # "": where the report opens by itself
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
