"""`python docs/report/example.py RUN`: writes example.html, the report about a run's traces without its curves, and
credit.png, a picture of it as it opens, into this file's folder. Needs Playwright and Debian's chromium."""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from fipo.report import Report
from fipo.traces import TraceSet, read_traces

HERE = Path(__file__).parent
CHROMIUM = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox", "--disable-gpu"]}
PICTURE = {"viewport": {"width": 1440, "height": 720}}


def main(run: str) -> None:
    traces = read_traces(run)
    for trace in traces:
        trace.run = "demo"
    page = Report(traces=[("demo", TraceSet(list(traces), traces.params))]).write(HERE / "example.html")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(**CHROMIUM)
        opened = browser.new_page(**PICTURE)
        opened.goto(page.resolve().as_uri() + "#mode=group")
        opened.locator("article[aria-current=true] .token").nth(4).hover()
        opened.screenshot(path=HERE / "credit.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
