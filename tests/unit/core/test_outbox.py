"""The outbox: what leaves, in which order, together with what, and how many it holds."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from pgnotifybus.core.outbox import Item, Outbox

MANY = 1_000_000


def outbox_with(*messages: str, capacity: int = 100) -> Outbox[str]:
    """An outbox that has taken these, of one byte each."""
    outbox: Outbox[str] = Outbox(capacity)
    for message in messages:
        assert outbox.put(message, 1)
    return outbox


def left(items: list[Item[str]]) -> list[str]:
    return [item.message for item in items]


def leave(outbox: Outbox[str], limit: int = MANY, max_bytes: int = MANY) -> list[str]:
    """What leaves now, and is settled at once."""
    items = outbox.leave(limit, max_bytes)
    for item in items:
        outbox.settle(item)
    return left(items)


# -- order ----------------------------------------------------------------------------------------


def test_messages_leave_in_the_order_in_which_they_were_taken() -> None:
    outbox = outbox_with("a", "b", "c")
    items = outbox.leave(MANY, MANY)
    assert left(items) == ["a", "b", "c"]
    assert [item.number for item in items] == [1, 2, 3]
    assert outbox.leave(MANY, MANY) == []


def test_an_item_says_what_was_put() -> None:
    outbox: Outbox[str] = Outbox(1)
    outbox.put("a", 7, "key", "identity")
    assert outbox.leave(1, 1) == [Item(1, "a", 7, "key", "identity")]


def test_no_more_leave_than_the_limit() -> None:
    outbox = outbox_with(*"abcde")
    assert [leave(outbox, limit=2) for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], []]


def test_no_more_leave_than_the_bytes_that_are_allowed() -> None:
    outbox: Outbox[str] = Outbox(10)
    for message, size in {"a": 4, "b": 4, "c": 2, "d": 8, "e": 3, "f": 0}.items():
        outbox.put(message, size)
    assert leave(outbox, max_bytes=10) == ["a", "b", "c"], "10 bytes are not more than 10"
    assert leave(outbox, max_bytes=10) == ["d"], "a later one that would fit does not overtake"
    assert leave(outbox, max_bytes=3) == ["e", "f"]


def test_a_message_larger_than_what_is_allowed_leaves_alone() -> None:
    outbox: Outbox[str] = Outbox(10)
    for message, size in {"a": 1, "large": 100, "b": 1}.items():
        outbox.put(message, size)
    assert [leave(outbox, max_bytes=10) for _ in range(4)] == [["a"], ["large"], ["b"], []]


# -- what may not leave together ------------------------------------------------------------------


def put_identified(outbox: Outbox[str], identities: list[Hashable]) -> None:
    for number, identity in enumerate(identities):
        outbox.put(f"{identity}{number}", 1, None, identity)


def test_two_of_one_identity_do_not_leave_together_and_nothing_overtakes_the_second() -> None:
    """PostgreSQL would deliver the same notification once, if it were twice in a transaction."""
    outbox: Outbox[str] = Outbox(10)
    put_identified(outbox, ["x", "y", "x", "z", "y", "x"])
    assert leave(outbox) == ["x0", "y1"]
    assert leave(outbox) == ["x2", "z3", "y4"]
    assert leave(outbox) == ["x5"]


def test_what_has_no_identity_leaves_with_anything() -> None:
    outbox: Outbox[str] = Outbox(10)
    put_identified(outbox, [None, "x", None, None])
    assert leave(outbox) == ["None0", "x1", "None2", "None3"]


def test_one_of_the_same_identity_may_follow_before_the_first_is_settled() -> None:
    outbox: Outbox[str] = Outbox(10)
    put_identified(outbox, ["x", "x"])
    first, second = outbox.leave(MANY, MANY), outbox.leave(MANY, MANY)
    assert [left(first), left(second)] == [["x0"], ["x1"]]


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["k", ("orders", "7"), "", 0, False])
def test_the_newest_of_a_key_wins_and_takes_its_place_at_the_end(key: Hashable) -> None:
    """What was published in between was published before it."""
    outbox: Outbox[str] = Outbox(10)
    outbox.put("old", 1, key)
    outbox.put("between", 1)
    outbox.put("other", 1, "another key")
    outbox.put("new", 1, key)
    assert (outbox.taken, outbox.replaced, outbox.held) == (4, 1, 3)
    items = outbox.leave(MANY, MANY)
    assert left(items) == ["between", "other", "new"]
    assert [item.number for item in items] == [2, 3, 4]


def test_the_newest_is_measured_and_told_apart_by_what_it_is() -> None:
    """Not by the size and the identity of the one that it replaces."""
    outbox: Outbox[str] = Outbox(10)
    outbox.put("old", 100, "k", "x")
    outbox.put("a", 4, None, "x")
    outbox.put("new", 6, "k", "y")
    assert leave(outbox, max_bytes=10) == ["a", "new"]


def test_what_has_no_key_is_never_replaced() -> None:
    outbox: Outbox[str] = Outbox(10)
    for message in "abc":
        outbox.put(message, 1, None)
    assert outbox.replaced == 0
    assert leave(outbox) == ["a", "b", "c"]


def test_what_has_left_is_not_replaced() -> None:
    """It may be committed at this very moment."""
    outbox: Outbox[str] = Outbox(10)
    outbox.put("gone", 1, "k")
    [gone] = outbox.leave(MANY, MANY)
    outbox.put("next", 1, "k")
    assert (outbox.replaced, outbox.held) == (0, 2)
    outbox.settle(gone)
    outbox.put("newest", 1, "k")
    assert (outbox.replaced, outbox.held) == (1, 1)
    assert leave(outbox) == ["newest"]


def test_a_key_may_be_replaced_again_and_again() -> None:
    outbox: Outbox[str] = Outbox(2)
    outbox.put("between", 1)
    for number in range(1_000):
        assert outbox.put(str(number), 1, "k")
    assert (outbox.taken, outbox.replaced, outbox.held) == (1_001, 999, 2)
    assert leave(outbox) == ["between", "999"]


# -- room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Outbox(capacity)


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_it_holds_exactly_its_capacity(capacity: int) -> None:
    outbox: Outbox[str] = Outbox(capacity)
    assert [outbox.put("a", 1) for _ in range(capacity + 2)] == [True] * capacity + [False] * 2
    assert outbox.taken == outbox.held == outbox.waiting == capacity


def test_what_is_not_taken_changes_nothing() -> None:
    outbox = outbox_with("a", capacity=1)
    assert not outbox.put("b", 1, "k", "x")
    assert (outbox.taken, outbox.replaced, outbox.held) == (1, 0, 1)
    assert leave(outbox) == ["a"]
    assert outbox.put("c", 1, "k", "x")
    assert (outbox.taken, outbox.replaced) == (2, 0), "the key was remembered"
    assert leave(outbox) == ["c"]


def test_what_has_left_takes_room_until_it_is_settled() -> None:
    """It is in memory, and comes back as unsent if the server refuses it."""
    outbox = outbox_with("a", "b", capacity=2)
    [item] = outbox.leave(1, MANY)
    assert (outbox.waiting, outbox.held) == (1, 2)
    assert not outbox.put("c", 1)
    outbox.settle(item)
    assert (outbox.waiting, outbox.held) == (1, 1)
    assert outbox.put("c", 1)
    assert not outbox.put("d", 1)


def test_a_message_that_replaces_one_needs_no_room() -> None:
    outbox: Outbox[str] = Outbox(2)
    outbox.put("a", 1)
    outbox.put("old", 1, "k")
    assert outbox.put("new", 1, "k")
    assert not outbox.put("other", 1, "another key")
    outbox.leave(MANY, MANY)
    assert not outbox.put("newer", 1, "k"), "that one has left"


# -- the end --------------------------------------------------------------------------------------


def test_oldest_is_the_first_that_is_not_settled() -> None:
    outbox: Outbox[str] = Outbox(10)
    assert outbox.oldest == 1
    for message in "abc":
        outbox.put(message, 1)
    assert outbox.oldest == 1
    first, second = outbox.leave(2, MANY)
    assert outbox.oldest == 1
    outbox.settle(second)
    assert outbox.oldest == 1
    outbox.settle(first)
    assert outbox.oldest == 3
    leave(outbox)
    assert outbox.oldest == 4 > outbox.taken


def test_oldest_passes_over_what_was_replaced() -> None:
    """A flush up to there waits for what stands in its place no longer."""
    outbox: Outbox[str] = Outbox(10)
    outbox.put("old", 1, "k")
    outbox.put("new", 1, "k")
    assert outbox.oldest == 2


def test_what_is_given_up_comes_back_in_its_order() -> None:
    outbox = outbox_with("a", "b", "c")
    outbox.put("d", 1, "k")
    settled, _ = outbox.leave(2, MANY)
    outbox.settle(settled)
    assert left(outbox.drain()) == ["b", "c", "d"]
    assert (outbox.waiting, outbox.held, outbox.oldest) == (0, 0, 5)
    assert outbox.drain() == []
    assert outbox.leave(MANY, MANY) == []


def test_after_giving_up_there_is_room_and_no_key_is_remembered() -> None:
    outbox: Outbox[str] = Outbox(1)
    outbox.put("a", 1, "k")
    outbox.drain()
    assert outbox.put("b", 1, "k")
    assert (outbox.taken, outbox.replaced) == (2, 0)
    assert leave(outbox) == ["b"]


def test_nothing_is_settled_twice_or_before_it_has_left() -> None:
    """The account would not add up any more."""
    outbox = outbox_with("a")
    with pytest.raises(KeyError):
        outbox.settle(Item(1, "a", 1, None, None))
    [item] = outbox.leave(MANY, MANY)
    outbox.settle(item)
    with pytest.raises(KeyError):
        outbox.settle(item)
