"""The table of metrics in the documentation is the definition."""

from __future__ import annotations

from pgnotifybus.metrics.definition import METRICS
from support.documents import ROOT


def table() -> str:
    """The table, in Markdown."""
    lines = ["| Metric | Kind | Labels | What it says |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.prometheus}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def test_the_page_shows_every_metric_as_it_is_defined() -> None:
    page = (ROOT / "docs/howto/metrics.md").read_text()
    assert table() in page, f"put this into docs/howto/metrics.md:\n{table()}"
