"""The ring: positions, lag, marks and memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest

from pgnotifybus.core.ring import NOTHING, Cursor, Entry, Mark, Ring, Skipped


def ring_with(capacity: int, count: int = 0) -> tuple[Ring[int, str], Cursor]:
    """A ring, a cursor at its start, and the values 0, 1, ... behind it."""
    ring: Ring[int, str] = Ring(capacity)
    cursor = ring.cursor()
    ring.extend(range(count))
    return ring, cursor


class Value:
    """Something that can be referred to weakly."""


# -- capacity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Ring(capacity)


@pytest.mark.parametrize("capacity", [True, 1.5, "8", None])
def test_a_capacity_that_is_no_int_is_refused(capacity: int) -> None:
    with pytest.raises(TypeError, match="must be an int"):
        Ring(capacity)


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 7, 16, 17, 100])
def test_the_capacity_is_exact(capacity: int) -> None:
    """Not rounded up to a power of two: a full ring is read whole, one value more is a lag."""
    ring, cursor = ring_with(capacity, capacity)
    assert ring.take_many(cursor) == list(range(capacity))

    ring, cursor = ring_with(capacity, capacity + 1)
    assert ring.take(cursor) == Skipped(1)
    assert ring.take_many(cursor) == list(range(1, capacity + 1))


# -- lag ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 3, 8, 100])
@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_the_lag_is_exact_over_several_ring_lengths(capacity: int, rounds: int, extra: int) -> None:
    """Trap 13: more than one ring length missed, whether or not the list has been cut since."""
    sent = capacity * (rounds + 1) + extra
    for bulk in (True, False):
        ring, cursor = ring_with(capacity)
        if bulk:
            ring.extend(range(sent))
        else:
            for value in range(sent):
                ring.extend((value,))
        assert ring.unread(cursor) == capacity
        assert ring.take(cursor) == Skipped(sent - capacity)
        assert ring.unread(cursor) == capacity
        assert [ring.take(cursor) for _ in range(capacity)] == list(range(sent - capacity, sent))
        assert ring.take(cursor) is NOTHING


def test_every_way_to_read_reports_the_same_lag() -> None:
    ring, cursor = ring_with(4, 11)
    other, third = Cursor(0, 0), Cursor(0, 0)
    outcomes = [ring.take(cursor), ring.take_many(other), ring.take_event(third)]
    assert outcomes == [Skipped(7)] * 3
    assert cursor.position == other.position == third.position == 7


# -- batches --------------------------------------------------------------------------------------


def test_a_batch_stops_at_its_limit_and_goes_on_there() -> None:
    ring, cursor = ring_with(8, 5)
    assert ring.take_many(cursor, 2) == [0, 1]
    assert ring.take_many(cursor, 2) == [2, 3]
    assert ring.take_many(cursor, 2) == [4]
    assert ring.take_many(cursor, 2) is NOTHING


def test_a_batch_never_exceeds_the_capacity() -> None:
    """The list may hold more than the capacity for a while; a reader never sees those."""
    ring, cursor = ring_with(4, 4 + 10)
    assert ring.take_many(cursor) == Skipped(10)
    assert ring.take_many(cursor) == [10, 11, 12, 13]


def test_a_batch_is_a_copy() -> None:
    ring, cursor = ring_with(4, 3)
    batch = ring.take_many(cursor)
    assert isinstance(batch, list)
    batch.clear()
    assert ring.take_many(Cursor(0, 0)) == [0, 1, 2]


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 10, 100])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_old_values_are_let_go(capacity: int, step: int) -> None:
    """The bound of memory: the capacity, and a quarter of it or 16 more."""
    ring: Ring[Value, str] = Ring(capacity)
    alive: weakref.WeakSet[Value] = weakref.WeakSet()
    for _ in range(2000 // step + 1):
        values = [Value() for _ in range(step)]
        alive.update(values)
        ring.extend(values)
        del values
        assert min(step, capacity) <= len(alive) <= capacity + max(capacity // 4, 16)


def test_clear_lets_all_values_go_and_keeps_the_positions() -> None:
    ring: Ring[Value, str] = Ring(8)
    value = Value()
    ref = weakref.ref(value)
    ring.extend([value] * 3, [1, 1, 1])
    del value
    ring.clear()
    assert ref() is None
    assert ring.tail == ring.oldest == 3
    cursor = ring.cursor()
    later = Value()
    ring.extend([later], [7])
    assert ring.take_event(cursor) == Entry(later, 7, None)


def test_marks_do_not_pile_up() -> None:
    """A link that comes and goes for weeks, without and with values in between."""
    ring: Ring[int, int] = Ring(4)
    for number in range(1000):
        ring.mark(number)
    assert len(ring._marks) == 1
    for number in range(1000):
        ring.extend((number,))
        ring.mark(number)
        assert len(ring._marks) <= len(ring.values) + 1
    for number in range(1000):  # nobody receives: cleared after each
        ring.extend((number,))
        ring.clear()
        ring.mark(number)
    assert len(ring._marks) == 1


class Reentrant:
    """A value whose finalizer uses the ring that is just letting go of it."""

    def __init__(self, ring: Ring[object, str], cursor: Cursor, outcomes: list[object]) -> None:
        self.ring, self.cursor, self.outcomes = ring, cursor, outcomes

    def __del__(self) -> None:
        self.ring.extend(("from a finalizer",))
        self.outcomes += [self.ring.take_many(self.cursor), self.ring.take_many(self.cursor)]


@pytest.mark.parametrize("let_go", ["trim", "clear"])
def test_a_value_may_use_the_ring_while_the_ring_lets_go_of_it(let_go: str) -> None:
    """The positions are right before the values go: a finalizer is run right in the middle."""
    ring: Ring[object, str] = Ring(2)
    outcomes: list[object] = []
    for number in range(3):
        ring.extend((number,))
    late = ring.cursor()
    ring.extend((Reentrant(ring, late, outcomes),))
    late.position = ring.tail
    if let_go == "trim":
        ring.extend(range(100))
        assert outcomes == [Skipped(99), [99, "from a finalizer"]]  # of 101
    else:
        ring.clear()
        assert outcomes == [["from a finalizer"], NOTHING]
    assert ring.take(late) is NOTHING
    fresh = ring.cursor()
    ring.extend(("next",))
    assert ring.take(fresh) == "next"


# -- marks ----------------------------------------------------------------------------------------


def events(ring: Ring[int, str], cursor: Cursor) -> list[object]:
    """All events from the cursor on, in a short form."""
    found: list[object] = []
    while (event := ring.take_event(cursor)) is not NOTHING:
        match event:
            case Mark():
                found.append(event.content)
            case Entry():
                found.append(event.value)
            case _:
                found.append(event)
    return found


def test_a_mark_stands_between_the_values() -> None:
    """Trap 2: behind what came before it, in front of what comes after it."""
    ring, cursor = ring_with(8, 2)
    ring.mark("gap")
    ring.extend((2,))
    assert events(ring, cursor) == [0, 1, "gap", 2]


def test_a_mark_behind_everything_is_seen_without_a_value() -> None:
    ring, cursor = ring_with(8)
    ring.mark("gap")
    assert ring.unread(cursor) == 0
    assert events(ring, cursor) == ["gap"]
    assert events(ring, cursor) == []


def test_two_marks_at_one_place_are_the_newer_one() -> None:
    ring, cursor = ring_with(8, 1)
    ring.mark("first")
    ring.mark("second")
    assert events(ring, cursor) == [0, "second"]


def test_a_mark_that_follows_one_already_seen_is_seen_too() -> None:
    ring, cursor = ring_with(8, 1)
    ring.mark("first")
    assert events(ring, cursor) == [0, "first"]
    ring.mark("second")
    assert events(ring, cursor) == ["second"]


def test_a_reader_that_lagged_over_marks_is_told_the_newest_of_them() -> None:
    """Trap 13: it lags and a gap happens."""
    ring, cursor = ring_with(3, 2)
    ring.mark("first")
    ring.extend((2,))
    ring.mark("second")
    ring.extend(range(3, 10))
    assert events(ring, cursor) == [Skipped(7), "second", 7, 8, 9]


def test_a_mark_at_the_oldest_value_speaks_for_the_ones_before_it() -> None:
    ring, cursor = ring_with(3, 2)
    ring.mark("lost")
    ring.extend((2, 3))
    ring.mark("at the oldest")
    ring.extend((4, 5, 6))
    assert events(ring, cursor) == [Skipped(4), "at the oldest", 4, 5, 6]


def test_a_mark_survives_a_cut_of_the_list() -> None:
    ring, cursor = ring_with(3, 2)
    ring.mark("gap")
    ring.extend(range(1000))
    assert events(ring, cursor) == [Skipped(999), "gap", 997, 998, 999]


def test_a_reader_in_front_of_a_lag_is_not_told_twice() -> None:
    """The mark moves up, past a reader that has seen it."""
    ring, cursor = ring_with(3, 2)
    ring.mark("gap")
    assert events(ring, cursor) == [0, 1, "gap"]
    ring.extend(range(2, 7))
    assert events(ring, cursor) == [Skipped(2), 4, 5, 6]


@pytest.mark.parametrize(
    "read",
    [
        lambda ring, cursor: ring.take(cursor),
        lambda ring, cursor: ring.take_many(cursor, 1),
        lambda ring, cursor: ring.take_many(cursor),
    ],
)
def test_reading_the_value_behind_a_mark_passes_the_mark(
    read: Callable[[Ring[int, str], Cursor], object],
) -> None:
    ring, cursor = ring_with(8, 1)
    ring.mark("gap")
    ring.extend((1,))
    while read(ring, cursor) is not NOTHING:
        pass
    assert events(ring, cursor) == []


def test_reading_up_to_a_mark_does_not_pass_it() -> None:
    ring, cursor = ring_with(8, 2)
    ring.mark("gap")
    assert ring.take(cursor) == 0
    assert ring.take_many(cursor) == [1]
    assert events(ring, cursor) == ["gap"]


def test_a_new_cursor_does_not_see_the_marks_before_it() -> None:
    ring, _ = ring_with(8, 1)
    ring.mark("gap")
    assert events(ring, ring.cursor()) == []


def test_an_entry_carries_its_label_and_the_mark_that_reigns_over_it() -> None:
    ring: Ring[str, str] = Ring(4)
    cursor = ring.cursor()
    ring.extend(["a"], [11])
    ring.mark("one")
    ring.extend(["b", "c"], [12, 13])
    assert ring.take_event(cursor) == Entry("a", 11, None)
    assert ring.mark_before(cursor) == "one"
    assert ring.take_event(cursor) == Mark(1, 1, "one")
    assert ring.take_event(cursor) == Entry("b", 12, "one")
    ring.extend(["d", "e", "f", "g", "h"], [14, 15, 16, 17, 18])
    assert ring.take_event(cursor) == Skipped(2)
    assert ring.mark_before(cursor) == "one"
    assert ring.take_event(cursor) == Entry("e", 15, "one")


def test_without_labels_an_entry_has_none() -> None:
    ring, cursor = ring_with(4, 1)
    assert ring.take_event(cursor) == Entry(0, None, None)


def test_the_labels_stay_with_their_values_over_a_cut() -> None:
    ring: Ring[int, str] = Ring(3)
    cursor = ring.cursor()
    for number in range(200):
        ring.extend((number,), (number + 1000,))
    assert ring.take_event(cursor) == Skipped(197)
    assert ring.take_event(cursor) == Entry(197, 1197, None)
