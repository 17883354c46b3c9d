"""Traces and metrics as one HTML page that needs no network. Needs plotly and pyarrow: `pip install 'fipo[report]'`."""

from fipo.report.page import Report, read_report, render_report

__all__ = ["Report", "read_report", "render_report"]
