"""A broadcast channel: every receiver gets every value, and is told when it was too slow.
Layer: asyncio over core.

The semantics are those of Rust's `tokio::sync::broadcast`: sending never waits, a receiver that
falls behind by more than the capacity loses the oldest values and learns how many, and nobody
else notices. Usable alone::

    sender, receiver = broadcast.channel(16)
    sender.send("hello")
    await receiver.recv()

Not thread-safe: like all of asyncio, a channel belongs to one event loop. From another thread use
`loop.call_soon_threadsafe(sender.send, value)`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pgnotifybus._parking import Parking
from pgnotifybus.core.ring import NOTHING, Entry, Hole, Mark, Nothing, Placeholder, Ring, Skipped
from pgnotifybus.errors import Closed, Empty, Lagged, PayloadLost
from pgnotifybus.messages import Gap, GapReason

__all__ = ["Events", "Receiver", "ReceiverStatistics", "Sender", "Statistics", "channel"]

T = TypeVar("T")
E = TypeVar("E")


def channel(capacity: int) -> tuple[Sender[Any], Receiver[Any]]:
    """Make a broadcast channel and its first receiver.

    Args:
        capacity: How many values are kept for a receiver that is behind; at least 1, and exactly
            this many.

    Returns:
        The sending side and one receiver, which gets all that is sent from now on.

    Raises:
        ValueError: If the capacity is below 1.
        TypeError: If it is not an int.
    """
    shared: Shared[Any] = Shared(capacity)
    return Sender(shared), Receiver(shared)


@dataclass(frozen=True, slots=True)
class Statistics:
    """How a channel stands at one moment."""

    capacity: int
    sent: int
    """Values sent since the channel was made."""
    kept: int
    """Values that a receiver could still read."""
    receivers: int
    closed: bool


@dataclass(frozen=True, slots=True)
class ReceiverStatistics:
    """The account of one receiver: delivered + skipped + unread = sent since it subscribed."""

    sent: int
    delivered: int
    skipped: int
    unread: int
    """Values sent and not yet read, also those that the next receive will report as skipped."""


class Shared(Generic[T]):
    """The state of one channel; `Sender` and `Receiver` are handles on it."""

    __slots__ = (
        "__weakref__",
        "_members",
        "closed",
        "deliveries",
        "name",
        "on_idle",
        "parking",
        "ring",
        "skipped",
    )

    def __init__(
        self, capacity: int, name: str = "", on_idle: Callable[[], None] | None = None
    ) -> None:
        self.ring: Ring[T, Gap] = Ring(capacity)
        self.parking = Parking()
        self._members: dict[int, weakref.ref[Receiver[T]]] = {}
        self.skipped = 0
        """Values that receivers have been told they have missed, all together."""
        self.deliveries = 0
        """Values times the receivers that were there; who publishes counts them."""
        self.closed = False
        self.name = name
        self.on_idle = on_idle
        """Called when the last receiver is gone, possibly from the garbage collector."""

    def publish(
        self, values: Sequence[T], labels: Sequence[Any] = (), placeholders: Sequence[int] = ()
    ) -> int:
        """Hand values (a list or a tuple) to every receiver; the number of receivers."""
        if self.closed:
            raise Closed("the channel is closed: nothing can be sent any more")
        ring = self.ring
        ring.extend(values, labels, placeholders)
        if not self.receivers:
            ring.clear()
            return 0
        if values:
            self.parking.wake()
        return self.receivers

    def mark(self, gap: Gap) -> None:
        """Put a gap between the values sent so far and those to come."""
        self.ring.mark(gap)
        self.parking.wake()

    def settle(self, position: int, value: T) -> None:
        """Put a value where its placeholder stands, and let those who wait for it go on."""
        self.ring.settle(position, value)
        self.parking.wake()

    def lose(self, placeholder: Placeholder, reason: GapReason) -> None:
        """Give up the value of a placeholder; receivers are told so in its place."""
        placeholder.lost = reason
        self.parking.wake()

    def close(self, *, from_collector: bool = False) -> None:
        """Let receivers drain and then end."""
        if not self.closed:
            self.closed = True
            if from_collector:
                self.parking.end_from_anywhere()
            else:
                # Nobody settles these any more, and what stands behind them must be handed out.
                self.ring.give_up("unreadable")
                self.parking.wake()

    @property
    def receivers(self) -> int:
        """How many receivers there are now."""
        return len(self._members)

    def overrun(self) -> list[int]:
        """How many values have been lost by each receiver that has not been told so yet."""
        oldest = self.ring.oldest
        behind = []
        for member in list(self._members.values()):
            receiver = member()
            if receiver is not None and (lost := oldest - receiver._cursor.position) > 0:
                behind.append(lost)
        return behind

    def unread(self) -> int:
        """How many values the receiver that is furthest behind has not read; from any thread."""
        # The positions first: what is sent meanwhile must not make it less than nothing.
        positions = []
        for member in self._members.copy().values():
            receiver = member()
            if receiver is not None:
                cursor = receiver._cursor
                if not receiver._closed:  # then it is no longer the cursor of this ring
                    positions.append(cursor.position)
        return self.ring.tail - min(positions) if positions else 0

    def join(self, receiver: Receiver[T]) -> None:
        self._members[id(receiver)] = weakref.ref(receiver)

    def leave(self, receiver: Receiver[T], *, from_collector: bool = False) -> None:
        # A dict and not a count: the collector may run in any thread, where `-= 1` could be lost.
        self._members.pop(id(receiver), None)
        if self._members:
            return
        if not from_collector:  # which may run in any thread: then the next publish clears
            self.ring.clear()
        if self.on_idle is not None:
            self.on_idle()


class Sender(Generic[T]):
    """The sending side. When it is closed or garbage-collected, receivers drain and then end."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared[T]) -> None:
        self._shared = shared

    def __repr__(self) -> str:
        return f"<broadcast.Sender {_describe(self._shared)}>"

    def __del__(self) -> None:
        # Nobody can send any more, so nobody should wait for it: as in tokio, dropping is closing.
        shared = getattr(self, "_shared", None)
        if shared is not None:
            shared.close(from_collector=True)

    @property
    def receiver_count(self) -> int:
        """How many receivers there are now."""
        return self._shared.receivers

    def send(self, value: T) -> int:
        """Hand a value to every receiver; never waits.

        That it returns does not mean that anybody will read the value: a receiver may be closed,
        or overrun, before it does.

        Returns:
            The number of receivers that can read it; 0 is no error, the value is then dropped.

        Raises:
            Closed: If the channel has been closed.
        """
        return self._shared.publish((value,))

    def send_many(self, values: Iterable[T]) -> int:
        """Hand several values to every receiver, in their order, waking each receiver once.

        Returns:
            The number of receivers that can read them; 0 is no error.

        Raises:
            Closed: If the channel has been closed.
        """
        # A list first: what the iterable does, or raises, on the way must not reach the ring.
        return self._shared.publish(list(values))

    def subscribe(self) -> Receiver[T]:
        """A new receiver, for what is sent from now on."""
        return Receiver(self._shared)

    def close(self) -> None:
        """End the channel: receivers get what is unread, then `Closed`. Twice is harmless."""
        self._shared.close()

    def statistics(self) -> Statistics:
        """How the channel stands now, as a frozen snapshot."""
        shared = self._shared
        ring = shared.ring
        return Statistics(
            capacity=ring.capacity,
            sent=ring.tail,
            kept=ring.tail - ring.oldest,
            receivers=shared.receivers,
            closed=shared.closed,
        )


class Receiver(Generic[T]):
    """One subscriber's place in the channel.

    All ways to read share one cursor: `recv`, `try_recv`, `recv_many`, `async for` and `events`
    may be mixed. A receiver that is garbage-collected leaves the channel as if it were closed.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_cursor",
        "_final",
        "_ring",
        "_shared",
        "_skipped",
        "_start",
    )

    def __init__(self, shared: Shared[T]) -> None:
        self._shared = shared
        self._ring = shared.ring
        self._cursor = shared.ring.cursor()
        self._start = self._cursor.position
        self._skipped = 0
        self._final: ReceiverStatistics | None = None
        self._closed = False
        shared.join(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_describe(self._shared)} unread={len(self)}>"

    def __len__(self) -> int:
        """How many unread values can still be had, or are promised; at most the capacity."""
        return self._ring.unread(self._cursor)

    def __bool__(self) -> bool:
        """Always true: `if receiver` asks whether there is one, not whether it has values."""
        return True

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._shared.leave(self, from_collector=True)

    # -- receiving --------------------------------------------------------------------------------

    def try_recv(self) -> T:
        """The next value, without waiting.

        Raises:
            Empty: If there is none now; more may come.
            Lagged: If values were overwritten; the next call returns the oldest one kept.
            PayloadLost: If the payload of the next message cannot be had (on a bus).
            Closed: If there is none and there will be none.
        """
        taken = self._ring.take(self._cursor)
        if taken is NOTHING:
            raise self._nothing()
        if isinstance(taken, Skipped):
            raise self._missed(taken)
        return taken

    async def recv(self) -> T:
        """The next value; waits for one.

        Raises:
            Lagged: If values were overwritten; the next call returns the oldest one kept.
            PayloadLost: If the payload of the next message cannot be had (on a bus).
            Closed: If all has been read and the channel, or this receiver, is closed.

        Cancel safety: cancelling loses nothing; the value is there for the next call.
        """
        while (taken := self._ring.take(self._cursor)) is NOTHING:
            await self._park()
        if isinstance(taken, Skipped):
            raise self._missed(taken)
        return taken

    async def recv_many(self, limit: int | None = None) -> list[T]:
        """All values that are there, in one list, at least one; waits for the first.

        This is the fast way to read: its cost hardly depends on the number of values.

        Args:
            limit: The longest list wanted; at least 1. None for no limit (the capacity is one).

        Raises:
            Lagged: If values were overwritten; the next call goes on at the oldest one kept.
            PayloadLost: If the payload of the next message cannot be had (on a bus).
            Closed: If all has been read and the channel, or this receiver, is closed.
            ValueError: If the limit is below 1.

        Cancel safety: cancelling loses nothing.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        while (taken := self._take_many(limit)) is NOTHING:
            await self._park()
        if isinstance(taken, Skipped):
            raise self._missed(taken)
        return taken

    def __aiter__(self) -> Receiver[T]:
        return self

    async def __anext__(self) -> T:
        """`async for` ends when the channel is closed, and raises like `recv` for what is missing.

        A method rather than an async generator, so that the loop can be entered again after
        `Lagged` and needs no `aclose`.

        Cancel safety: cancelling loses nothing; the value is there for the next step.
        """
        # What `Ring.take` does where nothing is in the way, without the call: a loop over what is
        # there is the one place where that shows.
        ring, cursor = self._ring, self._cursor
        position = cursor.position
        index = position - ring.base
        if (
            index >= 0
            and 0 < ring.tail - position <= ring.capacity
            and cursor.mark == ring.marks_made
            and not ring.placeholders
        ):
            cursor.position = position + 1
            return ring.values[index]
        while (taken := self._ring.take(self._cursor)) is NOTHING:
            if self._ended():
                raise StopAsyncIteration
            await self._park()
        if isinstance(taken, Skipped):
            raise self._missed(taken)
        return taken

    def events(self) -> Events[T | Gap]:
        """The same values as an iterator that never raises for loss.

        Where values are missing it yields a `Gap` instead, in its true place in the order.
        """
        return Events(self, lambda entry: entry.value)

    # -- the rest ---------------------------------------------------------------------------------

    def resubscribe(self) -> Receiver[T]:
        """A new receiver of the same channel, for what is sent from now on.

        Raises:
            Closed: If this receiver is closed.
        """
        self._check_open()
        return type(self)(self._shared)

    def close(self) -> None:
        """Leave the channel; a parked `recv` raises `Closed` at once. Twice is harmless."""
        if not self._closed:
            self._final = self.statistics()
            self._closed = True
            # An empty ring of its own makes it read as empty: the fast paths need not ask.
            self._ring = Ring(1)
            self._cursor = self._ring.cursor()
            self._shared.leave(self)
            self._shared.parking.wake()

    def statistics(self) -> ReceiverStatistics:
        """The account of this receiver, as a frozen snapshot; when closed, as it was then."""
        if self._final is not None:
            return self._final
        sent = self._ring.tail - self._start
        unread = self._ring.tail - self._cursor.position
        return ReceiverStatistics(
            sent=sent,
            delivered=sent - unread - self._skipped,
            skipped=self._skipped,
            unread=unread,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this receiver is closed")

    def _ended(self) -> bool:
        return self._closed or self._shared.closed

    async def _park(self) -> None:
        """Wait until something has changed; raises `Closed` if nothing can change any more."""
        if self._ended():
            raise self._nothing()
        await self._shared.parking.park()

    def _nothing(self) -> Empty | Closed:
        if self._closed:
            return Closed("this receiver is closed")
        if self._shared.closed:
            return Closed("the channel is closed and everything has been received")
        return Empty("nothing is there to receive now")

    def _take_many(self, limit: int | None) -> list[T] | Skipped | Nothing:
        return self._ring.take_many(self._cursor, limit)

    def _missed(self, skipped: Skipped) -> Lagged | PayloadLost:
        self._count(skipped)
        return PayloadLost(skipped.reason) if isinstance(skipped, Hole) else Lagged(skipped.count)

    def _count(self, skipped: Skipped) -> None:
        self._skipped += skipped.count
        if not isinstance(skipped, Hole):
            self._shared.skipped += skipped.count

    async def _next_event(self) -> Entry[T, Gap] | Gap:
        """The next entry or gap; raises `Closed` at the end."""
        while True:
            taken = self._ring.take_event(self._cursor)
            match taken:
                case Entry():
                    return taken
                case Skipped(count):
                    self._count(taken)
                    before = self._ring.mark_before(self._cursor)
                    generation = before.generation if before is not None else 0
                    reason = taken.reason if isinstance(taken, Hole) else "lagged"
                    return Gap(cast("GapReason", reason), self._shared.name, generation, count)
                case Mark(content=gap):
                    # The first link is no gap: nothing was promised before it.
                    if gap.generation > 1:
                        return gap
                case Nothing.NOTHING:
                    await self._park()


class Events(Generic[E]):
    """What `events` returns: iterates values and gaps, ends when the channel is closed.

    Cancel safety: cancelling a step loses nothing, and the loop can be entered again.
    """

    __slots__ = ("_make", "_receiver")

    def __init__(self, receiver: Receiver[Any], make: Callable[[Entry[Any, Gap]], Any]) -> None:
        self._receiver = receiver
        self._make = make

    def __aiter__(self) -> Events[E]:
        return self

    async def __anext__(self) -> E:
        """The next value or gap; waits for one, and ends when the channel is closed.

        Cancel safety: cancelling loses nothing.
        """
        try:
            event = await self._receiver._next_event()
        except Closed:
            raise StopAsyncIteration from None
        return cast("E", event if isinstance(event, Gap) else self._make(event))


def _describe(shared: Shared[Any]) -> str:
    name = f"{shared.name!r} " if shared.name else ""
    state = "closed" if shared.closed else "open"
    return f"{name}capacity={shared.ring.capacity} receivers={shared.receivers} {state}"
