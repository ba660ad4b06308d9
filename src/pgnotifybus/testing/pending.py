"""The notifications of a transaction that has not committed yet. Layer: testing.

As PostgreSQL does it (async.c): the same channel and payload twice in one transaction is sent once,
in the place of the first; what a savepoint took is merged when it is released, and forgotten when
it is rolled back to.
"""

from __future__ import annotations

from typing import NamedTuple


class Sent(NamedTuple):
    """One notification, as PostgreSQL carries it."""

    channel: str
    wire: str


class Pending:
    """What a transaction will send when it commits."""

    def __init__(self) -> None:
        # A dict for its keys: they are in their order, and none is there twice.
        self._levels: list[dict[Sent, None]] = [{}]

    def add(self, sent: Sent) -> None:
        """Send this at the commit, if nothing that is open now is rolled back before."""
        self._levels[-1][sent] = None

    def open(self) -> None:
        """Begin a savepoint."""
        self._levels.append({})

    def release(self) -> None:
        """End the newest savepoint, and keep what it took."""
        inner = self._levels.pop()
        for sent in inner:
            self._levels[-1].setdefault(sent, None)

    def undo(self) -> None:
        """End the newest savepoint, and forget what it took."""
        self._levels.pop()

    def all(self) -> list[Sent]:
        """What to send now, in its order."""
        return list(self._levels[0])
