"""The naive model of a ring: it keeps everything for ever and works out each answer anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = (
    tuple[Literal["value"], int, int | None]
    | tuple[Literal["values"], list[int]]
    | tuple[Literal["skipped"], int]
    | tuple[Literal["mark"], int]
)
"""A value with the newest mark in front of it; several values; how many are gone; a mark."""


@dataclass
class Log:
    """All that was ever sent, and where the marks stood. Marks are numbered from 1."""

    capacity: int
    sent: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    """For each mark how many values were sent before it."""
    forgotten: int = 0
    """All values before this one were cleared."""

    @property
    def oldest(self) -> int:
        return max(self.forgotten, len(self.sent) - self.capacity)

    def newest_mark(self, position: int) -> int | None:
        """The number of the newest mark in front of the value at the position."""
        return max((n for n, at in enumerate(self.marks, 1) if at <= position), default=None)


@dataclass
class Reader:
    """One reader: a position, the number of the newest mark it was told of or read past."""

    log: Log
    start: int
    position: int
    mark: int
    delivered: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    skipped: int = 0

    @classmethod
    def of(cls, log: Log) -> Reader:
        return cls(log, len(log.sent), len(log.sent), len(log.marks))

    @property
    def unread(self) -> int:
        """How many values can still be read."""
        return len(self.log.sent) - max(self.position, self.log.oldest)

    def take_many(self, limit: int | None = None) -> Outcome | None:
        if (overrun := self._overrun()) is not None:
            return overrun
        end = len(self.log.sent)
        if limit is not None:
            end = min(end, self.position + limit)
        values = self.log.sent[self.position : end]
        if not values:
            return None
        self.delivered += values
        self.position = end
        self.mark = max(self.mark, self.log.newest_mark(end - 1) or 0)
        return ("values", values)

    def take(self) -> Outcome | None:
        match self.take_many(1):
            case ("values", [value]):
                return ("value", value, self.log.newest_mark(self.position - 1))
            case other:
                return other

    def take_event(self) -> Outcome | None:
        if (overrun := self._overrun()) is not None:
            return overrun
        # Where each mark stands now: those in front of overwritten values have moved up, and of
        # those at one place only the newest counts.
        standing: dict[int, int] = {}
        for number, at in enumerate(self.log.marks, 1):
            standing[max(at, self.log.oldest)] = number
        for at, number in sorted(standing.items()):
            if at <= self.position and number > self.mark:
                self.mark = number
                self.told.append(number)
                return ("mark", number)
        return self.take()

    def _overrun(self) -> Outcome | None:
        lost = self.log.oldest - self.position
        if lost <= 0:
            return None
        self.position += lost
        self.skipped += lost
        return ("skipped", lost)
