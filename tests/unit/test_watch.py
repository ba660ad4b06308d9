"""The watch channel against what tokio documents of `sync::watch`, and what we add."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pgnotifybus import watch
from pgnotifybus.errors import Closed
from unit.polling import parked, ready

# -- looking ---------------------------------------------------------------------------------------


def test_the_initial_value_is_there_and_counts_as_seen() -> None:
    sender, receiver = watch.channel("initial")
    assert sender.borrow() == receiver.borrow() == "initial"
    assert not receiver.has_changed()
    assert not receiver.closed


def test_borrow_leaves_a_value_unseen_and_borrow_and_update_does_not() -> None:
    sender, receiver = watch.channel(0)
    sender.send(1)
    assert receiver.borrow() == 1
    assert receiver.has_changed()
    assert receiver.borrow_and_update() == 1
    assert not receiver.has_changed()


def test_only_the_newest_value_is_kept() -> None:
    sender, receiver = watch.channel(0)
    for value in (1, 2, 3):
        sender.send(value)
    assert receiver.borrow_and_update() == 3
    assert not receiver.has_changed()


def test_who_subscribes_has_seen_the_present_value() -> None:
    sender, first = watch.channel(0)
    sender.send(1)
    late = sender.subscribe()
    assert first.has_changed()
    assert not late.has_changed()
    assert late.borrow() == 1
    sender.send(2)
    assert late.has_changed()


def test_each_receiver_remembers_for_itself() -> None:
    sender, first = watch.channel(0)
    second = sender.subscribe()
    sender.send(1)
    first.borrow_and_update()
    assert not first.has_changed()
    assert second.has_changed()


def test_has_changed_never_raises() -> None:
    """Unlike tokio's, whose error after close hides whether there is an unseen value."""
    sender, receiver = watch.channel(0)
    seen = sender.subscribe()
    sender.send(1)
    seen.borrow_and_update()
    sender.close()
    assert receiver.has_changed()
    assert not seen.has_changed()
    del sender
    assert receiver.has_changed()
    assert not seen.has_changed()
    assert receiver.closed


# -- sending ---------------------------------------------------------------------------------------


def test_a_value_is_kept_also_when_nobody_receives() -> None:
    """Unlike tokio's `send`, which gives it back."""
    sender, receiver = watch.channel(0)
    del receiver
    sender.send(1)
    assert sender.borrow() == 1
    assert sender.subscribe().borrow() == 1


def test_an_equal_value_is_a_change() -> None:
    sender, receiver = watch.channel(0)
    sender.send(0)
    assert receiver.has_changed()


def test_send_modify_tells_always() -> None:
    sender, receiver = watch.channel([1])
    sender.send_modify(lambda old: [*old, 2])
    assert receiver.borrow_and_update() == [1, 2]
    sender.send_modify(lambda old: old)
    assert receiver.has_changed()


def test_a_modify_that_raises_changes_nothing() -> None:
    """tokio: if the closure panics, nobody is told."""
    sender, receiver = watch.channel(1)

    def fail(old: int) -> int:
        raise ConnectionError(old)

    async def main() -> None:
        waiting = parked(receiver.changed())
        with pytest.raises(ConnectionError, match="1"):
            sender.send_modify(fail)
        assert not waiting.woken()

    asyncio.run(main())
    assert receiver.borrow() == 1
    assert not receiver.has_changed()
    sender.send(2)
    assert receiver.borrow_and_update() == 2


def test_a_modify_that_sends_or_closes() -> None:
    sender, receiver = watch.channel(1)

    def send(old: int) -> int:
        sender.send(50)
        return old + 1

    def close(old: int) -> int:
        sender.close()
        return old + 1

    sender.send_modify(send)
    assert receiver.borrow() == 2
    with pytest.raises(Closed):
        sender.send_modify(close)
    assert receiver.borrow() == 2


def test_send_if_different_tells_only_of_a_difference() -> None:
    sender, receiver = watch.channel(1)
    assert not sender.send_if_different(1)
    assert not receiver.has_changed()
    assert sender.send_if_different(2)
    assert receiver.borrow_and_update() == 2


def test_send_if_different_with_a_value_that_cannot_be_compared_changes_nothing() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ConnectionError

        __hash__ = None  # type: ignore[assignment]

    first = Odd()
    sender, receiver = watch.channel(first)
    with pytest.raises(ConnectionError):
        sender.send_if_different(Odd())
    assert receiver.borrow() is first
    assert not receiver.has_changed()


# -- waiting ---------------------------------------------------------------------------------------


async def test_changed_waits_and_marks_the_value_as_seen() -> None:
    sender, receiver = watch.channel(0)
    waiting = parked(receiver.changed())
    sender.send(1)
    assert waiting.woken()
    assert waiting.poll()
    waiting.result()
    assert not receiver.has_changed()
    parked(receiver.changed())


async def test_changed_returns_at_once_for_an_unseen_value_and_once_for_many() -> None:
    sender, receiver = watch.channel(0)
    sender.send(1)
    sender.send(2)
    ready(receiver.changed())
    assert receiver.borrow() == 2
    parked(receiver.changed())


async def test_every_waiting_receiver_is_told() -> None:
    sender, first = watch.channel(0)
    receivers = [first, *(sender.subscribe() for _ in range(99))]
    waiting = [parked(receiver.changed()) for receiver in receivers]
    sender.send(1)
    assert all(one.woken() and one.poll() for one in waiting)


async def test_two_tasks_on_one_receiver_share_what_it_has_seen() -> None:
    sender, receiver = watch.channel(0)
    first, second = parked(receiver.changed()), parked(receiver.changed())
    sender.send(1)
    assert first.poll()
    assert not second.poll()
    sender.send(2)
    assert second.poll()


@pytest.mark.parametrize("when", ["before the send", "between the send and the run"])
async def test_a_cancelled_changed_leaves_the_value_unseen(when: str) -> None:
    """Invariant 6."""
    sender, receiver = watch.channel(0)
    other = sender.subscribe()
    others = parked(other.changed())
    task = asyncio.create_task(receiver.changed())
    await asyncio.sleep(0)  # the task runs until it waits
    assert len(receiver._shared.parking) == 2
    if when == "before the send":
        task.cancel()
        sender.send(1)
    else:
        sender.send(1)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert receiver.has_changed()
    ready(receiver.changed())
    assert others.poll()


async def test_cancelling_one_of_a_hundred_disturbs_nobody() -> None:
    """Invariant 6."""
    sender, first = watch.channel(0)
    receivers = [first, *(sender.subscribe() for _ in range(99))]
    tasks = [asyncio.create_task(receiver.changed()) for receiver in receivers]
    await asyncio.sleep(0)  # each task runs until it waits
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert not any(task.done() for task in tasks[1:])
    sender.send(1)
    await asyncio.gather(*tasks[1:])
    assert receivers[0].has_changed()


# -- wait_for --------------------------------------------------------------------------------------


async def test_wait_for_asks_the_present_value_first() -> None:
    """Also one that has been seen, and also when the channel is closed."""
    sender, receiver = watch.channel(3)
    assert ready(receiver.wait_for(lambda value: value == 3)) == 3
    sender.close()
    assert ready(receiver.wait_for(lambda value: value == 3)) == 3


async def test_wait_for_waits_until_the_predicate_holds_and_marks_as_seen() -> None:
    sender, receiver = watch.channel(0)
    asked: list[int] = []

    def at_least_two(value: int) -> bool:
        asked.append(value)
        return value >= 2

    waiting = parked(receiver.wait_for(at_least_two))
    sender.send(1)
    assert not waiting.poll()
    sender.send(2)
    sender.send(3)
    assert waiting.poll()
    assert waiting.result() == 3
    assert asked == [0, 1, 3], "a value that was replaced is not asked"
    assert not receiver.has_changed()


async def test_wait_for_ends_with_the_sender_if_the_last_value_does_not_do() -> None:
    sender, receiver = watch.channel(0)
    waiting = parked(receiver.wait_for(lambda value: value == 2))
    sender.send(1)
    sender.close()
    waiting.poll()
    with pytest.raises(Closed):
        waiting.result()


async def test_wait_for_takes_the_last_value_also_after_close() -> None:
    sender, receiver = watch.channel(0)
    waiting = parked(receiver.wait_for(lambda value: value == 1))
    sender.send(1)
    sender.close()
    assert waiting.poll()
    assert waiting.result() == 1


async def test_what_a_predicate_raises_is_passed_on_and_the_receiver_lives_on() -> None:
    """tokio: if the closure panics, the lock is not poisoned."""
    sender, receiver = watch.channel(1)

    def fail(value: int) -> bool:
        raise ConnectionError(value)

    with pytest.raises(ConnectionError, match="1"):
        ready(receiver.wait_for(fail))
    sender.send(2)
    assert ready(receiver.wait_for(lambda value: value == 2)) == 2


async def test_a_cancelled_wait_for_leaves_later_values_unseen() -> None:
    """Invariant 6."""
    sender, receiver = watch.channel(0)
    waiting = parked(receiver.wait_for(lambda value: value == 1))
    sender.send(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result()
    assert receiver.has_changed()
    assert ready(receiver.wait_for(lambda value: value == 1)) == 1


async def test_a_predicate_may_send_what_it_waits_for() -> None:
    sender, receiver = watch.channel(0)

    def push(value: int) -> bool:
        if value < 3:
            sender.send(value + 1)
        return value == 3

    assert ready(receiver.wait_for(push)) == 3


# -- ending ----------------------------------------------------------------------------------------


def closing() -> list[Callable[[list[watch.Sender[int]]], object]]:
    return [lambda box: box[0].close(), lambda box: box.clear()]


however = pytest.mark.parametrize("end", closing(), ids=["closed", "dropped"])


@however
async def test_an_unseen_value_is_handed_out_before_closed(
    end: Callable[[list[watch.Sender[int]]], object],
) -> None:
    """tokio: `changed` returns an unseen value even if the sender is gone, then the error."""
    sender, receiver = watch.channel(0)
    sender.send(1)
    box = [sender]
    del sender
    end(box)
    ready(receiver.changed())
    assert receiver.borrow() == 1
    for _ in range(2):
        with pytest.raises(Closed):
            ready(receiver.changed())
    assert receiver.borrow() == receiver.borrow_and_update() == 1


@however
async def test_who_waits_is_woken_by_the_end(
    end: Callable[[list[watch.Sender[int]]], object],
) -> None:
    """Trap 20: a dropped shutdown handle; the seed spins on it."""
    sender, receiver = watch.channel(0)
    waiting = parked(receiver.changed())
    box = [sender]
    del sender
    end(box)
    await asyncio.sleep(0)  # a dropped sender speaks through the loop
    assert waiting.woken()
    waiting.poll()
    with pytest.raises(Closed):
        waiting.result()


def test_sending_after_close_raises_and_closing_twice_is_harmless() -> None:
    sender, receiver = watch.channel(0)
    sender.close()
    sender.close()
    calls: list[int] = []

    def modify(old: int) -> int:
        calls.append(old)
        return 1

    with pytest.raises(Closed):
        sender.send(1)
    with pytest.raises(Closed):
        sender.send_modify(modify)
    for value in (0, 1):
        with pytest.raises(Closed):
            sender.send_if_different(value)
    assert calls == []
    assert receiver.borrow() == 0
    assert not receiver.has_changed()


async def test_who_subscribes_to_a_closed_channel_is_at_its_end() -> None:
    sender, _ = keep = watch.channel(0)
    sender.send(1)
    sender.close()
    late = sender.subscribe()
    assert late.borrow() == 1
    with pytest.raises(Closed):
        ready(late.changed())
    assert keep[1].has_changed()


def test_what_is_printed_shows_how_it_stands() -> None:
    sender, receiver = watch.channel(0)
    sender.send(1)
    assert repr(sender) == "<watch.Sender version=1 open>"
    assert repr(receiver) == "<watch.Receiver version=1 seen=0 open>"
    sender.close()
    assert repr(sender) == "<watch.Sender version=1 closed>"
    assert repr(receiver) == "<watch.Receiver version=1 seen=0 closed>"
