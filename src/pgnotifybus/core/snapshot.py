"""Snapshots of PostgreSQL: which transactions had ended at one moment. Layer: core.

A transaction is *seen* by a snapshot if it had ended before. On one server snapshots are in order:
whatever one has seen, every later one has seen too.

Source: https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final, NamedTuple

_TEXT: Final = re.compile(r"([0-9]+):([0-9]+):((?:[0-9]+(?:,[0-9]+)*)?)")

MAX_XID: Final = 2**64 - 1


class Snapshot(NamedTuple):
    """A `pg_snapshot` without its lower bound, which follows from the rest."""

    end: int
    """The transactions from this id on had not ended: its xmax."""
    running: tuple[int, ...] = ()
    """Those below that had not ended either, in rising order: its xip."""

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read PostgreSQL's text of a snapshot.

        Raises:
            ValueError: If it is none.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"not a snapshot: {text!r}")
        running = tuple(int(each) for each in found[3].split(",") if each)
        return cls(int(found[2]), running)

    def __str__(self) -> str:
        """PostgreSQL's text of it."""
        start = self.running[0] if self.running else self.end
        return f"{start}:{self.end}:{','.join(map(str, self.running))}"

    def sees(self, xid: int) -> bool:
        """Whether a transaction had ended."""
        if xid >= self.end:
            return False
        index = bisect_left(self.running, xid)
        return index == len(self.running) or self.running[index] != xid

    def covers(self, other: Snapshot) -> bool:
        """Whether this has seen whatever the other has seen."""
        if other.end > self.end:
            # Between the two ends the other has seen all but what it knows to be running.
            unseen = other.end - self.end
            running = len(other.running) - bisect_left(other.running, self.end)
            if running < unseen:
                return False
        return all(not other.sees(xid) for xid in self.running)
