"""The ring: positions, lag, marks and memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pgnotifybus.core.ring import (
    NOTHING,
    Cursor,
    Entry,
    Hole,
    Mark,
    Nothing,
    Placeholder,
    Ring,
    Skipped,
)


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


def events(ring: Ring[Any, str], cursor: Cursor) -> list[object]:
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


# -- placeholders ---------------------------------------------------------------------------------


def ring_of(capacity: int, *values: Any) -> tuple[Ring[Any, str], Cursor]:
    """A ring with these values, of which some may be placeholders, and a cursor at its start."""
    ring: Ring[Any, str] = Ring(capacity)
    cursor = ring.cursor()
    promised = [index for index, value in enumerate(values) if isinstance(value, Placeholder)]
    ring.extend(values, (), promised)
    return ring, cursor


READS: dict[str, Callable[[Ring[Any, str], Cursor], object]] = {
    "take": lambda ring, cursor: ring.take(cursor),
    "take_many": lambda ring, cursor: ring.take_many(cursor, 1),
    "take_event": lambda ring, cursor: ring.take_event(cursor),
}

every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


def value_of(outcome: object) -> object:
    """The one value that was read, however."""
    match outcome:
        case Entry(value):
            return value
        case [value]:
            return value
        case _:
            return outcome


@every_read
def test_nobody_reads_past_a_value_that_is_not_there_yet(
    read: Callable[[Ring[Any, str], Cursor], object],
) -> None:
    """Invariant 1: what came behind it must not be handed out before it."""
    ring, cursor = ring_of(8, "a", Placeholder(), "c")
    assert value_of(read(ring, cursor)) == "a"
    for _ in range(2):
        assert read(ring, cursor) is NOTHING
    ring.extend(("d",))
    assert read(ring, cursor) is NOTHING
    assert cursor.position == 1
    ring.settle(1, "b")
    assert [value_of(read(ring, cursor)) for _ in range(4)] == ["b", "c", "d", NOTHING]


@every_read
def test_a_value_that_is_lost_is_one_that_was_skipped(
    read: Callable[[Ring[Any, str], Cursor], object],
) -> None:
    placeholder = Placeholder()
    ring, cursor = ring_of(8, placeholder, "b")
    placeholder.lost = "expired"
    assert read(ring, cursor) == Hole(1, "expired")
    assert value_of(read(ring, cursor)) == "b"
    assert read(ring, cursor) is NOTHING


def test_a_hole_is_told_from_a_lag() -> None:
    hole = Hole(1, "expired")
    assert isinstance(hole, Skipped)
    assert hole != Skipped(1)


@every_read
def test_values_may_be_settled_in_any_order_and_are_read_in_theirs(
    read: Callable[[Ring[Any, str], Cursor], object],
) -> None:
    first, second = Placeholder(), Placeholder()
    ring, cursor = ring_of(8, first, "b", second, "d")
    ring.settle(2, "c")
    assert read(ring, cursor) is NOTHING
    first.lost = "unreadable"
    assert read(ring, cursor) == Hole(1, "unreadable")
    assert [value_of(read(ring, cursor)) for _ in range(3)] == ["b", "c", "d"]


def test_a_batch_ends_in_front_of_a_value_that_is_not_there() -> None:
    placeholder = Placeholder()
    ring, cursor = ring_of(8, "a", "b", placeholder, "d", "e")
    assert ring.take_many(cursor, 1) == ["a"]
    assert ring.take_many(cursor, 5) == ["b"]
    assert ring.take_many(cursor) is NOTHING
    placeholder.lost = "expired"
    assert ring.take_many(cursor) == Hole(1, "expired")
    assert ring.take_many(cursor) == ["d", "e"]


def test_a_batch_is_not_cut_by_placeholders_that_are_behind_the_reader() -> None:
    """What is lost stays in the ring, for slower readers, until it is overwritten."""
    lost = Placeholder()
    ring, slow = ring_of(8, lost, "b")
    lost.lost = "expired"
    quick = ring.cursor()
    ring.extend(("c", "d"))
    assert ring.take_many(quick) == ["c", "d"]
    assert ring.take_many(slow) == Hole(1, "expired")
    assert ring.take_many(slow) == ["b", "c", "d"]


def test_a_value_that_is_promised_counts_as_unread() -> None:
    ring, cursor = ring_of(3, "a", Placeholder())
    assert ring.unread(cursor) == 2
    ring.take(cursor)
    assert ring.unread(cursor) == 1
    ring.settle(1, "b")
    assert ring.unread(cursor) == 1
    ring.take(cursor)
    assert ring.unread(cursor) == 0


@every_read
@pytest.mark.parametrize("became", ["nothing", "settled", "lost"])
def test_a_lag_over_placeholders_counts_each_of_them_once(
    read: Callable[[Ring[Any, str], Cursor], object], became: str
) -> None:
    """Trap 13: whatever has become of them, they are overwritten like any other value."""
    lost = Placeholder()
    ring, cursor = ring_of(3, "a", lost, Placeholder(), "d")
    if became == "settled":
        ring.settle(1, "b")
        ring.settle(2, "c")
    if became == "lost":
        lost.lost = "expired"
    ring.extend(("e", "f"))
    assert read(ring, cursor) == Skipped(3)
    assert [value_of(read(ring, cursor)) for _ in range(4)] == ["d", "e", "f", NOTHING]


@pytest.mark.parametrize("sent", [3, 4, 100])
def test_what_is_settled_too_late_overwrites_nothing(sent: int) -> None:
    """Both while the list still has it and after the list was cut."""
    ring, cursor = ring_of(3, "a", Placeholder())
    ring.extend(range(sent))
    ring.settle(1, "late")
    expected = list(range(sent))[-3:]
    assert ring.take(cursor) == Skipped(sent - 1)
    assert ring.take_many(cursor) == expected


def test_only_a_placeholder_is_settled_and_only_once() -> None:
    ring, cursor = ring_of(8, "a", Placeholder(), Placeholder())
    for position in (-1, 0, 3, 99):
        ring.settle(position, "wrong")
    ring.settle(2, "c")
    ring.settle(2, "again")
    ring.settle(1, "b")
    assert ring.take_many(cursor) == ["a", "b", "c"]


def test_a_placeholder_in_a_later_ring_length_is_found() -> None:
    """Its position is not its place in the list."""
    ring, cursor = ring_of(3)
    for number in range(100):
        ring.extend((number, Placeholder()), (), (1,))
    for position in (195, 197, 199):
        ring.settle(position, f"at {position}")
    assert ring.take(cursor) == Skipped(197)
    assert ring.take_many(cursor) == ["at 197", 99, "at 199"]


def test_clear_forgets_what_was_promised() -> None:
    ring, late = ring_of(8, "a", Placeholder())
    ring.clear()
    cursor = ring.cursor()
    ring.extend(("b", Placeholder()), (), (1,))
    ring.settle(1, "too late")
    assert ring.take(cursor) == "b"
    assert ring.take(cursor) is NOTHING
    ring.settle(3, "c")
    assert ring.take(cursor) == "c"
    assert ring.take(late) == Skipped(2)


def test_what_is_overwritten_as_it_comes_leaves_no_promise() -> None:
    ring, cursor = ring_of(2, *(Placeholder() for _ in range(100)))
    assert ring.placeholders == [98, 99]
    assert ring.take(cursor) == Skipped(98)
    ring.clear()
    assert ring.placeholders == []


def test_giving_up_loses_what_is_not_there_and_nothing_else() -> None:
    lost, open_one = Placeholder(), Placeholder()
    ring, cursor = ring_of(8, "a", lost, Placeholder(), open_one, "e")
    lost.lost = "expired"
    ring.settle(2, "c")
    ring.give_up("unreadable")
    found = [ring.take(cursor) for _ in range(5)]
    assert found == ["a", Hole(1, "expired"), "c", Hole(1, "unreadable"), "e"]


def test_a_value_may_still_come_for_those_who_have_not_read_that_it_is_lost() -> None:
    placeholder = Placeholder()
    ring, quick = ring_of(8, placeholder)
    slow = Cursor(0, 0)
    placeholder.lost = "unreadable"
    assert ring.take(quick) == Hole(1, "unreadable")
    ring.settle(0, "after all")
    assert ring.take(slow) == "after all"
    assert ring.take(quick) is NOTHING


def test_old_placeholders_are_let_go() -> None:
    """The bound of memory, also for what never came."""
    ring: Ring[Any, str] = Ring(10)
    alive: weakref.WeakSet[Value] = weakref.WeakSet()
    for _ in range(500):
        ring.extend((Placeholder(),), (), (0,))
        assert len(ring.placeholders) == len(ring.values) <= 10 + 16
    value = Value()
    alive.add(value)
    ring.settle(499, value)
    del value
    assert len(alive) == 1
    ring.extend(range(100))
    assert len(alive) == 0


# -- placeholders and marks -----------------------------------------------------------------------


def test_a_mark_behind_a_value_that_is_not_there_waits_for_it() -> None:
    """Trap 2: it stands behind what came before it, also if that comes later."""
    placeholder = Placeholder()
    ring, cursor = ring_of(8, "a", placeholder)
    ring.mark("gap")
    ring.extend(("c",))
    assert events(ring, cursor) == ["a"]
    ring.settle(1, "b")
    assert events(ring, cursor) == ["b", "gap", "c"]


def test_a_mark_in_front_of_a_value_that_is_not_there_is_seen_at_once() -> None:
    """Trap 2: whoever reads the database at a gap must not wait for what comes after it."""
    ring, cursor = ring_of(8, "a")
    ring.mark("gap")
    placeholder = Placeholder()
    ring.extend((placeholder, "c"), (), (0,))
    assert events(ring, cursor) == ["a", "gap"]
    assert events(ring, cursor) == []
    placeholder.lost = "expired"
    assert events(ring, cursor) == [Hole(1, "expired"), "c"]


def test_a_mark_behind_a_value_that_is_lost_is_seen_after_it() -> None:
    placeholder = Placeholder()
    ring, cursor = ring_of(8, placeholder)
    ring.mark("gap")
    placeholder.lost = "expired"
    assert events(ring, cursor) == [Hole(1, "expired"), "gap"]


@pytest.mark.parametrize("way", ["take", "take_many"])
@pytest.mark.parametrize("became", ["settled", "lost"])
def test_reading_past_a_mark_over_a_promise_passes_the_mark_once(way: str, became: str) -> None:
    """The ways to read are mixed: a mark in front of what was read has been passed."""
    placeholder = Placeholder()
    ring, cursor = ring_of(8)
    ring.mark("gap")
    ring.extend((placeholder,), (), (0,))
    assert READS[way](ring, cursor) is NOTHING
    if became == "settled":
        ring.settle(0, "a")
    else:
        placeholder.lost = "expired"
    assert not isinstance(READS[way](ring, cursor), Nothing)
    assert events(ring, cursor) == []


def test_waiting_at_a_promise_passes_no_mark() -> None:
    ring, cursor = ring_of(8)
    ring.mark("gap")
    ring.extend((Placeholder(),), (), (0,))
    for read in (READS["take"], READS["take_many"]):
        assert read(ring, cursor) is NOTHING
    assert events(ring, cursor) == ["gap"]


def test_a_lag_over_a_promise_and_a_mark_tells_the_mark() -> None:
    ring, cursor = ring_of(2, Placeholder())
    ring.mark("gap")
    placeholder = Placeholder()
    ring.extend((placeholder, "c", "d"), (), (0,))
    assert events(ring, cursor) == [Skipped(2), "gap", "c", "d"]


def test_the_label_of_a_promise_goes_with_its_value() -> None:
    ring: Ring[Any, str] = Ring(4)
    cursor = ring.cursor()
    ring.mark("one")
    ring.extend(["a", Placeholder(), "c"], [11, (12, "stamp"), 13], [1])
    ring.settle(1, "b")
    assert ring.take_event(cursor) == Mark(0, 1, "one")
    assert ring.take_event(cursor) == Entry("a", 11, "one")
    assert ring.take_event(cursor) == Entry("b", (12, "stamp"), "one")
    assert ring.take_event(cursor) == Entry("c", 13, "one")
