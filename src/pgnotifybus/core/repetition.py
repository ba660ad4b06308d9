"""Which failures have been told, so that nobody reads the same again and again. Layer: core.

A server that is away fails in a few ways, in turn: the name is not known, the connection is
refused, the server is starting. Each way is told once. What an error says may differ from one
attempt to the next only in a number, of a port, a process or a position: that is the same way.
"""

from __future__ import annotations

import re
from typing import Final

REMEMBERED: Final = 12
"""So many ways to fail are told of each kind. A thirteenth within ten minutes is no news, but
noise; and noise of one kind must not drown another."""

FORGOTTEN_AFTER: Final = 600.0
"""Seconds without a failure after which it is news again: attempts are at most a minute apart."""

_NUMBER: Final = re.compile(
    r"\b[0-9A-F]+/[0-9A-F]+\b"  # a position in the WAL
    r"|\b[0-9A-Fa-f]*[0-9][0-9A-Fa-f]*\b"
    r"|[0-9]+"
)


class Repetition:
    """The failures since things were last well."""

    __slots__ = ("_seen_at",)

    def __init__(self) -> None:
        self._seen_at: dict[tuple[str, str], float] = {}

    def is_news(self, kind: str, failure: str, now: float) -> bool:
        """Take note of a failure; whether to tell it.

        Args:
            kind: What has failed.
            failure: What is said about it.
            now: Seconds of any clock that only goes forward.
        """
        seen_at = self._seen_at
        for stale in [each for each, at in seen_at.items() if now - at >= FORGOTTEN_AFTER]:
            del seen_at[stale]
        way = kind, _NUMBER.sub("0", failure)
        new = way not in seen_at
        if new and sum(seen == kind for seen, _ in seen_at) >= REMEMBERED:
            return False
        seen_at[way] = now
        return new

    def forget(self) -> None:
        """Things are well: whatever fails from now on is news."""
        self._seen_at.clear()
