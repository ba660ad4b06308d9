"""The ring against the naive model, whatever the order of writing and reading."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgnotifybus.core.ring import Cursor, Entry, Hole, Mark, Nothing, Placeholder, Ring, Skipped
from property.naive import Log, Outcome, Reader

LABEL = 10_000
"""The label of the value v is LABEL + v, so that a label at the wrong value shows."""


def outcome(taken: object) -> Outcome | None:
    """What a read of the ring gave, in the words of the model."""
    match taken:
        case Nothing.NOTHING:
            return None
        case Hole(count, reason):
            assert count == 1
            return ("hole", reason)
        case Skipped(count):
            return ("skipped", count)
        case Mark(content=content):
            return ("mark", content)
        case Entry(value, label, mark):
            assert label == LABEL + value
            return ("value", value, mark)
        case list():
            return ("values", taken)
        case _:
            raise AssertionError(taken)


class RingMachine(RuleBasedStateMachine):
    """A ring with up to five readers; values and marks are numbers that only grow.

    Some values are promised, and come later, or never.
    """

    @initialize(capacity=st.integers(1, 9))
    def make(self, capacity: int) -> None:
        self.ring: Ring[Any, int] = Ring(capacity)
        self.log = Log(capacity)
        self.promises: dict[int, Placeholder] = {}
        """All that there ever were, also those that are settled or overwritten."""
        self.readers: list[tuple[Cursor, Reader]] = []

    @rule(count=st.one_of(st.integers(0, 4), st.integers(0, 80)))
    def extend(self, count: int) -> None:
        first = len(self.log.sent)
        values = range(first, first + count)
        self.ring.extend(values, [LABEL + value for value in values])
        self.log.sent += values

    @rule(
        kept=st.lists(st.booleans(), max_size=6), before=st.integers(0, 80), late=st.integers(0, 9)
    )
    def promise(self, kept: list[bool], before: int, late: int) -> None:
        """Some values that are there and some that are not, anywhere in a batch."""
        first = len(self.log.sent)
        there = [True] * (before if before > 60 else before % 3) + kept + [True] * (late % 3)
        values: list[Any] = [*range(first, first + len(there))]
        self.log.sent += values
        placeholders = [index for index, is_there in enumerate(there) if not is_there]
        for index in placeholders:
            values[index] = self.promises[first + index] = Placeholder()
            self.log.promised[first + index] = None
        labels = [LABEL + first + index for index in range(len(there))]
        self.ring.extend(values, labels, placeholders)

    @precondition(lambda self: self.promises)
    @rule(data=st.data(), way=st.sampled_from(["settle", "settle", "lose", "settle all"]))
    def keep_or_break_a_promise(self, data: st.DataObject, way: str) -> None:
        """In any order, at any time, also what is lost, settled, overwritten or cleared."""
        recent = sorted(self.promises)[-8:]
        position = data.draw(st.sampled_from(recent) | st.sampled_from(sorted(self.promises)))
        match way:
            case "lose":
                reason = data.draw(st.sampled_from(["expired", "unreadable"]))
                self.promises[position].lost = reason
                self.log.lose(position, reason)
            case "settle":
                self.ring.settle(position, position)
                self.log.settle(position)
            case _:
                for each in self.promises:
                    self.ring.settle(each, each)
                    self.log.settle(each)

    @rule(data=st.data())
    def settle_what_was_never_promised(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(self.log.sent) + 1))
        if position not in self.log.promised:
            self.ring.settle(position, -1)

    @rule(really=st.sampled_from([False, False, True]))
    def give_up(self, really: bool) -> None:
        if really:
            self.ring.give_up("given up")
            self.log.give_up("given up")

    @rule()
    def mark(self) -> None:
        self.log.marks.append(len(self.log.sent))
        self.ring.mark(len(self.log.marks))

    @rule()
    def clear(self) -> None:
        self.ring.clear()
        self.log.forgotten = len(self.log.sent)

    @precondition(lambda self: len(self.readers) < 5)
    @rule()
    def subscribe(self) -> None:
        self.readers.append((self.ring.cursor(), Reader.of(self.log)))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), way=st.sampled_from(["take", "take_many", "take_event", "all events"]))
    def read(self, data: st.DataObject, way: str) -> None:
        cursor, reader = data.draw(st.sampled_from(self.readers))
        match way:
            case "take":
                value = self.ring.take(cursor)
                expected = reader.take()
                match expected:
                    case ("value", number, _):
                        assert value == number
                    case _:
                        assert outcome(value) == expected
            case "take_many":
                limit = data.draw(st.none() | st.integers(1, 12))
                assert outcome(self.ring.take_many(cursor, limit)) == reader.take_many(limit)
            case "take_event":
                self.read_event(cursor, reader)
            case _:
                while self.read_event(cursor, reader) is not None:
                    pass

    def read_event(self, cursor: Cursor, reader: Reader) -> Outcome | None:
        found = outcome(self.ring.take_event(cursor))
        assert found == reader.take_event()
        return found

    @invariant()
    def every_reader_stands_where_the_model_says(self) -> None:
        for cursor, reader in getattr(self, "readers", ()):
            assert self.ring.unread(cursor) == reader.unread <= self.ring.capacity
            assert cursor.position == reader.position
            if reader.position >= self.log.oldest:
                assert self.ring.mark_before(cursor) == self.log.newest_mark(reader.position)

    @invariant()
    def the_accounts_add_up(self) -> None:
        """Invariant 2."""
        for cursor, reader in getattr(self, "readers", ()):
            unread = self.ring.tail - cursor.position
            sent = len(self.log.sent) - reader.start
            assert len(reader.delivered) + reader.skipped + unread == sent

    @invariant()
    def the_order_is_kept(self) -> None:
        """Invariant 1, for values and for marks, and nothing twice."""
        for _, reader in getattr(self, "readers", ()):
            assert reader.delivered == sorted(set(reader.delivered))
            assert reader.told == sorted(set(reader.told))

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "ring"):
            kept = len(self.ring.values)
            assert kept <= self.ring.capacity + 16
            assert kept == len(self.ring._labels)
            assert len(self.ring._marks) <= kept + 1
            assert self.ring.placeholders == [
                self.ring.base + index
                for index, value in enumerate(self.ring.values)
                if isinstance(value, Placeholder)
            ]

    def teardown(self) -> None:
        """At the end everybody has been told everything, up to the newest mark."""
        if hasattr(self, "ring"):
            self.ring.give_up("the end")
            self.log.give_up("the end")
        for cursor, reader in getattr(self, "readers", ()):
            while self.read_event(cursor, reader) is not None:
                pass
            assert cursor.mark == len(self.log.marks)
            assert cursor.position == len(self.log.sent)


TestRing = RingMachine.TestCase
TestRing.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, print_blob=True
)
