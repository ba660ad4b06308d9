"""The broadcast channel against the naive model, with receivers that wait, are cancelled, close,
or are garbage, and read in every way there is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgnotifybus.broadcast import Receiver, Shared
from pgnotifybus.core.ring import Placeholder
from pgnotifybus.errors import Closed, Empty, Lagged, PayloadLost
from pgnotifybus.messages import Gap, GapReason
from property.naive import Log, Reader
from unit.polling import Polled

T = TypeVar("T")

Answer = tuple[str, object]
"""What a read came to: a "value", "values", "lagged" with a number, "lost" with a reason, a "gap",
or the "end"."""

LOST: list[GapReason] = ["expired", "unreadable"]

WAYS: dict[str, Callable[[Receiver[int], int | None], Awaitable[object]]] = {
    "recv": lambda receiver, _: receiver.recv(),
    "recv_many": lambda receiver, limit: receiver.recv_many(limit),
    "for": lambda receiver, _: anext(receiver),
    "events": lambda receiver, _: anext(receiver.events()),
}


class Subscriber:
    """A receiver, its model, and its reads that wait."""

    def __init__(self, receiver: Receiver[int], reader: Reader) -> None:
        self.receiver: Receiver[int] | None = receiver
        self.reader = reader
        self.waiting: list[tuple[Polled[object], str, int | None]] = []
        self.closed = False
        self.sent_at_close = 0

    def expected(self, way: str, limit: int | None, *, ended: bool) -> Answer | None:
        """What the model answers; None if the read has to wait."""
        if self.closed:
            return ("end", "")
        while True:
            match self._take(way, limit):
                case None:
                    return ("end", "") if ended else None
                case ("skipped", int(count)) if way == "events":
                    reigning = self.reader.log.newest_mark(self.reader.position) or 0
                    return ("gap", Gap("lagged", "orders", reigning, count))
                case ("skipped", count):
                    return ("lagged", count)
                case ("hole", str(reason)) if way == "events":
                    reigning = self.reader.log.newest_mark(self.reader.position) or 0
                    return ("gap", Gap(cast("GapReason", reason), "orders", reigning, 1))
                case ("hole", reason):
                    return ("lost", reason)
                case ("mark", int(number)):
                    if number > 1:  # the first link is no gap
                        return ("gap", Gap("reconnected", "orders", number, None))
                case (kind, content, *_):
                    return (str(kind), content)

    def _take(self, way: str, limit: int | None) -> tuple[object, ...] | None:
        match way:
            case "events":
                return self.reader.take_event()
            case "recv_many":
                return self.reader.take_many(limit)
            case _:
                return self.reader.take()

    def could_go_on(self, way: str, *, ended: bool) -> bool:
        """Whether a read of this kind would not have to wait now."""
        return self.closed or ended or self.reader.has_news(of_marks=way == "events")


def answer(way: str, call: Callable[[], object]) -> Answer:
    """What a read came to, in the words of the model."""
    try:
        got = call()
    except Lagged as lagged:
        assert way != "events"
        return ("lagged", lagged.skipped)
    except PayloadLost as lost:
        assert way != "events"
        return ("lost", lost.reason)
    except Closed:
        assert way not in ("for", "events")
        return ("end", "")
    except StopAsyncIteration:
        assert way in ("for", "events")
        return ("end", "")
    if isinstance(got, Gap):
        return ("gap", got)
    return ("values" if way == "recv_many" else "value", got)


class BroadcastMachine(RuleBasedStateMachine):
    """A channel as the bus uses it, with up to five subscribers and their parked reads."""

    @initialize(capacity=st.integers(1, 7))
    def make(self, capacity: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.idle = 0
        self.shared: Shared[Any] = Shared(capacity, "orders", self.went_idle)
        self.log = Log(capacity)
        self.promises: dict[int, Placeholder] = {}
        """All that there ever were, also those that are settled or overwritten."""
        self.closed = False
        self.subscribers: list[Subscriber] = []
        self.expected_idle = 0

    def went_idle(self) -> None:
        self.idle += 1

    def inside(self, call: Callable[[], T]) -> T:
        """Call something where an event loop is running."""

        async def main() -> T:
            return call()

        return self.loop.run_until_complete(main())

    @property
    def receiving(self) -> list[Subscriber]:
        return [one for one in self.subscribers if one.receiver is not None and not one.closed]

    # -- sending --

    @precondition(lambda self: not self.closed)
    @rule(count=st.one_of(st.integers(0, 3), st.integers(0, 40)), late=st.sets(st.integers(0, 40)))
    def publish(self, count: int, late: set[int]) -> None:
        """Values, of which some are not there yet."""
        first = len(self.log.sent)
        values: list[Any] = list(range(first, first + count))
        self.log.sent += values
        placeholders = sorted(index for index in late if index < count)
        for index in placeholders:
            values[index] = self.promises[first + index] = Placeholder()
            self.log.promised[first + index] = None
        reached = self.shared.publish(values, [0] * count, placeholders)
        assert reached == len(self.receiving)
        if not reached:
            self.log.forgotten = len(self.log.sent)

    @precondition(lambda self: self.promises)
    @rule(data=st.data(), lost=st.sampled_from([None, None, *LOST]))
    def keep_or_break_a_promise(self, data: st.DataObject, lost: GapReason | None) -> None:
        """In any order, at any time, also what is lost, settled, overwritten or cleared."""
        recent = sorted(self.promises)[-5:]
        position = data.draw(st.sampled_from(recent) | st.sampled_from(sorted(self.promises)))
        self.settle(position, lost)

    @precondition(lambda self: self.promises)
    @rule(lost=st.sampled_from([None, None, *LOST]))
    def keep_or_break_all_promises(self, lost: GapReason | None) -> None:
        for position in self.promises:
            if position in self.log.promised:
                self.settle(position, lost)

    def settle(self, position: int, lost: GapReason | None) -> None:
        if lost is None:
            self.shared.settle(position, position)
            self.log.settle(position)
        else:
            self.shared.lose(self.promises[position], lost)
            self.log.lose(position, lost)

    @precondition(lambda self: not self.closed)
    @rule()
    def reconnect(self) -> None:
        self.log.marks.append(len(self.log.sent))
        self.shared.mark(Gap("reconnected", "orders", len(self.log.marks), None))

    @rule(really=st.sampled_from([False, False, False, True]))
    def close_channel(self, really: bool) -> None:
        if really:
            if not self.closed:  # what is promised will not come any more
                self.log.give_up("unreadable")
            self.shared.close()
            self.closed = True

    @precondition(lambda self: self.closed)
    @rule()
    def publish_after_close(self) -> None:
        try:
            self.shared.publish([0])
        except Closed:
            return
        raise AssertionError("it was sent")

    # -- coming and going --

    @precondition(lambda self: len(self.receiving) < 5)
    @rule()
    def subscribe(self) -> None:
        self.subscribers.append(Subscriber(Receiver(self.shared), Reader.of(self.log)))

    @precondition(lambda self: 0 < len(self.receiving) < 5)
    @rule(data=st.data())
    def resubscribe(self, data: st.DataObject) -> None:
        receiver = data.draw(st.sampled_from(self.receiving)).receiver
        assert receiver is not None
        self.subscribers.append(Subscriber(receiver.resubscribe(), Reader.of(self.log)))

    @precondition(lambda self: self.receiving)
    @rule(data=st.data())
    def close_receiver(self, data: st.DataObject) -> None:
        subscriber = data.draw(st.sampled_from(self.receiving))
        assert subscriber.receiver is not None
        subscriber.sent_at_close = len(self.log.sent)
        subscriber.receiver.close()
        subscriber.closed = True
        self.left()
        assert all(polled.woken() for polled, _, _ in subscriber.waiting)

    @precondition(lambda self: any(not one.waiting for one in self.receiving))
    @rule(data=st.data())
    def drop_receiver(self, data: st.DataObject) -> None:
        """By reference count, which runs the same finalizer as the collector."""
        unused = [one for one in self.receiving if not one.waiting]
        subscriber = data.draw(st.sampled_from(unused))
        subscriber.receiver = None
        self.subscribers.remove(subscriber)
        self.left()

    def left(self) -> None:
        if not self.receiving:
            self.expected_idle += 1

    # -- receiving --

    @precondition(lambda self: any(one.receiver is not None for one in self.subscribers))
    @rule(data=st.data())
    def try_recv(self, data: st.DataObject) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers))
        assert subscriber.receiver is not None
        expected = subscriber.expected("recv", None, ended=self.closed)
        try:
            got = answer("recv", subscriber.receiver.try_recv)
        except Empty:
            assert expected is None
        else:
            assert got == expected

    @precondition(lambda self: self.subscribers)
    @rule(data=st.data(), way=st.sampled_from(sorted(WAYS)), limit=st.none() | st.integers(1, 9))
    def read(self, data: st.DataObject, way: str, limit: int | None) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers))
        receiver = subscriber.receiver
        assert receiver is not None
        polled = Polled(WAYS[way](receiver, limit))
        self.poll(subscriber, polled, way, limit)

    @precondition(lambda self: any(one.receiver is not None for one in self.subscribers))
    @rule(data=st.data())
    def drain_by_events(self, data: st.DataObject) -> None:
        subscriber = data.draw(st.sampled_from(self.subscribers))
        self.drain(subscriber)

    def drain(self, subscriber: Subscriber) -> None:
        while not subscriber.closed and subscriber.could_go_on("events", ended=False):
            assert subscriber.receiver is not None
            polled = Polled(WAYS["events"](subscriber.receiver, None))
            self.poll(subscriber, polled, "events", None)

    @precondition(lambda self: any(one.waiting for one in self.subscribers))
    @rule(data=st.data())
    def run_who_is_woken(self, data: st.DataObject) -> None:
        """In any order: who comes first takes the value, the others wait on."""
        woken = [
            (one, entry) for one in self.subscribers for entry in one.waiting if entry[0].woken()
        ]
        for subscriber, entry in data.draw(st.permutations(woken)):
            subscriber.waiting.remove(entry)
            self.poll(subscriber, *entry)

    def poll(
        self, subscriber: Subscriber, polled: Polled[object], way: str, limit: int | None
    ) -> None:
        expected = subscriber.expected(way, limit, ended=self.closed)
        if self.inside(polled.poll):
            assert answer(way, polled.result) == expected
        else:
            assert expected is None, "it waits"
            subscriber.waiting.append((polled, way, limit))

    @precondition(lambda self: any(one.waiting for one in self.subscribers))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Woken or not: nothing else changes, which the next steps show."""
        subscriber = data.draw(st.sampled_from([one for one in self.subscribers if one.waiting]))
        entry = data.draw(st.sampled_from(subscriber.waiting))
        others = [
            (polled, polled.woken())
            for one in self.subscribers
            for polled, _, _ in one.waiting
            if polled is not entry[0]
        ]
        subscriber.waiting.remove(entry)
        entry[0].cancel()
        try:
            entry[0].result()
        except asyncio.CancelledError:
            assert all(polled.woken() == woken for polled, woken in others)
        else:
            raise AssertionError("it swallowed the cancellation")

    # -- always --

    @invariant()
    def the_accounts_add_up(self) -> None:
        """Invariant 2, delivered + skipped + unread = sent, after every step."""
        for one in getattr(self, "subscribers", ()):
            assert one.receiver is not None
            reader, account = one.reader, one.receiver.statistics()
            assert account.delivered == len(reader.delivered)
            assert account.skipped == reader.skipped
            assert account.delivered + account.skipped + account.unread == account.sent
            sent = one.sent_at_close if one.closed else len(self.log.sent)
            assert account.sent == sent - reader.start
            assert len(one.receiver) == (0 if one.closed else reader.unread)

    @invariant()
    def the_order_is_kept(self) -> None:
        """Invariants 1 and 3: no value and no gap twice or out of order."""
        for one in getattr(self, "subscribers", ()):
            assert one.reader.delivered == sorted(set(one.reader.delivered))
            assert one.reader.told == sorted(set(one.reader.told))

    @invariant()
    def nobody_is_left_asleep(self) -> None:
        """Who waits and could go on has been woken."""
        for one in getattr(self, "subscribers", ()):
            for polled, way, _ in one.waiting:
                assert polled.woken() or not one.could_go_on(way, ended=self.closed)

    @invariant()
    def the_numbers_are_right(self) -> None:
        if hasattr(self, "shared"):
            assert self.shared.receivers == len(self.receiving)
            assert self.idle == self.expected_idle
            asleep = [
                polled
                for one in self.subscribers
                for polled, _, _ in one.waiting
                if not polled.woken()
            ]
            assert len(self.shared.parking) == len(asleep)

    def teardown(self) -> None:
        """At the end everybody can still get everything, up to the newest gap."""
        for one in getattr(self, "subscribers", ()):
            for polled, _, _ in one.waiting:
                polled.cancel()
            one.waiting.clear()
        if hasattr(self, "loop"):
            assert len(self.shared.parking) == 0
            self.keep_or_break_all_promises(None)
            for one in self.receiving:
                self.drain(one)
                assert one.reader.position == len(self.log.sent)
                assert one.reader.mark == len(self.log.marks) or self.log.marks[1:] == []
            self.loop.close()


TestBroadcast: Any = BroadcastMachine.TestCase
TestBroadcast.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, print_blob=True
)
