"""Adding events, in the caller's transaction. Layer: log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pgnotifybus.core.names import check_channel, payload_size, quote
from pgnotifybus.database.queries import Query, Script, array
from pgnotifybus.errors import PayloadTooLarge
from pgnotifybus.typed import Channel

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""The largest payload, unless `schema.install` was told otherwise."""

_APPEND: Final = """\
SELECT {schema}.append(CAST($1 AS text), CAST($2 AS text), {key}, {headers})::text"""

_APPEND_MANY: Final = """\
SELECT pg_catalog.unnest({schema}.append_many(
         CAST(CAST($1 AS text) AS text[]), CAST(CAST($2 AS text) AS text[]),
         CAST(CAST($3 AS text) AS text[]), CAST(CAST($4 AS text) AS jsonb[])))::text"""


class New(NamedTuple):
    """An event that is to be appended, checked."""

    channel: str
    payload: str
    key: str | None
    headers: str | None
    size: int


def new(
    channel: str | Channel[Any],
    payload: Any,
    key: str | None,
    headers: Mapping[str, Any] | None,
    limit: int,
) -> New:
    """Check an event before anything is sent.

    Raises:
        InvalidChannel, ValueError, TypeError: If it cannot be appended.
        PayloadTooLarge: If it has more bytes than the limit.
    """
    name = channel.name if isinstance(channel, Channel) else check_channel(channel)
    if isinstance(channel, Channel):
        payload = channel.encode(payload)
    elif not isinstance(payload, str):
        payload = _as_json(payload, "the payload")
    size = payload_size(payload)
    if size > limit:
        raise PayloadTooLarge(
            size,
            limit,
            "store it elsewhere and append where it is; or raise the limit, here and with "
            "schema.install(event_limit=...)",
        )
    if key is not None:
        payload_size(key, "the key")
    text = None
    if headers is not None:
        if not isinstance(headers, Mapping):
            raise TypeError(f"headers must be a mapping, not {type(headers).__name__}")
        text = _as_json(dict(headers), "the headers")
        if "\\u0000" in text.replace("\\\\", ""):
            raise ValueError("a header has a NUL character, which jsonb cannot hold")
        payload_size(text, "the text of the headers")
    return New(name, payload, key, text, size)


def append(schema: str, event: New) -> Script[int]:
    """Append one; its id."""
    parameters = [event.channel, event.payload]
    key = headers = "NULL"
    if event.key is not None:
        parameters.append(event.key)
        key = f"CAST(${len(parameters)} AS text)"
    if event.headers is not None:
        parameters.append(event.headers)
        headers = f"CAST(CAST(${len(parameters)} AS text) AS jsonb)"
    sql = _APPEND.format(schema=quote(schema), key=key, headers=headers)
    [(id_,)] = yield Query(sql, tuple(parameters))
    return int(id_ or 0)


def append_many(schema: str, events: Sequence[New]) -> Script[list[int]]:
    """Append many, in their order; their ids."""
    if not events:
        return []
    columns: Iterable[Sequence[str | None]] = (
        [event.channel for event in events],
        [event.payload for event in events],
        [event.key for event in events],
        [event.headers for event in events],
    )
    sql = _APPEND_MANY.format(schema=quote(schema))
    rows = yield Query(sql, tuple(array(column) for column in columns))
    return [int(id_ or 0) for (id_,) in rows]


def wake(schema: str) -> Script[None]:
    """Tell those who follow that there is something new."""
    yield Query(f"SELECT {quote(schema)}.wake()::text", ())


def keep_quiet() -> Query:
    """Let nothing that is appended in this transaction notify."""
    return Query("SELECT pg_catalog.set_config('pgnotifybus.wake', 'off', true)", ())


def _as_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ValueError(f"{what} cannot be written as JSON: it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} cannot be written as JSON: {error}") from None
