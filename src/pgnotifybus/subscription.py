"""Receivers of the channels of a bus. Layer: asyncio over core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pgnotifybus.broadcast import Events, Receiver, Shared
from pgnotifybus.core.envelope import NO_STAMP, Stamp
from pgnotifybus.core.ring import Entry, Nothing, Skipped
from pgnotifybus.errors import Malformed
from pgnotifybus.messages import Gap, Notification
from pgnotifybus.typed import Channel

T = TypeVar("T")

Label = int | tuple[int, Stamp]
"""What the ring keeps beside a payload: the PID of the sender, and what the envelope said."""


class Subscription(Receiver[str]):
    """A receiver of one channel of a bus: payloads by `recv`, notifications by `events`."""

    __slots__ = ()

    def events(self) -> Events[Notification | Gap]:  # type: ignore[override]  # more than a value
        """Notifications and gaps in their true order; never raises for loss.

        A `Gap` stands where something is missing: `"lagged"` with the exact number skipped,
        `"reconnected"` between the last message of the old link and the first of the new one, and
        `"expired"` or `"unreadable"` in place of one message whose payload cannot be had.
        """
        return Events(self, lambda entry: _notification(self._shared.name, entry, entry.value))


class TypedSubscription(Receiver[T]):
    """A receiver of one channel of a bus that decodes what it receives.

    Each receiver gets values of its own: what one does to them, no other sees. A payload that does
    not decode raises `Malformed` where it would have been returned, and counts as delivered; the
    next receive goes on behind it. `recv_many` hands out what is in front of it first.
    """

    __slots__ = ("_channel",)

    def __init__(self, shared: Shared[Any], channel: Channel[T]) -> None:
        super().__init__(shared)
        self._channel = channel

    def try_recv(self) -> T:
        """The next value, without waiting.

        Raises:
            Malformed: If the next payload does not decode; the next call goes on behind it.
            Empty, Lagged, PayloadLost, Closed: As for any receiver.
        """
        return self._channel.decode(super().try_recv())  # type: ignore[arg-type]  # not decoded yet

    async def recv(self) -> T:
        """The next value; waits for one.

        Raises:
            Malformed: If the next payload does not decode; the next call goes on behind it.
            Lagged, PayloadLost, Closed: As for any receiver.

        Cancel safety: cancelling loses nothing; the value is there for the next call.
        """
        return self._channel.decode(await super().recv())  # type: ignore[arg-type]

    async def __anext__(self) -> T:
        """`async for` ends when the channel is closed, and raises like `recv`; enter it again.

        Cancel safety: cancelling loses nothing; the value is there for the next step.
        """
        return self._channel.decode(await super().__anext__())  # type: ignore[arg-type]

    def events(self) -> Events[Notification[T] | Malformed | Gap]:  # type: ignore[override]
        """Decoded notifications, gaps, and what does not decode, in their true order.

        Never raises for loss, nor for a payload that does not decode: that is an item as well.
        """
        return Events(self, self._event)

    def resubscribe(self) -> TypedSubscription[T]:
        """A new receiver of the same channel and type, for what is sent from now on.

        Raises:
            Closed: If this receiver is closed.
        """
        self._check_open()
        return TypedSubscription(self._shared, self._channel)

    def _event(self, entry: Entry[Any, Gap]) -> Notification[T] | Malformed:
        try:
            value = self._channel.decode(entry.value)
        except Malformed as malformed:
            # A new one, without traceback and cause: their frames would keep this receiver, and
            # so the channel, for whoever keeps the item.
            return Malformed(malformed.channel, malformed.payload, malformed.reason)
        return _notification(self._shared.name, entry, value)

    def _take_many(self, limit: int | None) -> list[T] | Skipped | Nothing:
        ring, cursor = self._ring, self._cursor
        values: list[T] = []
        # In growing pieces: a payload that does not decode costs no more than what stood before it.
        piece = 1
        while limit is None or len(values) < limit:
            size = piece if limit is None else min(piece, limit - len(values))
            position, mark = cursor.position, cursor.mark
            taken = ring.take_many(cursor, size)
            if not isinstance(taken, list):
                if not values:
                    return taken
                cursor.position, cursor.mark = position, mark
                break
            decoded, malformed = self._decode(taken)
            values += decoded
            if malformed is not None:
                # Take again just what can be handed out: the good ones, or else the bad one.
                cursor.position, cursor.mark = position, mark
                if decoded:
                    ring.take_many(cursor, len(decoded))
                elif not values:
                    ring.take_many(cursor, 1)
                    raise malformed
                break
            piece *= 2
        return values

    def _decode(self, payloads: Sequence[Any]) -> tuple[list[T], Malformed | None]:
        """The values of the first payloads, and why there are no more of them."""
        values: list[T] = []
        for payload in payloads:
            try:
                values.append(self._channel.decode(payload))
            except Malformed as malformed:
                return values, malformed
        return values, None


def _notification(channel: str, entry: Entry[Any, Gap], payload: T) -> Notification[T]:
    label = entry.label or 0
    pid, stamp = (label, NO_STAMP) if isinstance(label, int) else label
    generation = entry.mark.generation if entry.mark is not None else 0
    return Notification(channel, payload, pid, generation, *stamp)
