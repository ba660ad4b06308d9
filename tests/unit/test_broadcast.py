"""The broadcast channel against what tokio documents of `sync::broadcast`, and what we add."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, overload

import pytest

from pgnotifybus import broadcast
from pgnotifybus.broadcast import Receiver, ReceiverStatistics, Sender, Shared, Statistics
from pgnotifybus.errors import Closed, Empty, Lagged
from pgnotifybus.messages import Gap
from unit.polling import parked, ready


class Value:
    """Something that can be referred to weakly."""


def skipped_by(receiver: Receiver[Any]) -> int:
    """The number in the `Lagged` that must come now."""
    with pytest.raises(Lagged) as caught:
        receiver.try_recv()
    return caught.value.skipped


def drain(receiver: Receiver[Any]) -> list[Any]:
    """All values that are there now."""
    values = []
    while len(receiver):
        values.append(receiver.try_recv())
    return values


# -- making a channel -----------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        broadcast.channel(capacity)


@pytest.mark.parametrize("capacity", [True, 1.5, "16", None])
def test_a_capacity_that_is_no_int_is_refused(capacity: int) -> None:
    with pytest.raises(TypeError, match="must be an int"):
        broadcast.channel(capacity)


@pytest.mark.parametrize("capacity", [1, 3, 16, 100])
def test_the_capacity_is_exactly_what_was_asked_for(capacity: int) -> None:
    """Not rounded up to a power of two, as in tokio."""
    sender, receiver = broadcast.channel(capacity)
    sender.send_many(range(capacity))
    assert drain(receiver) == list(range(capacity))
    sender.send_many(range(capacity + 1))
    assert skipped_by(receiver) == 1
    assert drain(receiver) == list(range(1, capacity + 1))


# -- sending --------------------------------------------------------------------------------------


def test_send_says_how_many_receivers_there_are() -> None:
    sender, first = broadcast.channel(4)
    assert sender.send("a") == 1
    second = sender.subscribe()
    assert sender.send("b") == 2
    assert sender.send_many(["c", "d"]) == 2
    first.close()
    assert sender.send("e") == 1
    assert drain(second) == ["b", "c", "d", "e"]


def test_sending_to_nobody_is_no_error_and_keeps_nothing() -> None:
    sender, receiver = broadcast.channel(4)
    receiver.close()
    value = Value()
    ref = weakref.ref(value)
    assert sender.send(value) == 0
    assert sender.send_many([value, value]) == 0
    del value
    assert ref() is None
    late = sender.subscribe()
    assert len(late) == 0
    sender.send("for the late one")
    assert late.try_recv() == "for the late one"


def test_every_receiver_gets_every_value_in_order() -> None:
    sender, first = broadcast.channel(8)
    receivers = [first, *(sender.subscribe() for _ in range(3))]
    sender.send(1)
    sender.send_many([2, 3])
    sender.send(4)
    assert [drain(receiver) for receiver in receivers] == [[1, 2, 3, 4]] * 4


@pytest.mark.parametrize("make", [list, tuple, iter, dict.fromkeys, "".join])
def test_send_many_takes_any_iterable(make: Callable[[list[str]], Any]) -> None:
    sender, receiver = broadcast.channel(8)
    assert sender.send_many(make(["a", "b", "c"])) == 1
    assert drain(receiver) == ["a", "b", "c"]


def test_send_many_of_nothing_wakes_nobody() -> None:
    sender, receiver = broadcast.channel(8)

    async def main() -> None:
        waiting = parked(receiver.recv())
        assert sender.send_many([]) == 1
        assert not waiting.woken()

    asyncio.run(main())


def test_send_many_of_more_than_the_capacity_is_a_lag() -> None:
    sender, receiver = broadcast.channel(3)
    sender.send_many(range(10))
    assert skipped_by(receiver) == 7
    assert drain(receiver) == [7, 8, 9]


class Breaking(Sequence[str]):
    """A sequence that fails on the way, or sends something itself."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile

    def __len__(self) -> int:
        return 2

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if index == 1:
            self._meanwhile()
        if index == 2:
            raise IndexError
        return str(index)


def test_an_iterable_that_raises_sends_nothing() -> None:
    def fail() -> None:
        raise ConnectionError("the rest could not be read")

    def generator() -> Iterator[str]:
        yield "0"
        fail()

    sender, receiver = broadcast.channel(8)
    for values in (Breaking(fail), generator()):
        with pytest.raises(ConnectionError):
            sender.send_many(values)
    assert len(receiver) == 0
    sender.send("next")
    assert drain(receiver) == ["next"]
    assert receiver.statistics() == ReceiverStatistics(1, 1, 0, 0)


def test_an_iterable_that_sends_is_behind_what_it_sent() -> None:
    sender, receiver = broadcast.channel(8)
    sender.send_many(Breaking(lambda: sender.send("meanwhile")))
    assert drain(receiver) == ["meanwhile", "0", "1"]
    assert receiver.statistics().sent == 3


# -- receiving without waiting --------------------------------------------------------------------


def test_try_recv_tells_empty_lagged_and_closed_apart() -> None:
    """tokio: TryRecvError::{Empty, Lagged, Closed}; Closed only once all has been handed out."""
    sender, receiver = broadcast.channel(2)
    with pytest.raises(Empty):
        receiver.try_recv()
    sender.send_many([1, 2, 3])
    assert skipped_by(receiver) == 1
    assert receiver.try_recv() == 2
    sender.close()
    assert receiver.try_recv() == 3
    for _ in range(2):
        with pytest.raises(Closed):
            receiver.try_recv()


@pytest.mark.parametrize("rounds", [1, 2, 5, 100])
@pytest.mark.parametrize("capacity", [1, 3, 8])
def test_lagged_is_exact_and_receiving_goes_on_at_the_oldest(capacity: int, rounds: int) -> None:
    """Trap 13: more than one ring length missed."""
    sender, receiver = broadcast.channel(capacity)
    sent = capacity * (rounds + 1)
    for value in range(sent):
        sender.send(value)
    assert skipped_by(receiver) == capacity * rounds
    assert drain(receiver) == list(range(sent - capacity, sent))
    with pytest.raises(Empty):
        receiver.try_recv()


def test_a_receiver_may_lag_again_before_it_has_read_on() -> None:
    """Trap 13: the second count goes on from where the first one stood."""
    sender, receiver = broadcast.channel(2)
    sender.send_many([0, 1, 2])
    assert skipped_by(receiver) == 1
    sender.send_many([3, 4, 5])
    assert skipped_by(receiver) == 3
    assert drain(receiver) == [4, 5]
    assert receiver.statistics() == ReceiverStatistics(sent=6, delivered=2, skipped=4, unread=0)


def test_only_the_slow_receiver_lags() -> None:
    """Invariant 4, isolation."""
    sender, slow = broadcast.channel(2)
    quick = sender.subscribe()
    for value in range(10):
        sender.send(value)
        assert quick.try_recv() == value
    assert skipped_by(slow) == 8
    assert quick.statistics().skipped == 0


def test_a_full_ring_is_no_lag_and_one_more_is() -> None:
    """tokio: the value that is just being overwritten counts."""
    sender, receiver = broadcast.channel(3)
    sender.send_many("abc")
    assert receiver.try_recv() == "a"
    sender.send("d")
    assert drain(receiver) == ["b", "c", "d"]
    sender.send_many("efgh")
    assert skipped_by(receiver) == 1


def test_lagged_says_what_to_do() -> None:
    sender, receiver = broadcast.channel(1)
    sender.send_many([1, 2, 3])
    with pytest.raises(Lagged, match=r"skipped 2 value.*recv_many.*capacity"):
        receiver.try_recv()


# -- waiting --------------------------------------------------------------------------------------


async def test_recv_hands_out_what_is_there_without_waiting() -> None:
    sender, receiver = broadcast.channel(4)
    sender.send("there")
    assert ready(receiver.recv()) == "there"


async def test_recv_waits_for_a_value() -> None:
    sender, receiver = broadcast.channel(4)
    waiting = parked(receiver.recv())
    assert not waiting.woken()
    sender.send("new")
    assert waiting.woken()
    assert waiting.poll()
    assert waiting.result() == "new"


async def test_a_woken_receiver_that_is_overrun_before_it_runs_lags() -> None:
    sender, receiver = broadcast.channel(2)
    waiting = parked(receiver.recv())
    sender.send_many(range(5))
    waiting.poll()
    with pytest.raises(Lagged) as caught:
        waiting.result()
    assert caught.value.skipped == 3
    assert ready(receiver.recv()) == 3


async def test_two_tasks_parked_on_one_receiver_get_each_value_once() -> None:
    """Both are woken: whichever comes first takes the value, the other one waits on."""
    sender, receiver = broadcast.channel(4)
    first, second = parked(receiver.recv()), parked(receiver.recv())
    sender.send(1)
    assert first.woken()
    assert second.woken()
    assert second.poll()
    assert not first.poll()
    sender.send(2)
    assert first.poll()
    assert [second.result(), first.result()] == [1, 2]
    assert receiver.statistics().delivered == 2


async def test_two_values_for_two_tasks_parked_on_one_receiver() -> None:
    sender, receiver = broadcast.channel(4)
    first, second = parked(receiver.recv()), parked(receiver.recv())
    sender.send_many([1, 2])
    assert first.poll()
    assert second.poll()
    assert [first.result(), second.result()] == [1, 2]


async def test_a_thousand_parked_receivers_are_all_woken_by_one_send() -> None:
    sender, first = broadcast.channel(4)
    receivers = [first, *(sender.subscribe() for _ in range(999))]
    waiting = [parked(receiver.recv()) for receiver in receivers]
    assert sender.send("all") == 1000
    assert all(one.woken() and one.poll() and one.result() == "all" for one in waiting)


async def test_cancelling_one_of_a_hundred_disturbs_nobody() -> None:
    """Invariant 6: a shared future would be cancelled for all of them."""
    sender, first = broadcast.channel(4)
    receivers = [first, *(sender.subscribe() for _ in range(99))]
    tasks = [asyncio.create_task(receiver.recv()) for receiver in receivers]
    await asyncio.sleep(0)  # each task runs until it waits
    assert len(first._shared.parking) == 100
    tasks[50].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[50]
    assert not any(task.done() for task in tasks[:50] + tasks[51:])
    sender.send("still here")
    assert await asyncio.gather(*tasks[:50], *tasks[51:]) == ["still here"] * 99
    assert ready(receivers[50].recv()) == "still here"


def readers() -> list[Callable[[Receiver[Any]], Awaitable[Any]]]:
    return [
        lambda receiver: receiver.recv(),
        lambda receiver: receiver.recv_many(),
        lambda receiver: receiver.__anext__(),
        lambda receiver: receiver.events().__anext__(),
    ]


every_reader = pytest.mark.parametrize("read", readers(), ids=["recv", "many", "for", "events"])


@every_reader
@pytest.mark.parametrize("when", ["before the send", "between the send and the run"])
async def test_a_cancelled_read_loses_nothing(
    read: Callable[[Receiver[Any]], Awaitable[Any]], when: str
) -> None:
    """Invariant 6: also when the value has come and only the task has not run yet."""
    sender, receiver = broadcast.channel(4)
    task = asyncio.ensure_future(read(receiver))
    await asyncio.sleep(0)  # the task runs until it waits
    assert len(receiver._shared.parking) == 1
    if when == "before the send":
        task.cancel()
        sender.send("kept")
    else:
        sender.send("kept")
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert receiver.statistics() == ReceiverStatistics(sent=1, delivered=0, skipped=0, unread=1)
    assert ready(receiver.recv()) == "kept"
    assert len(receiver._shared.parking) == 0


@every_reader
async def test_every_way_to_read_goes_on_at_the_same_place(
    read: Callable[[Receiver[Any]], Awaitable[Any]],
) -> None:
    sender, receiver = broadcast.channel(8)
    sender.send_many([1, 2])
    assert receiver.try_recv() == 1
    assert ready(read(receiver)) in (2, [2])
    waiting = parked(read(receiver))
    sender.send(3)
    waiting.poll()
    assert waiting.result() in (3, [3])
    assert len(receiver) == 0


# -- batches --------------------------------------------------------------------------------------


async def test_recv_many_takes_all_that_is_there() -> None:
    sender, receiver = broadcast.channel(8)
    sender.send_many(range(5))
    assert ready(receiver.recv_many()) == [0, 1, 2, 3, 4]
    waiting = parked(receiver.recv_many())
    sender.send(5)
    sender.send(6)
    assert waiting.poll()
    assert waiting.result() == [5, 6]


async def test_recv_many_takes_no_more_than_its_limit() -> None:
    sender, receiver = broadcast.channel(8)
    sender.send_many(range(5))
    assert [ready(receiver.recv_many(2)) for _ in range(3)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("limit", [0, -1])
async def test_recv_many_refuses_a_limit_below_one(limit: int) -> None:
    """It would return nothing and for ever; refused also when it would have to wait."""
    sender, receiver = broadcast.channel(8)
    for _ in range(2):
        with pytest.raises(ValueError, match="at least 1"):
            ready(receiver.recv_many(limit))
        sender.send("untouched")
    assert len(receiver) == 2


async def test_recv_many_lags_and_goes_on() -> None:
    sender, receiver = broadcast.channel(3)
    sender.send_many(range(10))
    with pytest.raises(Lagged) as caught:
        ready(receiver.recv_many(1))
    assert caught.value.skipped == 7
    assert ready(receiver.recv_many()) == [7, 8, 9]


# -- iterating ------------------------------------------------------------------------------------


async def test_a_loop_can_be_entered_again_after_lagged() -> None:
    sender, receiver = broadcast.channel(3)
    sender.send_many(range(5))
    sender.close()
    loop = aiter(receiver)
    with pytest.raises(Lagged):
        ready(anext(loop))
    assert ready(anext(loop)) == 2
    assert [value async for value in receiver] == [3, 4]
    assert [value async for value in receiver] == []


async def test_a_parked_loop_ends_when_the_channel_is_closed() -> None:
    sender, receiver = broadcast.channel(3)
    waiting = parked(receiver.__anext__())
    sender.close()
    waiting.poll()
    with pytest.raises(StopAsyncIteration):
        waiting.result()


# -- events ---------------------------------------------------------------------------------------


async def test_events_tell_a_lag_in_its_place() -> None:
    """Trap 13: exact also where more than one ring length is missing."""
    sender, receiver = broadcast.channel(3)
    sender.send(0)
    events = receiver.events()
    assert ready(events.__anext__()) == 0
    sender.send_many(range(1, 11))
    sender.close()
    assert [event async for event in events] == [Gap("lagged", "", 0, 7), 8, 9, 10]
    assert receiver.statistics() == ReceiverStatistics(sent=11, delivered=4, skipped=7, unread=0)


async def test_events_can_be_entered_again_and_mixed() -> None:
    sender, receiver = broadcast.channel(8)
    sender.send_many(range(4))
    first, second = receiver.events(), receiver.events()
    assert ready(first.__anext__()) == 0
    assert ready(second.__anext__()) == 1
    assert receiver.try_recv() == 2
    async for event in first:
        assert event == 3
        break
    sender.close()
    assert [event async for event in first] == []


async def test_events_end_when_the_receiver_is_closed() -> None:
    _, receiver = pair = broadcast.channel(8)
    waiting = parked(receiver.events().__anext__())
    receiver.close()
    waiting.poll()
    with pytest.raises(StopAsyncIteration):
        waiting.result()
    assert pair[0].receiver_count == 0


def link_gap(generation: int) -> Gap:
    return Gap("reconnected", "orders", generation, None)


def bus_channel(capacity: int) -> tuple[Shared[str], Receiver[str]]:
    """A channel as the bus makes it: with a name, and marks for its links."""
    shared: Shared[str] = Shared(capacity, "orders")
    receiver = Receiver(shared)
    shared.mark(link_gap(1))
    return shared, receiver


async def read_all(receiver: Receiver[Any]) -> list[object]:
    return [event async for event in receiver.events()]


async def test_a_gap_stands_between_the_links() -> None:
    """Trap 2: behind the last message of the old link, in front of the first of the new."""
    shared, receiver = bus_channel(8)
    shared.publish(["a", "b"], [1, 1])
    shared.mark(link_gap(2))
    shared.publish(["c"], [1])
    shared.close()
    assert await read_all(receiver) == ["a", "b", link_gap(2), "c"]


async def test_the_first_link_is_no_gap() -> None:
    shared, receiver = bus_channel(8)
    waiting = parked(receiver.events().__anext__())
    shared.publish(["a"], [1])
    waiting.poll()
    assert waiting.result() == "a"


async def test_a_gap_wakes_who_waits_for_events_and_nobody_else() -> None:
    shared, receiver = bus_channel(8)
    plain = Receiver(shared)
    events, recv = parked(receiver.events().__anext__()), parked(plain.recv())
    shared.mark(link_gap(2))
    assert events.woken()
    assert events.poll()
    assert events.result() == link_gap(2)
    assert not recv.poll()


async def test_a_gap_is_told_even_if_the_channel_closes_behind_it() -> None:
    shared, receiver = bus_channel(8)
    shared.mark(link_gap(2))
    shared.close()
    assert await read_all(receiver) == [link_gap(2)]


async def test_a_lag_over_a_gap_tells_both() -> None:
    """Trap 13: it lags and a gap happens; both name the link of what comes next."""
    shared, receiver = bus_channel(2)
    shared.publish(["a", "b"], [1, 1])
    shared.mark(link_gap(2))
    shared.publish(["c", "d", "e"], [1, 1, 1])
    shared.close()
    assert await read_all(receiver) == [Gap("lagged", "orders", 2, 3), link_gap(2), "d", "e"]


async def test_a_lag_in_front_of_a_gap_belongs_to_the_old_link() -> None:
    shared, receiver = bus_channel(2)
    shared.publish(["a", "b", "c"], [1, 1, 1])
    shared.mark(link_gap(2))
    shared.publish(["d"], [1])
    shared.close()
    assert await read_all(receiver) == [Gap("lagged", "orders", 1, 2), "c", link_gap(2), "d"]


async def test_who_subscribes_after_a_gap_is_not_told_of_it() -> None:
    shared, _ = keep = bus_channel(8)
    shared.mark(link_gap(2))
    late = Receiver(shared)
    shared.close()
    assert await read_all(late) == []
    assert len(keep[1]) == 0


async def test_a_lagged_error_does_not_swallow_the_gap() -> None:
    """The ways to read are mixed over a lag: `Lagged` here, the gap there."""
    shared, receiver = bus_channel(2)
    shared.mark(link_gap(2))
    shared.publish(["a", "b", "c"], [1, 1, 1])
    assert skipped_by(receiver) == 1
    shared.close()
    assert await read_all(receiver) == [link_gap(2), "b", "c"]


# -- ending ---------------------------------------------------------------------------------------


@every_reader
@pytest.mark.parametrize("how", ["closed", "dropped"])
async def test_a_parked_read_ends_with_the_sender(
    read: Callable[[Receiver[Any]], Awaitable[Any]], how: str
) -> None:
    """tokio: all senders dropped is closed."""
    sender, receiver = broadcast.channel(4)
    waiting = parked(read(receiver))
    if how == "closed":
        sender.close()
    del sender
    await asyncio.sleep(0)  # a dropped sender speaks through the loop
    assert waiting.woken()
    waiting.poll()
    with pytest.raises((Closed, StopAsyncIteration)):
        waiting.result()


@pytest.mark.parametrize("how", ["closed", "dropped"])
async def test_what_is_unread_is_handed_out_before_closed(how: str) -> None:
    """Invariant 5: each receiver drains, then raises Closed; a lag included."""
    sender, receiver = broadcast.channel(2)
    sender.send_many([1, 2, 3])
    if how == "closed":
        sender.close()
    del sender
    with pytest.raises(Lagged):
        ready(receiver.recv())
    assert ready(receiver.recv()) == 2
    assert ready(receiver.recv_many()) == [3]
    for _ in range(2):
        with pytest.raises(Closed):
            ready(receiver.recv())
        with pytest.raises(Closed):
            ready(receiver.recv_many())


def test_sending_after_close_raises_and_closing_twice_is_harmless() -> None:
    sender, receiver = broadcast.channel(4)
    sender.close()
    sender.close()
    with pytest.raises(Closed):
        sender.send(1)
    with pytest.raises(Closed):
        sender.send_many([1, 2])
    with pytest.raises(Closed):
        sender.send_many([])
    assert receiver.statistics().sent == 0


async def test_who_subscribes_to_a_closed_channel_is_at_its_end() -> None:
    sender, receiver = broadcast.channel(4)
    sender.send("before")
    sender.close()
    for late in (sender.subscribe(), receiver.resubscribe()):
        with pytest.raises(Closed):
            ready(late.recv())
        assert [value async for value in late] == []


@every_reader
async def test_closing_a_receiver_ends_its_parked_read_at_once(
    read: Callable[[Receiver[Any]], Awaitable[Any]],
) -> None:
    sender, receiver = broadcast.channel(4)
    other = sender.subscribe()
    waiting, others = parked(read(receiver)), parked(read(other))
    receiver.close()
    assert waiting.woken()
    waiting.poll()
    with pytest.raises((Closed, StopAsyncIteration)):
        waiting.result()
    if others.woken():  # it may be woken for nothing, but must not notice
        assert not others.poll()
    sender.send("for the other")
    assert others.poll()
    assert others.result() in ("for the other", ["for the other"])


async def test_a_closed_receiver_is_at_its_end_whatever_it_had_unread() -> None:
    sender, receiver = broadcast.channel(4)
    sender.send_many([1, 2])
    receiver.close()
    receiver.close()
    assert sender.receiver_count == 0, "closing twice must count once"
    assert len(receiver) == 0
    for _ in range(2):
        with pytest.raises(Closed):
            receiver.try_recv()
        with pytest.raises(Closed):
            ready(receiver.recv())
        with pytest.raises(Closed):
            ready(receiver.recv_many())
    assert [value async for value in receiver] == []
    assert [event async for event in receiver.events()] == []
    with pytest.raises(Closed):
        receiver.resubscribe()


def test_closing_while_lagging_keeps_the_account() -> None:
    """Trap 13: it unsubscribes while lagging."""
    sender, receiver = broadcast.channel(2)
    keep = sender.subscribe()
    sender.send_many(range(5))
    assert skipped_by(receiver) == 3
    assert receiver.try_recv() == 3
    sender.send_many(range(5, 12))
    receiver.close()
    sender.send_many(range(100))
    account = ReceiverStatistics(sent=12, delivered=1, skipped=3, unread=8)
    assert receiver.statistics() == account
    del receiver
    assert sender.receiver_count == 1
    assert len(keep) == 2


# -- who receives ---------------------------------------------------------------------------------


def test_subscribe_and_resubscribe_see_only_later_values() -> None:
    sender, receiver = broadcast.channel(4)
    sender.send("early")
    late, later = sender.subscribe(), receiver.resubscribe()
    assert sender.receiver_count == 3
    sender.send("late")
    assert drain(receiver) == ["early", "late"]
    assert drain(late) == drain(later) == ["late"]


@pytest.mark.parametrize("cycle", [False, True])
def test_a_receiver_that_is_garbage_leaves_the_channel(cycle: bool) -> None:
    """Trap 14: a subscriber is garbage-collected."""
    sender, receiver = broadcast.channel(4)
    keep: list[object] = [sender.subscribe()]
    if cycle:
        loop: list[object] = [receiver]
        loop.append(loop)
        del loop
    del receiver
    gc.collect()
    assert sender.receiver_count == 1
    assert sender.send("one") == 1
    keep.clear()
    assert sender.receiver_count == 0
    assert sender.send("none") == 0


def test_a_closed_receiver_that_is_garbage_does_not_leave_twice() -> None:
    sender, receiver = broadcast.channel(4)
    keep = sender.subscribe()
    receiver.close()
    del receiver
    gc.collect()
    assert sender.receiver_count == 1
    assert len(keep) == 0


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_the_last_receiver_to_leave_is_announced_once(how: str) -> None:
    """Trap 14: the bus will UNLISTEN on it."""
    announced: list[int] = []
    shared: Shared[str] = Shared(4, "orders", lambda: announced.append(shared.receivers))
    first, second = Receiver(shared), Receiver(shared)
    if how == "closed":
        first.close()
    del first
    assert announced == []
    if how == "closed":
        second.close()
        second.close()
    del second
    assert announced == [0]


def test_a_parked_receiver_is_not_garbage() -> None:
    """Its task holds it, though nobody else does."""

    async def main() -> None:
        sender, receiver = broadcast.channel(4)
        task = asyncio.create_task(receiver.recv())
        await asyncio.sleep(0)
        del receiver
        gc.collect()
        assert sender.send("you") == 1
        assert await task == "you"

    asyncio.run(main())


# -- memory and numbers ---------------------------------------------------------------------------


def test_the_values_kept_are_bounded_and_gone_with_the_last_receiver() -> None:
    sender, receiver = broadcast.channel(10)
    alive: weakref.WeakSet[Value] = weakref.WeakSet()
    for _ in range(1000):
        value = Value()
        alive.add(value)
        sender.send(value)
        del value
        assert len(alive) <= 10 + 16
    assert len(alive) >= 10
    receiver.close()
    assert len(alive) == 0


def test_the_values_are_gone_with_the_next_send_if_the_last_receiver_was_garbage() -> None:
    """Not before: the collector may run in any thread and must not touch the ring."""
    sender, receiver = broadcast.channel(10)
    value = Value()
    ref = weakref.ref(value)
    sender.send(value)
    del value, receiver
    assert ref() is not None, "a finalizer has touched the ring"
    assert sender.send("next") == 0
    assert ref() is None
    assert sender.statistics().kept == 0


def test_len_is_never_more_than_the_capacity() -> None:
    sender, receiver = broadcast.channel(3)
    lengths = []
    for value in range(6):
        sender.send(value)
        lengths.append(len(receiver))
    assert lengths == [1, 2, 3, 3, 3, 3]
    assert skipped_by(receiver) == 3
    assert len(receiver) == 3


def test_an_empty_receiver_is_true() -> None:
    """`if receiver:` asks whether `subscribe` gave one."""
    _, receiver = broadcast.channel(3)
    assert receiver
    assert len(receiver) == 0


def test_statistics_of_the_channel() -> None:
    sender, receiver = broadcast.channel(3)
    sender.send_many(range(5))
    assert sender.statistics() == Statistics(3, sent=5, kept=3, receivers=1, closed=False)
    receiver.close()
    sender.close()
    assert sender.statistics() == Statistics(3, sent=5, kept=0, receivers=0, closed=True)


def test_statistics_of_a_receiver_add_up_at_each_step() -> None:
    """Invariant 2. What has been overwritten counts as unread until it was reported."""
    sender, receiver = broadcast.channel(2)
    sender.send_many(range(5))
    assert receiver.statistics() == ReceiverStatistics(sent=5, delivered=0, skipped=0, unread=5)
    assert skipped_by(receiver) == 3
    assert receiver.statistics() == ReceiverStatistics(sent=5, delivered=0, skipped=3, unread=2)
    receiver.try_recv()
    assert receiver.statistics() == ReceiverStatistics(sent=5, delivered=1, skipped=3, unread=1)
    late = sender.subscribe()
    assert late.statistics() == ReceiverStatistics(sent=0, delivered=0, skipped=0, unread=0)


def test_what_is_printed_shows_how_it_stands() -> None:
    sender, receiver = broadcast.channel(3)
    sender.send(1)
    assert repr(sender) == "<broadcast.Sender capacity=3 receivers=1 open>"
    assert repr(receiver) == "<Receiver capacity=3 receivers=1 open unread=1>"
    receiver.close()
    sender.close()
    assert repr(sender) == "<broadcast.Sender capacity=3 receivers=0 closed>"


def test_the_handles_are_generic() -> None:
    def typed(sender: Sender[int], receiver: Receiver[int]) -> int:
        sender.send(1)
        return receiver.try_recv()

    assert typed(*broadcast.channel(1)) == 1
