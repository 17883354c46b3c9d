"""A page of synthetic traces, opened in a real Chromium, from disk, with nothing to reach."""

from pathlib import Path
from urllib.parse import urlsplit

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
    """Opens a file, or what `fipo watch` serves; fails the test if the page throws, or asks for anything but itself."""
    contexts, complaints = [], []

    def open_it(place, fragment="#at=0", **options):  # "": where the report opens by itself
        live = isinstance(place, str)
        own = ("blob:", "data:", f"http://{urlsplit(place).netloc}/" if live else "file:")
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000 if live else 8000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else complaints.append(request.url))
        if not live:  # a server that ends is an error to the console
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(f"{place if live else place.as_uri()}{fragment}")
        if not live:
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []
