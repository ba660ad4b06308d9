"""What happened, in the order in which it did. Layer: cli."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from pgnotifybus.cli.outcomes import say

Kind = Literal["start", "burst", "kill", "down", "up", "gap", "lag", "end", "fault"]

_KEPT: Final = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened."""

    seconds: float
    kind: Kind
    who: str
    """The subscriber it happened to, or the part of the demo that did it."""
    text: str


class Story:
    """The newest entries; each is also written to stderr if nobody watches a live view."""

    def __init__(self, *, aloud: bool) -> None:
        self.entries: deque[Entry] = deque(maxlen=_KEPT)
        self._aloud = aloud
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._began

    def add(self, kind: Kind, who: str, text: str) -> None:
        """Tell that something happened now."""
        entry = Entry(self.seconds, kind, who, text)
        self.entries.append(entry)
        if self._aloud:
            say(f"{entry.seconds:6.2f} s  {who:<8}  {text}")
