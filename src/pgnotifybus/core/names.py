"""Names and payloads that PostgreSQL takes, checked before any I/O. Layer: core."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from pgnotifybus.errors import InvalidChannel

MAX_CHANNEL_BYTES: Final = 63
"""NAMEDATALEN - 1. LISTEN would silently cut a longer name, and pg_notify would refuse it. The same
holds for every other name."""

MAX_PAYLOAD_BYTES: Final = 7_999
"""BLCKSZ - NAMEDATALEN - 128 - 1: NOTIFY_PAYLOAD_MAX_LENGTH of async.c less the NUL."""


SCHEMA: Final = "pgnotifybus"
"""The schema of what the library keeps in the database, where nothing else is said."""


def check_channel(name: object) -> str:
    """The name itself, if PostgreSQL can have a channel of exactly this name.

    Raises:
        InvalidChannel: If it cannot; the message says why.
    """
    if not isinstance(name, str):
        raise InvalidChannel(f"a channel name must be a str, not {type(name).__name__}")
    _check_text(name)
    return name


@lru_cache(maxsize=1024)  # a publisher checks the same few names again and again
def _check_text(name: str) -> None:
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


def check_channels(names: Iterable[object]) -> tuple[str, ...]:
    """The names without repetitions, in their first order.

    Raises:
        InvalidChannel: If one of them cannot be a channel, or if a single str was passed: its
            letters would be taken for names.
    """
    if isinstance(names, str | bytes):
        raise InvalidChannel(f"pass a list of channel names: [{names!r}], not {names!r}")
    return tuple(dict.fromkeys(check_channel(name) for name in names))


def check_schema(name: str) -> str:
    """The name itself, if PostgreSQL can have a schema of exactly this name.

    Raises:
        ValueError: If it cannot; the message says why.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # lone surrogates
        size = 0
    if not 1 <= size <= MAX_CHANNEL_BYTES or "\0" in name or name.startswith("pg_"):
        raise ValueError(
            f"a schema name must have 1 to {MAX_CHANNEL_BYTES} bytes of UTF-8, no NUL, and not "
            f"begin with pg_, not {name!r}"
        )
    return name


def payload_size(payload: object, what: str = "the payload") -> int:
    """How many bytes of UTF-8 a payload has, of any size, if PostgreSQL can store it at all.

    Args:
        payload: It, or another text that is to be stored.
        what: What to call it in an error.

    Raises:
        TypeError: If it is not a str.
        ValueError: If it has a NUL character or a lone surrogate, which PostgreSQL cannot store.
    """
    if not isinstance(payload, str):
        raise TypeError(f"{what} must be a str, not {type(payload).__name__}")
    if "\0" in payload:
        raise ValueError(f"{what} has a NUL character, which PostgreSQL text cannot hold")
    if payload.isascii():
        return len(payload)
    try:
        return len(payload.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a lone surrogate at index {error.start} and cannot be sent as UTF-8"
        ) from None


def quote(name: str) -> str:
    """The name as a quoted SQL identifier, which keeps capitals, spaces and quotes as they are."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """The text as an SQL literal, whatever `standard_conforming_strings` says."""
    escaped = text.replace("'", "''")
    return "E'" + escaped.replace("\\", "\\\\") + "'" if "\\" in text else f"'{escaped}'"


def log_channel(schema: str) -> str:
    """The channel on which those who follow an event log are told that there is something new.

    Args:
        schema: The schema of the log.
    """
    name = f"pgnotifybus:{schema}"
    if len(name.encode()) <= MAX_CHANNEL_BYTES:
        return name
    return f"pgnotifybus:{hashlib.sha256(schema.encode()).hexdigest()[:32]}"
