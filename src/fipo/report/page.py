"""Assembles the report: reads runs, packs their data, and puts styles, modules and data into one HTML file."""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from posixpath import dirname, join, normpath

from plotly.offline import get_plotlyjs

from fipo import __version__
from fipo.errors import DataError
from fipo.params import KNOBS
from fipo.report.curves import Metrics, draw_curves, read_metrics
from fipo.report.pack import pack_json, pack_text, pack_traces
from fipo.run_folder import METRICS_FILE, TRACES_FOLDER, traces_folder, whole_file
from fipo.traces import TraceSet, read_traces

MAX_TRACE_BYTES = 100_000_000  # of Parquet a run; about four million tokens, which a browser opens in two seconds
IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";$', re.MULTILINE)  # the only forms that web/ uses
EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.MULTILINE)

Runs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(slots=True)
class Report:
    """What a report shows."""

    metrics: list[Metrics] = field(default_factory=list)
    traces: list[tuple[str, TraceSet]] = field(default_factory=list)  # label of the run, its traces
    problems: list[str] = field(default_factory=list)  # a message for each thing that could not be read

    def write(self, output: str | os.PathLike[str]) -> Path:
        """Writes the HTML file, whole or not at all."""
        with whole_file(output) as partial:
            partial.write_text(self.html(), encoding="utf-8")
        return Path(output)

    def html(self) -> str:
        """The HTML. Data reach it only in base64, so browsers never parse them as HTML."""
        names = [run.run for run in self.metrics] + [label for label, _ in self.traces]
        charts = draw_curves(self.metrics)
        blocks = pack_traces(self.traces) if self.traces else {}
        if charts:
            blocks |= {"charts": pack_json(charts)}
        return _page(", ".join(dict.fromkeys(names)), self.problems, blocks, plotly=bool(charts))


def render_report(runs: Runs, output: str | os.PathLike[str]) -> Path:
    """Writes a report of one or several runs: one self-contained HTML file.

    Args:
        runs: Run folders, with metrics.jsonl, traces/ or both, or files of traces or metrics; one or a list.
        output: The HTML file; an existing one is replaced.

    Returns:
        The path of the report.

    Raises:
        DataError: A path does not exist or holds neither metrics nor traces, or nothing in any could be read.
    """
    return read_report(runs).write(output)


def read_report(runs: Runs) -> Report:
    """Reads what `render_report` shows; arguments and errors are the same."""
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if not paths:
        raise DataError("No run was given, but a report needs at least one; name a run's folder.")
    report = Report()
    for path, label in zip(paths, labels_of(paths), strict=True):
        if not path.exists():
            raise DataError(f"{path} does not exist, but must be a run's folder or a file of traces; check the path.")
        metrics = path if path.suffix == ".jsonl" and path.is_file() else path / METRICS_FILE
        has_metrics = metrics.is_file()
        has_traces = any(traces_folder(path).glob("*.parquet")) or (path.is_file() and not has_metrics)
        if not has_metrics and not has_traces:
            raise DataError(
                f"{path} holds neither {METRICS_FILE} nor {TRACES_FOLDER}/*.parquet, but a report needs one of them; "
                "name the output_dir of `fipo train`."
            )
        try:
            if has_metrics:
                report.metrics.append(read_metrics(metrics, label))
                report.problems += report.metrics[-1].problems
        except DataError as error:
            report.problems.append(str(error))
        try:
            if has_traces:
                report.traces.append((label, read_traces(path, max_bytes=MAX_TRACE_BYTES)))
                report.problems += report.traces[-1][1].problems
        except DataError as error:
            report.problems.append(str(error))
    if not report.metrics and not report.traces:
        raise DataError(" ".join(report.problems))
    return report


def live_page(labels: list[str]) -> str:
    """The page that `fipo watch` serves: it asks for its data, of the server that it came from alone."""
    return _page(", ".join(labels), [], {}, plotly=True, live=True)


def labels_of(paths: list[Path]) -> list[str]:
    """The last part of each path, as much of it as no two runs share."""
    whole = [path.resolve().with_suffix("") if path.is_file() else path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        labels = [os.fsencode("/".join(path.parts[-depth:])).decode(errors="replace") for path in whole]
        if len(set(labels)) == len(set(whole)):
            break
    return labels


def _page(title: str, problems: list[str], blocks: dict[str, str], *, plotly: bool, live: bool = False) -> str:
    knobs = {name: asdict(knob) for name, knob in KNOBS.items()}
    about = {"title": title, "problems": problems, "version": __version__, "knobs": knobs, "live": live}
    blocks = {"about": pack_json(about)} | blocks
    scripts = [_script()]
    if plotly:
        scripts.append(_normal(get_plotlyjs()))
        blocks["plotly"] = pack_text(scripts[1])  # as megabytes of script it would hold up all else
    # These scripts alone run, known by their hashes; only a live page sends requests, to its own server.
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed, reachable = " ".join(f"'sha256-{value}'" for value in hashes), "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {reachable}; base-uri 'none'; form-action 'none'"
    )
    data = (f'<script type="text/plain" id="data-{name}">{text}</script>' for name, text in blocks.items())
    parts = {"policy": policy, "title": escape(title), "data": "\n".join(data), "script": scripts[0]}
    parts["style"] = _web_file("report.css")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _web_file("template.html"))


def _script() -> str:
    """The front end's modules as one classic script: the report's policy allows no module from elsewhere.

    Each becomes a function's scope that returns its exports, behind those that it imports.
    """
    scopes: dict[str, str] = {}

    def add(path: str) -> str:
        name = "$" + path.removesuffix(".js").replace("/", "_")
        if path not in scopes:

            def bind(found: re.Match[str]) -> str:
                return f"const {{{found[1]}}} = {add(normpath(join(dirname(path), found[2])))};"

            body = IMPORT.sub(bind, _web_file(path))
            exports = ", ".join(EXPORT.findall(body))
            scopes[path] = f"const {name} = (() => {{\n{EXPORT.sub('', body)}\nreturn {{ {exports} }};\n}})();"
        return name

    add("main.js")
    return _normal('(() => {\n"use strict";\n' + "\n".join(scopes.values()) + "\n})();")


def _normal(script: str) -> str:
    """Browsers turn \\r\\n into \\n before they hash, and `</script` would end the element."""
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _web_file(name: str) -> str:
    return (files("fipo.report") / "web" / name).read_text(encoding="utf-8")
