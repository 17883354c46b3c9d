"""Assembles the page: reads runs, packs their data, and puts styles, scripts and data into one HTML file."""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from fipo import __version__
from fipo.errors import DataError
from fipo.params import KNOBS
from fipo.report.curves import Metrics, draw_curves, read_metrics
from fipo.report.pack import pack_json, pack_text, pack_traces
from fipo.run_folder import METRICS_FILE, TRACES_FOLDER, whole_file
from fipo.traces import TraceSet, read_traces

SCRIPTS = (
    "whatif.js", "decode.js", "data.js", "channels.js", "tokens.js", "arithmetic.js",
    "samples.js", "credit.js", "knobs.js", "summary.js", "curves.js", "export.js", "main.js",
)  # fmt: skip

MAX_TRACE_BYTES = 100_000_000  # of Parquet a run; about four million tokens, which a browser opens in two seconds

Runs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(slots=True)
class Report:
    """What a page shows."""

    metrics: list[Metrics] = field(default_factory=list)
    traces: list[tuple[str, TraceSet]] = field(default_factory=list)  # label of the run, its traces
    problems: list[str] = field(default_factory=list)  # sentences about what could not be read

    def write(self, output: str | os.PathLike[str]) -> Path:
        """Writes the page, whole or not at all."""
        with whole_file(output) as partial:
            partial.write_text(self.html(), encoding="utf-8")
        return Path(output)

    def html(self) -> str:
        """The page. What data say reaches it only in base64, so nothing in them is ever parsed as HTML."""
        names = [run.run for run in self.metrics] + [label for label, _ in self.traces]
        title = ", ".join(dict.fromkeys(names))
        charts = draw_curves(self.metrics)
        about = {"title": title, "problems": self.problems, "version": __version__, "knobs": _knobs()}
        blocks = {"about": pack_json(about)}
        scripts, packed_scripts = [_script()], []
        if charts:
            packed_scripts = [_normal(get_plotlyjs())]  # as megabytes of script it would hold up all else
            blocks |= {"charts": pack_json(charts), "plotly": pack_text(*packed_scripts)}
        if self.traces:
            blocks |= pack_traces(self.traces)
        return _fill(
            _static("template.html"),
            policy=_policy(scripts + packed_scripts),
            title=escape(title),
            style=_static("report.css"),
            data="\n".join(_block(name, text) for name, text in blocks.items()),
            scripts="\n".join(f"<script>{script}</script>" for script in scripts),
        )


def render_report(runs: Runs, output: str | os.PathLike[str]) -> Path:
    """Writes one self-contained HTML page about one or several runs.

    Args:
        runs: Run folders, with metrics.jsonl, traces/ or both, or files of traces or metrics; one or a list.
        output: The HTML file; an existing one is replaced.

    Returns:
        The path of the page.

    Raises:
        DataError: A path does not exist, or holds neither metrics nor traces.
    """
    return read_report(runs).write(output)


def read_report(runs: Runs) -> Report:
    """Reads what `render_report` shows; arguments and errors are the same."""
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if not paths:
        raise DataError("No run was given, but a report needs at least one; name a run's folder.")
    report = Report()
    for path, label in zip(paths, _labels(paths), strict=True):
        _read_run(path, label, report)
    return report


def _read_run(path: Path, label: str, report: Report) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist, but must be a run's folder or a file of traces; check the path.")
    metrics, traces = _sources(path)
    if metrics is None and traces is None:
        raise DataError(
            f"{path} holds neither {METRICS_FILE} nor {TRACES_FOLDER}/*.parquet, but a report needs one of them; "
            "name the output_dir of `fipo train`."
        )
    failures = []
    if metrics is not None:
        try:
            report.metrics.append(read_metrics(metrics, label))
            report.problems += report.metrics[-1].problems
        except DataError as error:
            failures.append(str(error))
    if traces is not None:
        try:
            found = read_traces(traces, max_bytes=MAX_TRACE_BYTES)
            report.traces.append((label, found))
            report.problems += found.problems
        except DataError as error:
            failures.append(str(error))
    if len(failures) == (metrics is not None) + (traces is not None):
        raise DataError(" ".join(failures))
    report.problems += failures


def _sources(path: Path) -> tuple[Path | None, Path | None]:
    """Where the metrics and the traces are, if at all."""
    if path.is_file():
        return (path, None) if path.suffix == ".jsonl" else (None, path)
    metrics = path / METRICS_FILE
    has_traces = any(path.glob(f"{TRACES_FOLDER}/*.parquet")) or any(path.glob("*.parquet"))
    return metrics if metrics.is_file() else None, path if has_traces else None


def _labels(paths: list[Path]) -> list[str]:
    """The last part of each path, as much of it as tells the runs apart."""
    whole = [path.resolve().with_suffix("") if path.is_file() else path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(labels)) == len(set(whole)):
            break
    return labels


def _knobs() -> dict[str, dict[str, Any]]:
    """What the sliders need of fipo.params.KNOBS."""
    return {
        name: {
            "default": knob.default,
            "help": knob.help,
            "low": knob.low,
            "high": knob.high,
            "lowOpen": knob.low_open,
            "highOpen": knob.high_open,
            "choices": knob.choices,
        }
        for name, knob in KNOBS.items()
    }


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="data-{name}">{text}</script>'


def _policy(scripts: list[str]) -> str:
    """Nothing may be requested, and no script runs but those written here, known by their hashes."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _script() -> str:
    """All scripts in one scope of their own, with the page's constants."""
    body = "\n".join(_static(name) for name in SCRIPTS)
    return _normal(f'(() => {{\n"use strict";\n{body}\n}})();')


def _normal(script: str) -> str:
    """Browsers turn \\r\\n into \\n before they hash, and `</script` would end the element."""
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _static(name: str) -> str:
    return (files("fipo.report") / "web" / name).read_text(encoding="utf-8")


def _fill(template: str, **parts: str) -> str:
    """Puts every part at its own place; what a part holds is not looked at again."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)
