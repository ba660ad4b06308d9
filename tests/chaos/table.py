"""The results as a table, and where it stands in the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from chaos.cases import CASES
from chaos.trial import Outcome

BEGIN: Final = "<!-- made by `make chaos` -->"
END: Final = "<!-- end -->"
_BY: Final = {"kernel": "the socket", "probe": "a probe", "nobody": "nothing is lost"}


def rows(results: Mapping[str, Sequence[Outcome]]) -> str:
    """The table, in Markdown; only of the faults that were tried."""
    lines = [
        "| Fault | Told by | Noticed after | Live again after |",
        "| --- | --- | --- | --- |",
    ]
    for name, case in CASES.items():
        outcomes = results.get(name)
        if outcomes:
            noticed = _times([each.noticed for each in outcomes])
            live = _times([each.live for each in outcomes])
            lines.append(f"| {case.title} | {_BY[case.noticed_by]} | {noticed} | {live} |")
    return "\n".join(lines)


def write(path: Path, table: str) -> None:
    """Put a table in the place of the one before; faults that were not tried keep their rows."""
    before, _, rest = path.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    known = {line.split("|")[1].strip(): line for line in f"{old}\n{table}".splitlines() if line}
    titles = ["Fault", "---", *(case.title for case in CASES.values())]
    lines = "\n".join(known[title] for title in titles if title in known)
    path.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}")


def _times(seconds: Sequence[float | None]) -> str:
    known = [each for each in seconds if each is not None]
    if not known:
        return ""
    return f"{_time(statistics.median(known))}, {_time(max(known))}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
