"""The naive model of a ring: it keeps everything for ever and works out each answer anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = (
    tuple[Literal["value"], int, int | None]
    | tuple[Literal["values"], list[int]]
    | tuple[Literal["skipped"], int]
    | tuple[Literal["hole"], str]
    | tuple[Literal["mark"], int]
)
"""A value with the newest mark in front of it; several values; how many are gone; why one that was
promised is lost; a mark."""


@dataclass
class Log:
    """All that was ever sent, and where the marks stood. Marks are numbered from 1."""

    capacity: int
    sent: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    """For each mark how many values were sent before it."""
    promised: dict[int, str | None] = field(default_factory=dict)
    """The positions of the values that are not there yet, or lost, and why."""
    forgotten: int = 0
    """All values before this one were cleared."""

    @property
    def oldest(self) -> int:
        return max(self.forgotten, len(self.sent) - self.capacity)

    def settle(self, position: int) -> None:
        self.promised.pop(position, None)

    def lose(self, position: int, reason: str) -> None:
        if position in self.promised:
            self.promised[position] = reason

    def give_up(self, reason: str) -> None:
        for position, lost in self.promised.items():
            if lost is None:
                self.promised[position] = reason

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
        lost = self.log.promised.get(self.position)
        if lost is not None:
            self.skipped += 1
            self._go_on(self.position + 1)
            return ("hole", lost)
        end = len(self.log.sent)
        if limit is not None:
            end = min(end, self.position + limit)
        end = min([end, *(at for at in self.log.promised if at >= self.position)])
        values = self.log.sent[self.position : end]
        if not values:
            return None
        self.delivered += values
        self._go_on(end)
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

    def has_news(self, *, of_marks: bool) -> bool:
        """Whether there is something to take: a value, a loss, or a mark behind the first one."""
        log = self.log
        if self.position < log.oldest or log.promised.get(self.position) is not None:
            return True
        return (self.position < len(log.sent) and self.position not in log.promised) or (
            of_marks
            and any(
                number > max(self.mark, 1) and at <= self.position
                for number, at in enumerate(log.marks, 1)
            )
        )

    def _go_on(self, position: int) -> None:
        self.position = position
        self.mark = max(self.mark, self.log.newest_mark(position - 1) or 0)

    def _overrun(self) -> Outcome | None:
        lost = self.log.oldest - self.position
        if lost <= 0:
            return None
        self.position += lost
        self.skipped += lost
        return ("skipped", lost)
