"""A message that is checked, packed, and ready to be sent. Layer: publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pgnotifybus.core.envelope import (
    MAX_SPILLED_BYTES,
    NO_STAMP,
    PLAIN_ABOVE,
    Stamp,
    check_origin,
    check_traceparent,
    pack,
)
from pgnotifybus.core.names import MAX_PAYLOAD_BYTES, check_channel, payload_size
from pgnotifybus.errors import PayloadTooLarge
from pgnotifybus.typed import Channel


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a message should carry beside its payload. Only this library's receivers read it.

    Attributes:
        origin: Who sends: 1 to 64 letters, digits or any of `._:-`. `PgNotifyBus.envelope` fills
            in the bus's own, so that it can tell what it sent itself.
        timed: Whether to carry the time of sending, by the sender's clock.
        traceparent: The W3C trace context, or a function that is asked for it at each message and
            may return None.

    Raises:
        ValueError: If origin or traceparent is malformed.
    """

    origin: str | None = None
    timed: bool = False
    traceparent: str | Callable[[], str | None] | None = None

    def __post_init__(self) -> None:
        if self.origin is not None:
            check_origin(self.origin)
        if self.traceparent is not None and not callable(self.traceparent):
            check_traceparent(self.traceparent)

    def stamp(self) -> Stamp:
        """What to write on a message that is sent now."""
        traceparent = self.traceparent() if callable(self.traceparent) else self.traceparent
        return Stamp(
            self.origin,
            time.time() if self.timed else None,
            None if traceparent is None else check_traceparent(traceparent),
        )


@dataclass(slots=True)  # not frozen, which would make making one three times as slow
class Message:
    """One notification, checked and ready to be sent. Nobody changes it."""

    channel: str
    payload: str
    """As the receiver will get it."""
    size: int
    """The size of the payload in bytes of UTF-8."""
    wire: str | None
    """What PostgreSQL will carry; None if the payload has to be spilled into the table."""
    stamp: Stamp


def message(channel: str | Channel[Any], payload: Any, envelope: Envelope | None = None) -> Message:
    """Check a message, encode and pack it.

    Raises:
        InvalidChannel: If the channel cannot be one.
        TypeError, ValueError: If the payload cannot be sent on this channel, or the envelope is not
            one.
        PayloadTooLarge: If it has over 16 MiB.
    """
    if isinstance(channel, Channel):
        channel, payload = channel.name, channel.encode(payload)
    else:
        check_channel(channel)
    if (
        envelope is None
        and isinstance(payload, str)
        and len(payload) <= MAX_PAYLOAD_BYTES
        and payload.isascii()
        and payload > PLAIN_ABOVE
        and "\0" not in payload
    ):
        # What follows would say the same; most are like this, and it is the inner loop of sending.
        return Message(channel, payload, len(payload), payload, NO_STAMP)
    size = payload_size(payload)
    if size > MAX_SPILLED_BYTES:
        raise PayloadTooLarge(size, MAX_SPILLED_BYTES, "send a key and let the receiver read it")
    if envelope is not None and not isinstance(envelope, Envelope):
        raise TypeError(
            "envelope must be an Envelope, as `bus.envelope()` makes one, not "
            f"{type(envelope).__name__}"
        )
    stamp = NO_STAMP if envelope is None else envelope.stamp()
    return Message(channel, payload, size, pack(payload, size, stamp), stamp)
