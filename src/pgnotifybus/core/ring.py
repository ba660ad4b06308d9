"""The ring: one buffer for any number of readers, each of which is one integer. Layer: core.

Theory of operation. A ring keeps the newest `capacity` values. Positions only grow: the first
value ever appended has position 0, and `tail` is the position of the next one. A reader is a
`Cursor` with the position that it reads next. What a reader sees follows from comparing two
integers::

       positions    ... 40 | 41 42 43 44 45 | 46
                           ^oldest            ^tail
       cursor at 46 : empty
       cursor at 43 : three values are ready
       cursor at 38 : it lagged, three values are gone for it; it goes on at 41

So an append costs the same whatever the number of readers, and a slow reader costs nobody
anything but itself.

A *mark* stands between two values: it is how a gap in the link gets its place in the order. Marks
have no position of their own and are not counted in any accounting. When the values around a mark
have been overwritten, the mark moves up to the oldest value kept, so that a reader that lagged
over it is still told; marks that come to stand at the same place are folded into the newest.
There are therefore never more marks than values, plus one.

Each value may carry a *label*, a second column for what belongs to a value but is not read on the
fast path (the PID of a notification's sender).

A *placeholder* stands where a value has been promised and is not there yet: nobody reads past it
until it is settled, or known to be lost. It is overwritten like any other value.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")
M = TypeVar("M")

# Values beyond the capacity that may stay in the list before it is cut: deleting from the front
# of a list moves what stays, so it is done once for many appends.
_SLACK_DIVISOR: Final = 4
_SLACK_MINIMUM: Final = 16


class Nothing(Enum):
    """The outcome of reading where nothing is yet."""

    NOTHING = "nothing"


NOTHING: Final = Nothing.NOTHING


class Cursor:
    """The place of one reader. Only the ring moves it."""

    __slots__ = ("mark", "position")

    def __init__(self, position: int, mark: int) -> None:
        self.position = position
        self.mark = mark


@dataclass(frozen=True, slots=True)
class Skipped:
    """The outcome of reading too late: this many values were overwritten before they were read."""

    count: int


@dataclass(frozen=True, slots=True)
class Hole(Skipped):
    """The outcome of reading a value that was promised and is lost: it counts as skipped."""

    reason: str


class Placeholder:
    """Stands in the ring for a value that is not there yet."""

    __slots__ = ("lost",)

    def __init__(self) -> None:
        self.lost: str | None = None
        """Why the value will never come; None as long as it may."""


@dataclass(frozen=True, slots=True)
class Mark(Generic[M]):
    """A mark in front of the value at `position`; `number` only grows."""

    position: int
    number: int
    content: M


class Entry(NamedTuple, Generic[T, M]):
    """One value with what belongs to it."""

    value: T
    label: Any
    mark: M | None
    """What the newest mark in front of the value says; None if there never was one."""


class Ring(Generic[T, M]):
    """The newest `capacity` values, the marks between them, and the arithmetic of reading them."""

    __slots__ = (
        "_labels",
        "_limit",
        "_marks",
        "base",
        "capacity",
        "marks_made",
        "placeholders",
        "tail",
        "values",
    )

    def __init__(self, capacity: int) -> None:
        """Make an empty ring.

        Args:
            capacity: How many values are kept for readers that are behind; at least 1, and
                exactly this many.

        Raises:
            TypeError: If the capacity is not an int.
            ValueError: If the capacity is below 1.
        """
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, not {type(capacity).__name__}")
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.tail = 0
        self.values: list[T] = []
        self._labels: list[Any] = []
        self.base = 0  # the position of values[0]
        self._limit = capacity + max(capacity // _SLACK_DIVISOR, _SLACK_MINIMUM)
        self._marks: list[Mark[M]] = []
        self.marks_made = 0
        self.placeholders: list[int] = []
        """The positions of all placeholders that are kept, in their order."""

    @property
    def oldest(self) -> int:
        """The position of the oldest value that can still be read; `tail` if there is none."""
        return max(self.base, self.tail - self.capacity)

    # -- writing ----------------------------------------------------------------------------------

    def extend(
        self, values: Sequence[T], labels: Sequence[Any] = (), placeholders: Sequence[int] = ()
    ) -> None:
        """Add values behind all others, in their order.

        Args:
            values: What to add.
            labels: One for each value. A ring either always gets labels or never.
            placeholders: Which of the values are placeholders, as rising indices.
        """
        self.placeholders.extend(self.tail + index for index in placeholders)
        self.values.extend(values)
        self._labels.extend(labels)
        self.tail += len(values)
        if len(self.values) > self._limit:
            self._trim()

    def settle(self, position: int, value: T) -> None:
        """Put a value where its placeholder stands, unless that has been overwritten."""
        index = bisect_left(self.placeholders, position)
        if index < len(self.placeholders) and self.placeholders[index] == position:
            del self.placeholders[index]
            self.values[position - self.base] = value

    def give_up(self, reason: str) -> None:
        """Hold every value that was promised and is not there to be lost."""
        for position in self.placeholders:
            value = self.values[position - self.base]
            if isinstance(value, Placeholder) and value.lost is None:
                value.lost = reason

    def mark(self, content: M) -> None:
        """Set a mark behind the newest value and in front of the next one."""
        self.marks_made += 1
        if self._marks and self._marks[-1].position == self.tail:
            self._marks.pop()
        self._marks.append(Mark(self.tail, self.marks_made, content))
        self._fold_marks()

    def clear(self) -> None:
        """Forget all values; positions go on from where they are, and the newest mark stays."""
        self.base = self.tail
        self.placeholders.clear()
        self._labels.clear()
        self.values.clear()  # last: a value's finalizer may use this ring
        self._fold_marks()

    def _trim(self) -> None:
        surplus = len(self.values) - self.capacity
        self.base += surplus
        del self.placeholders[: bisect_left(self.placeholders, self.base)]
        del self._labels[:surplus]
        del self.values[:surplus]  # last, as in clear
        self._fold_marks()

    def _fold_marks(self) -> None:
        """Move the marks in front of overwritten values up to the oldest value, as one."""
        marks, oldest = self._marks, self.oldest
        passed = 0
        while passed < len(marks) and marks[passed].position < oldest:
            passed += 1
        if not passed:
            return
        newest = marks[passed - 1]
        del marks[:passed]
        # A mark that stands at the oldest value already is newer: it speaks for both.
        if not (marks and marks[0].position == oldest):
            marks.insert(0, Mark(oldest, newest.number, newest.content))

    # -- reading ----------------------------------------------------------------------------------

    def cursor(self) -> Cursor:
        """A cursor behind everything there is: it will read what is appended from now on."""
        return Cursor(self.tail, self.marks_made)

    def unread(self, cursor: Cursor) -> int:
        """How many values the cursor can still read; never more than the capacity."""
        return self.tail - max(cursor.position, self.oldest)

    def take(self, cursor: Cursor) -> T | Skipped | Nothing:
        """The value at the cursor, which moves on; marks in front of it are passed over.

        A cursor that was overrun moves to the oldest value kept instead, and the outcome is
        `Skipped`; one that has read everything, or stands at a placeholder, stays, and the outcome
        is `NOTHING`. One that stands at a value that is lost moves on, and the outcome is a `Hole`.
        """
        position = cursor.position
        behind = self.tail - position
        if not behind:
            return NOTHING
        if behind > self.capacity or position < self.base:
            return self._overrun(cursor)
        value = self.values[position - self.base]
        if self.placeholders and isinstance(value, Placeholder):
            return self._not_there(cursor, value)
        cursor.position = position + 1
        if cursor.mark != self.marks_made:
            self._pass_marks(cursor)
        return value

    def take_many(self, cursor: Cursor, limit: int | None = None) -> list[T] | Skipped | Nothing:
        """The values from the cursor on, at most `limit`, at least one; otherwise as `take`."""
        position = cursor.position
        behind = self.tail - position
        if not behind:
            return NOTHING
        if behind > self.capacity or position < self.base:
            return self._overrun(cursor)
        start = position - self.base
        if self.placeholders:
            next_one = bisect_left(self.placeholders, position)
            if next_one < len(self.placeholders):
                room = self.placeholders[next_one] - position
                if not room:
                    value = self.values[start]
                    assert isinstance(value, Placeholder)
                    return self._not_there(cursor, value)
                limit = room if limit is None else min(limit, room)
        values = self.values[start : None if limit is None else start + limit]
        cursor.position = position + len(values)
        if cursor.mark != self.marks_made:
            self._pass_marks(cursor)
        return values

    def take_event(self, cursor: Cursor) -> Entry[T, M] | Mark[M] | Skipped | Nothing:
        """The mark at the cursor, or else the value there with its label; otherwise as `take`."""
        position = cursor.position
        if self.tail - position > self.capacity or position < self.base:
            return self._overrun(cursor)
        content: M | None = None
        if cursor.mark == self.marks_made:
            if self._marks:
                content = self._marks[-1].content
        else:
            self._fold_marks()
            for mark in self._marks:
                if mark.position > position:
                    break
                if mark.number > cursor.mark:
                    cursor.mark = mark.number
                    return mark
                content = mark.content
        if position == self.tail:
            return NOTHING
        index = position - self.base
        value = self.values[index]
        if self.placeholders and isinstance(value, Placeholder):
            return self._not_there(cursor, value)
        cursor.position = position + 1
        return Entry(value, self._labels[index] if self._labels else None, content)

    def mark_before(self, cursor: Cursor) -> M | None:
        """What the newest mark in front of the cursor says, of those still kept."""
        content: M | None = None
        for mark in self._marks:
            if mark.position > cursor.position:
                break
            content = mark.content
        return content

    def _not_there(self, cursor: Cursor, placeholder: Placeholder) -> Hole | Nothing:
        if placeholder.lost is None:
            return NOTHING
        cursor.position += 1
        if cursor.mark != self.marks_made:
            self._pass_marks(cursor)
        return Hole(1, placeholder.lost)

    def _overrun(self, cursor: Cursor) -> Skipped:
        skipped = self.oldest - cursor.position
        cursor.position += skipped
        return Skipped(skipped)

    def _pass_marks(self, cursor: Cursor) -> None:
        """Count the marks in front of what has just been read as seen."""
        for mark in self._marks:
            if mark.position >= cursor.position:
                break
            cursor.mark = max(cursor.mark, mark.number)
