"""Names and payloads that PostgreSQL takes, checked before any I/O. Layer: core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pgnotifybus.errors import InvalidChannel, PayloadTooLarge

MAX_CHANNEL_BYTES: Final = 63
"""NAMEDATALEN - 1. LISTEN would silently cut a longer name, and pg_notify would refuse it."""

MAX_PAYLOAD_BYTES: Final = 7_999
"""BLCKSZ - NAMEDATALEN - 128 - 1: NOTIFY_PAYLOAD_MAX_LENGTH of async.c less the NUL."""


def check_channel(name: object) -> str:
    """The name itself, if PostgreSQL can have a channel of exactly this name.

    Raises:
        InvalidChannel: If it cannot; the message says why.
    """
    if not isinstance(name, str):
        raise InvalidChannel(f"a channel name must be a str, not {type(name).__name__}")
    if not name:
        raise InvalidChannel("a channel name must not be empty")
    if "\0" in name:
        raise InvalidChannel(f"the channel name {name!r} has a NUL character")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidChannel(
            f"the channel name {name!r} has a lone surrogate and cannot be sent as UTF-8"
        ) from None
    if size > MAX_CHANNEL_BYTES:
        raise InvalidChannel(
            f"the channel name {name!r} has {size} bytes of UTF-8, PostgreSQL takes "
            f"{MAX_CHANNEL_BYTES} at the most"
        )
    return name


def check_channels(names: Iterable[object]) -> tuple[str, ...]:
    """The names without repetitions, in their first order.

    Raises:
        InvalidChannel: If one of them cannot be a channel, or if a single str was passed: its
            letters would be taken for names.
    """
    if isinstance(names, str | bytes):
        raise InvalidChannel(f"pass a list of channel names: [{names!r}], not {names!r}")
    return tuple(dict.fromkeys(check_channel(name) for name in names))


def check_payload(payload: object) -> str:
    """The payload itself, if it fits into one notification.

    Raises:
        TypeError: If it is not a str.
        ValueError: If it has a NUL character or a lone surrogate, which PostgreSQL cannot store.
        PayloadTooLarge: If it has over 7,999 bytes of UTF-8.
    """
    if not isinstance(payload, str):
        raise TypeError(f"a payload must be a str, not {type(payload).__name__}")
    if "\0" in payload:
        raise ValueError("a payload must not have a NUL character: PostgreSQL text cannot hold one")
    try:
        size = len(payload.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the payload has a lone surrogate at index {error.start} and cannot be sent as UTF-8"
        ) from None
    if size > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(size, MAX_PAYLOAD_BYTES)
    return payload


def quote(name: str) -> str:
    """The name as a quoted SQL identifier, which keeps capitals, spaces and quotes as they are."""
    return '"' + name.replace('"', '""') + '"'
