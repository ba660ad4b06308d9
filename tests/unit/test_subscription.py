"""Receivers of a bus over the ring of a channel: decoding, events, and payloads that come later."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import pytest

from pgnotifybus.broadcast import Receiver, ReceiverStatistics, Shared
from pgnotifybus.core.envelope import Stamp
from pgnotifybus.core.ring import Placeholder
from pgnotifybus.errors import Closed, Empty, Lagged, Malformed, PayloadLost
from pgnotifybus.messages import Gap, Notification
from pgnotifybus.subscription import Label, Subscription, TypedSubscription
from pgnotifybus.typed import Channel
from unit.polling import parked, ready

R = TypeVar("R", bound=Receiver[Any])

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Order(msgspec.Struct):
    id: int
    lines: list[str] = []


ORDERS = Channel("orders", Order)
BAD = '{"id":"secret"}'


def good(number: int) -> str:
    return ORDERS.encode(Order(number))


def typed(capacity: int = 16) -> tuple[Shared[Any], TypedSubscription[Order]]:
    """A channel as the bus makes it, and a receiver of it, on the first link."""
    shared: Shared[Any] = Shared(capacity, "orders")
    shared.mark(link_gap(0))
    receiver = TypedSubscription(shared, ORDERS)
    shared.mark(link_gap(1))
    return shared, receiver


def plain(capacity: int = 16) -> tuple[Shared[Any], Subscription]:
    shared: Shared[Any] = Shared(capacity, "orders")
    receiver = Subscription(shared)
    shared.mark(link_gap(1))
    return shared, receiver


def link_gap(generation: int) -> Gap:
    return Gap("reconnected", "orders", generation, None)


def publish(shared: Shared[Any], *values: str | Placeholder, label: Label = 7) -> int:
    """Hand on what has arrived, as the bus does; the position of the first of it."""
    first = shared.ring.tail
    promised = [index for index, value in enumerate(values) if isinstance(value, Placeholder)]
    shared.publish(values, [label] * len(values), promised)
    return first


READS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "recv": lambda receiver: receiver.recv(),
    "recv_many": lambda receiver: receiver.recv_many(),
    "for": lambda receiver: receiver.__anext__(),
    "events": lambda receiver: receiver.events().__anext__(),
}

every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


def payload_of(outcome: Any) -> Any:
    """The one payload that was received, however."""
    match outcome:
        case [value]:
            return value
        case Notification(payload=payload):
            return payload
        case _:
            return outcome


async def all_events(receiver: Any) -> list[Any]:
    """The events up to the end, `Malformed` as its payload."""
    return [
        event.payload if isinstance(event, Malformed) else event
        async for event in receiver.events()
    ]


# -- decoding -------------------------------------------------------------------------------------


@every_read
async def test_every_way_to_receive_decodes(read: Callable[[Any], Awaitable[Any]]) -> None:
    shared, receiver = typed()
    publish(shared, good(1))
    assert payload_of(ready(read(receiver))) == Order(1)
    waiting = parked(read(receiver))
    publish(shared, good(2))
    assert waiting.poll()
    assert payload_of(waiting.result()) == Order(2)


def test_try_recv_decodes() -> None:
    shared, receiver = typed()
    with pytest.raises(Empty):
        receiver.try_recv()
    publish(shared, good(1))
    assert receiver.try_recv() == Order(1)


async def test_a_channel_without_a_type_gives_plain_json() -> None:
    shared, _ = keep = typed()
    receiver = TypedSubscription(shared, Channel("orders"))
    publish(shared, '{"id":[1,null,"é"]}')
    assert ready(receiver.recv()) == {"id": [1, None, "é"]}
    assert len(keep[1]) == 1


async def test_what_one_receiver_does_to_a_value_no_other_sees() -> None:
    shared, first = typed()
    second = first.resubscribe()
    publish(shared, good(1), good(2))
    for read in (READS["recv"], READS["recv_many"]):
        mine = payload_of(ready(read(first)))
        mine.lines.append("mine")
        mine.id = 99
    assert ready(second.recv_many()) == [Order(1), Order(2)]


# -- what does not decode -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["recv", "recv_many", "for"])
async def test_what_does_not_decode_raises_in_its_place_and_receiving_goes_on(way: str) -> None:
    shared, receiver = typed()
    publish(shared, good(1), BAD, BAD, good(4))
    outcomes: list[object] = []
    while len(receiver):
        try:
            outcomes.append(payload_of(ready(READS[way](receiver))))
        except Malformed as malformed:
            outcomes.append((malformed.channel, malformed.payload))
    assert outcomes == [Order(1), ("orders", BAD), ("orders", BAD), Order(4)]
    assert receiver.statistics() == ReceiverStatistics(4, delivered=4, skipped=0, unread=0)


def test_try_recv_goes_on_behind_what_does_not_decode() -> None:
    shared, receiver = typed()
    publish(shared, BAD, good(2))
    with pytest.raises(Malformed):
        receiver.try_recv()
    assert receiver.try_recv() == Order(2)


async def test_a_loop_can_be_entered_again_after_malformed() -> None:
    shared, receiver = typed()
    publish(shared, good(1), BAD, good(3))
    shared.close()
    found: list[int] = []

    async def loop() -> None:
        async for order in receiver:
            found.append(order.id)  # noqa: PERF401 - it has to be there when the loop is left

    with pytest.raises(Malformed):
        await loop()
    await loop()
    assert found == [1, 3]
    with pytest.raises(Closed):
        ready(receiver.recv())


async def test_a_batch_hands_out_the_good_ones_then_the_bad_one_alone_then_the_rest() -> None:
    shared, receiver = typed()
    publish(shared, good(1), good(2), BAD, good(4), good(5))
    assert ready(receiver.recv_many()) == [Order(1), Order(2)]
    assert receiver.statistics() == ReceiverStatistics(5, delivered=2, skipped=0, unread=3)
    with pytest.raises(Malformed):
        ready(receiver.recv_many())
    assert receiver.statistics() == ReceiverStatistics(5, delivered=3, skipped=0, unread=2)
    assert ready(receiver.recv_many()) == [Order(4), Order(5)]
    assert receiver.statistics() == ReceiverStatistics(5, delivered=5, skipped=0, unread=0)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [[1], [2], [3], "bad", [5], [6]]),
        (2, [[1, 2], [3], "bad", [5, 6]]),
        (3, [[1, 2, 3], "bad", [5, 6]]),
        (4, [[1, 2, 3], "bad", [5, 6]]),
        (None, [[1, 2, 3], "bad", [5, 6]]),
    ],
)
async def test_a_batch_with_a_limit_stops_at_what_does_not_decode(
    limit: int | None, expected: list[object]
) -> None:
    shared, receiver = typed()
    publish(shared, good(1), good(2), good(3), BAD, good(5), good(6))
    found: list[object] = []
    while len(receiver):
        try:
            found.append([order.id for order in ready(receiver.recv_many(limit))])
        except Malformed:
            found.append("bad")
    assert found == expected


async def test_a_batch_that_waits_is_woken_by_what_does_not_decode() -> None:
    shared, receiver = typed()
    waiting = parked(receiver.recv_many())
    publish(shared, BAD, good(2))
    assert waiting.poll()
    with pytest.raises(Malformed):
        waiting.result()
    assert ready(receiver.recv_many()) == [Order(2)]


async def test_a_batch_cut_short_does_not_pass_the_gap_behind_it() -> None:
    """Trap 2: the cursor is put back, and with it what it has seen of the gaps."""
    shared, receiver = typed()
    publish(shared, good(1))
    shared.mark(link_gap(2))
    publish(shared, BAD)
    shared.mark(link_gap(3))
    publish(shared, good(3))
    assert ready(receiver.recv_many()) == [Order(1)]
    shared.close()
    assert await all_events(receiver) == [
        link_gap(2),
        BAD,
        link_gap(3),
        Notification("orders", Order(3), 7, 3),
    ]


async def test_a_bad_one_received_by_a_batch_passes_the_gap_in_front_of_it() -> None:
    shared, receiver = typed()
    shared.mark(link_gap(2))
    publish(shared, BAD)
    with pytest.raises(Malformed):
        ready(receiver.recv_many())
    shared.close()
    assert await all_events(receiver) == []


async def test_a_lag_is_told_before_anything_is_decoded() -> None:
    shared, receiver = typed(capacity=2)
    publish(shared, BAD, BAD, good(3), BAD)
    for read in (READS["recv"], READS["recv_many"]):
        late = receiver.resubscribe()
        publish(shared, BAD, BAD, good(3), BAD)
        with pytest.raises(Lagged) as caught:
            ready(read(late))
        assert caught.value.skipped == 2
        assert payload_of(ready(read(late))) == Order(3)
    with pytest.raises(Lagged):
        receiver.try_recv()


# -- events ---------------------------------------------------------------------------------------


async def test_events_tell_everything_in_its_true_order() -> None:
    shared, receiver = typed(capacity=5)
    publish(shared, good(1), label=(11, Stamp("bus-1", 1_700_000_000.5, TRACE)))
    publish(shared, BAD, label=(12, Stamp("bus-1")))
    events = receiver.events()
    first, second = ready(anext(events)), ready(anext(events))
    stamp = {"origin": "bus-1", "sent_at": 1_700_000_000.5, "traceparent": TRACE}
    assert first == Notification("orders", Order(1), 11, 1, **stamp)  # type: ignore[arg-type]
    assert isinstance(second, Malformed)
    assert (second.channel, second.payload) == ("orders", BAD)

    lost = Placeholder()
    publish(shared, *(good(number) for number in range(3, 6)), lost)
    shared.mark(link_gap(2))
    publish(shared, good(7), BAD, good(9), label=13)
    shared.lose(lost, "expired")
    shared.close()
    assert await all_events(receiver) == [
        Gap("lagged", "orders", 1, 2),
        Notification("orders", Order(5), 7, 1),
        Gap("expired", "orders", 2, 1),
        link_gap(2),
        Notification("orders", Order(7), 13, 2),
        BAD,
        Notification("orders", Order(9), 13, 2),
    ]
    assert receiver.statistics() == ReceiverStatistics(9, delivered=6, skipped=3, unread=0)


async def test_events_of_a_plain_channel_carry_what_the_envelope_said() -> None:
    shared, receiver = plain()
    publish(shared, "a", label=11)
    publish(shared, "b", label=(12, Stamp("bus-1", 1.5, TRACE)))
    publish(shared, "c", label=(13, Stamp(sent_at=0.0)))
    publish(shared, BAD, label=0)
    shared.close()
    assert await all_events(receiver) == [
        Notification("orders", "a", 11, 1),
        Notification("orders", "b", 12, 1, "bus-1", 1.5, TRACE),
        Notification("orders", "c", 13, 1, None, 0.0, None),
        Notification("orders", BAD, 0, 1),
    ]


async def test_what_is_not_known_of_a_message_is_zero() -> None:
    """Before the first link there is no generation, and without labels there is no sender."""
    shared: Shared[Any] = Shared(4, "orders")
    receiver = TypedSubscription(shared, ORDERS)
    shared.publish((good(1),))
    assert ready(anext(receiver.events())) == Notification("orders", Order(1), 0, 0)


async def test_an_item_that_does_not_decode_does_not_keep_its_receiver() -> None:
    """Trap 14: whoever collects bad payloads must not go on listening by that."""
    shared, receiver = typed()
    publish(shared, BAD)
    item = ready(anext(receiver.events()))
    assert isinstance(item, Malformed)
    assert "Expected `int`" in item.reason
    ref = weakref.ref(receiver)
    del receiver
    gc.collect()
    assert ref() is None
    assert shared.receivers == 0


async def test_an_item_that_does_not_decode_can_be_raised_and_received_over_again() -> None:
    shared, receiver = typed()
    publish(shared, BAD, good(2))
    item = ready(anext(receiver.events()))
    assert isinstance(item, Malformed)
    with pytest.raises(Malformed, match="orders"):
        raise item
    assert ready(receiver.recv()) == Order(2)


# -- coming and going -----------------------------------------------------------------------------


async def test_resubscribe_keeps_the_type_and_starts_from_now_on() -> None:
    shared, receiver = typed()
    publish(shared, good(1))
    late = receiver.resubscribe()
    assert type(late) is TypedSubscription
    publish(shared, good(2))
    assert ready(late.recv_many()) == [Order(2)]
    assert ready(receiver.recv_many()) == [Order(1), Order(2)]
    late.close()
    with pytest.raises(Closed):
        late.resubscribe()


@every_read
@pytest.mark.parametrize("payload", [good(1), BAD])
@pytest.mark.parametrize("when", ["before the send", "between the send and the run"])
async def test_a_cancelled_read_loses_nothing(
    read: Callable[[Any], Awaitable[Any]], payload: str, when: str
) -> None:
    """Invariant 6: also of what does not decode."""
    shared, receiver = typed()
    waiting = parked(read(receiver))
    if when == "before the send":
        waiting.cancel()
        publish(shared, payload)
    else:
        publish(shared, payload)
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result()
    assert receiver.statistics() == ReceiverStatistics(1, delivered=0, skipped=0, unread=1)
    if payload == BAD:
        with pytest.raises(Malformed):
            ready(receiver.recv())
    else:
        assert ready(receiver.recv()) == Order(1)


@every_read
async def test_it_drains_and_then_ends(read: Callable[[Any], Awaitable[Any]]) -> None:
    """Invariant 5."""
    shared, receiver = typed()
    publish(shared, good(1))
    shared.close()
    assert payload_of(ready(read(receiver))) == Order(1)
    with pytest.raises((Closed, StopAsyncIteration)):
        ready(read(receiver))


# -- payloads that come later ---------------------------------------------------------------------


def receivers() -> list[Callable[[], tuple[Shared[Any], Receiver[Any]]]]:
    return [plain, typed]


every_kind = pytest.mark.parametrize("make", receivers(), ids=["plain", "typed"])


@every_kind
@every_read
async def test_a_parked_read_goes_on_when_the_payload_comes(
    make: Callable[[], tuple[Shared[Any], Receiver[Any]]],
    read: Callable[[Any], Awaitable[Any]],
) -> None:
    shared, receiver = make()
    at = publish(shared, Placeholder())
    waiting = parked(read(receiver))
    shared.settle(at, good(1))
    assert waiting.woken()
    assert waiting.poll()
    assert payload_of(waiting.result()) in (Order(1), good(1))
    assert receiver.statistics() == ReceiverStatistics(1, delivered=1, skipped=0, unread=0)


@every_kind
@every_read
async def test_a_parked_read_goes_on_when_the_payload_is_lost(
    make: Callable[[], tuple[Shared[Any], Receiver[Any]]],
    read: Callable[[Any], Awaitable[Any]],
) -> None:
    shared, receiver = make()
    placeholder = Placeholder()
    publish(shared, placeholder, good(2))
    waiting = parked(read(receiver))
    shared.lose(placeholder, "expired")
    assert waiting.woken()
    assert waiting.poll()
    if read is READS["events"]:
        assert waiting.result() == Gap("expired", "orders", 1, 1)
    else:
        with pytest.raises(PayloadLost) as caught:
            waiting.result()
        assert caught.value.reason == "expired"
    assert receiver.statistics() == ReceiverStatistics(2, delivered=0, skipped=1, unread=1)
    assert payload_of(ready(read(receiver))) in (Order(2), good(2))


@every_read
async def test_what_comes_behind_does_not_overtake(read: Callable[[Any], Awaitable[Any]]) -> None:
    """Invariant 1: it may wake those who wait, and they wait on."""
    shared, receiver = typed()
    first, second = publish(shared, Placeholder()), publish(shared, Placeholder())
    waiting = parked(read(receiver))
    publish(shared, good(3))
    assert not waiting.poll()
    shared.settle(second, good(2))
    assert not waiting.poll()
    shared.settle(first, good(1))
    assert waiting.poll()
    rest = [waiting.result()]
    while len(receiver):
        rest.append(ready(read(receiver)))
    flat = [
        payload_of(one) for each in rest for one in (each if isinstance(each, list) else [each])
    ]
    assert flat == [Order(1), Order(2), Order(3)]


@every_read
@pytest.mark.parametrize("when", ["before it comes", "between its coming and the run"])
@pytest.mark.parametrize("lost", [False, True])
async def test_a_read_that_is_cancelled_while_it_waits_for_a_payload_loses_nothing(
    read: Callable[[Any], Awaitable[Any]], when: str, lost: bool
) -> None:
    """Invariant 6."""
    shared, receiver = typed()
    placeholder = Placeholder()
    at = publish(shared, placeholder, good(2))

    def come() -> None:
        if lost:
            shared.lose(placeholder, "unreadable")
        else:
            shared.settle(at, good(1))

    waiting = parked(read(receiver))
    if when == "between its coming and the run":
        come()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result()
    assert receiver.statistics() == ReceiverStatistics(2, delivered=0, skipped=0, unread=2)
    if when == "before it comes":
        come()
    if lost:
        with pytest.raises(PayloadLost):
            receiver.try_recv()
        assert receiver.try_recv() == Order(2)
    else:
        assert ready(receiver.recv_many()) == [Order(1), Order(2)]


async def test_tasks_that_wait_for_a_payload_are_all_woken() -> None:
    shared, first = typed()
    second = first.resubscribe()
    at = publish(shared, Placeholder())
    tasks = [asyncio.create_task(one.recv()) for one in (first, second)]
    await asyncio.sleep(0)  # each task runs until it waits
    assert len(shared.parking) == 2
    shared.settle(at, good(1))
    assert await asyncio.gather(*tasks) == [Order(1), Order(1)]
    assert len(shared.parking) == 0


@every_kind
def test_a_payload_that_is_not_there_yet_is_unread_and_not_to_be_had(
    make: Callable[[], tuple[Shared[Any], Receiver[Any]]],
) -> None:
    shared, receiver = make()
    at = publish(shared, good(1), Placeholder(), good(3)) + 1
    receiver.try_recv()
    for _ in range(2):
        with pytest.raises(Empty):
            receiver.try_recv()
        assert len(receiver) == 2
    shared.settle(at, good(2))
    assert len(receiver) == 2
    assert receiver.try_recv() in (Order(2), good(2))
    assert receiver.try_recv() in (Order(3), good(3))


def test_a_payload_that_comes_later_may_be_malformed_too() -> None:
    shared, receiver = typed()
    at = publish(shared, Placeholder(), good(2))
    shared.settle(at, BAD)
    with pytest.raises(Malformed):
        receiver.try_recv()
    assert receiver.try_recv() == Order(2)


async def test_a_batch_stops_in_front_of_a_payload_that_is_not_there() -> None:
    shared, receiver = typed()
    placeholder = Placeholder()
    publish(shared, good(1), BAD, good(3), placeholder, good(5))
    assert ready(receiver.recv_many()) == [Order(1)]
    with pytest.raises(Malformed):
        ready(receiver.recv_many())
    assert ready(receiver.recv_many()) == [Order(3)]
    waiting = parked(receiver.recv_many())
    shared.lose(placeholder, "unreadable")
    waiting.poll()
    with pytest.raises(PayloadLost) as caught:
        waiting.result()
    assert caught.value.reason == "unreadable"
    assert ready(receiver.recv_many()) == [Order(5)]
    assert receiver.statistics() == ReceiverStatistics(5, delivered=4, skipped=1, unread=0)


async def test_a_loop_waits_for_a_payload_and_goes_on_quickly_behind_it() -> None:
    shared, receiver = typed()
    at = publish(shared, good(1), Placeholder(), good(3)) + 1
    assert ready(anext(receiver)) == Order(1)
    waiting = parked(anext(receiver))
    shared.settle(at, good(2))
    shared.close()
    assert waiting.poll()
    assert waiting.result() == Order(2)
    assert [order async for order in receiver] == [Order(3)]


async def test_a_gap_behind_a_payload_that_is_not_there_is_told_behind_it() -> None:
    """Trap 2: the payload was sent over the old link."""
    shared, receiver = plain()
    at = publish(shared, Placeholder())
    shared.mark(link_gap(2))
    publish(shared, "b")
    waiting = parked(anext(receiver.events()))
    shared.settle(at, "a")
    assert waiting.poll()
    assert waiting.result() == Notification("orders", "a", 7, 1)
    shared.close()
    assert await all_events(receiver) == [link_gap(2), Notification("orders", "b", 7, 2)]


async def test_a_gap_in_front_of_a_payload_that_is_not_there_is_told_at_once() -> None:
    shared, receiver = plain()
    waiting = parked(anext(receiver.events()))
    shared.mark(link_gap(2))
    publish(shared, Placeholder())
    assert waiting.poll()
    assert waiting.result() == link_gap(2)
    parked(anext(receiver.events())).cancel()


async def test_a_lag_over_payloads_that_are_not_there_is_exact() -> None:
    """Trap 13: a promise that was overwritten is skipped, and what comes too late is dropped."""
    shared, receiver = plain(capacity=2)
    placeholder = Placeholder()
    at = publish(shared, placeholder, Placeholder())
    waiting = parked(receiver.recv())
    publish(shared, "c", "d", "e")
    shared.settle(at, "late")
    shared.lose(placeholder, "expired")
    assert waiting.poll()
    with pytest.raises(Lagged) as caught:
        waiting.result()
    assert caught.value.skipped == 3
    assert ready(receiver.recv_many()) == ["d", "e"]
    assert receiver.statistics() == ReceiverStatistics(5, delivered=2, skipped=3, unread=0)


@every_kind
async def test_what_stands_behind_a_payload_that_never_came_is_handed_out_at_the_end(
    make: Callable[[], tuple[Shared[Any], Receiver[Any]]],
) -> None:
    """Invariant 5: `Closed` means that everything has been received."""
    shared, receiver = make()
    publish(shared, Placeholder(), good(2))
    waiting = parked(receiver.recv())
    shared.close()
    assert waiting.poll()
    with pytest.raises(PayloadLost) as caught:
        waiting.result()
    assert caught.value.reason == "unreadable"
    assert ready(receiver.recv()) in (Order(2), good(2))
    for _ in range(2):
        with pytest.raises(Closed):
            receiver.try_recv()


async def test_events_tell_at_the_end_what_never_came() -> None:
    shared, receiver = plain()
    lost, settled = Placeholder(), Placeholder()
    at = publish(shared, lost, settled, Placeholder(), "d")
    shared.lose(lost, "expired")
    shared.settle(at + 1, "b")
    shared.close()
    assert await all_events(receiver) == [
        Gap("expired", "orders", 1, 1),
        Notification("orders", "b", 7, 1),
        Gap("unreadable", "orders", 1, 1),
        Notification("orders", "d", 7, 1),
    ]


async def test_closing_a_receiver_ends_its_wait_for_a_payload() -> None:
    shared, receiver = typed()
    other = receiver.resubscribe()
    at = publish(shared, Placeholder())
    waiting = parked(receiver.recv())
    receiver.close()
    assert waiting.poll()
    with pytest.raises(Closed):
        waiting.result()
    shared.settle(at, good(1))
    assert ready(other.recv()) == Order(1)
    assert receiver.statistics() == ReceiverStatistics(1, delivered=0, skipped=0, unread=1)


def test_a_payload_that_nobody_waits_for_any_more_is_dropped() -> None:
    """The channel was left and subscribed to again while it was fetched."""
    shared, receiver = typed()
    placeholder = Placeholder()
    at = publish(shared, placeholder)
    receiver.close()
    late = TypedSubscription(shared, ORDERS)
    publish(shared, good(2))
    shared.settle(at, good(1))
    shared.lose(placeholder, "expired")
    assert late.try_recv() == Order(2)
    with pytest.raises(Empty):
        late.try_recv()
