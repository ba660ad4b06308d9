"""One thing that was found. Layer: diagnosis."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Level = Literal["ok", "note", "warning", "problem"]

LEVELS: Final[tuple[Level, ...]] = ("ok", "note", "warning", "problem")
"""From what is well to what keeps a bus from working."""


class Finding(NamedTuple):
    """What was seen of one thing."""

    id: str
    """Stable, for scripts: see docs/howto/doctor.md."""
    level: Level
    seen: str
    why: str = ""
    """Why it matters."""
    advice: str = ""
    """What to do."""


def worst(findings: list[Finding]) -> Level:
    """The gravest level among them; ok if there are none."""
    return max((each.level for each in findings), key=LEVELS.index, default="ok")
