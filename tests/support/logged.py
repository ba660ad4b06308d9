"""What triggers write into an event log, statement by statement."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql

from pgnotifybus import schema as schemas
from pgnotifybus.core.names import SCHEMA


class Logged:
    """A session that writes, and another that reads what was logged of that."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        reader: psycopg.AsyncConnection[Any],
        channel: str,
        schema: str,
    ) -> None:
        self.connection = connection
        self.raw: list[str] = []
        """The payloads of the last call."""
        self._reader = reader
        self._channel = channel
        self._events = sql.Identifier(schema, "events")
        self._last = 0

    async def by(self, *statements: str) -> list[tuple[str | None, Any]]:
        """Run statements, each for itself, and return the events that were committed by then.

        Each is its key and its payload, taken out of its JSON, in the order of the ids.
        """
        for each in statements:
            await self.connection.execute(each.encode())
        query = sql.SQL(
            "SELECT id, channel, headers, key, payload FROM {} WHERE id > {} ORDER BY id"
        )
        cursor = await self._reader.execute(query.format(self._events, self._last))
        rows = await cursor.fetchall()
        self._last = rows[-1][0] if rows else self._last
        assert {each[1:3] for each in rows} <= {(self._channel, None)}
        self.raw = [payload for *_, payload in rows]
        return [(key, json.loads(payload)) for *_, key, payload in rows]


@asynccontextmanager
async def logged_on(
    dsn: str, channel: str, *statements: str, schema: str = SCHEMA
) -> AsyncIterator[Logged]:
    """Install an event log, run statements, and read the log from then on."""
    await schemas.install(dsn, schema=schema)
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as reader,
    ):
        for each in statements:
            await connection.execute(each.encode())
        yield Logged(connection, reader, channel, schema)


def event(
    op: str, name: str | None, *, table: str = "orders", schema: str = "public", **fields: Any
) -> tuple[str | None, dict[str, Any]]:
    """What is logged of a row: its name, and the fields behind `op`."""
    return name, {"schema": schema, "table": table, "op": op, **fields}


def keyed(op: str, *ids: int) -> list[tuple[str | None, Any]]:
    """What is logged of rows of which only the keys are told, none of which has changed."""
    field = "old_key" if op == "delete" else "key"
    return [event(op, str(each), **fields(field, id=each)) for each in ids]


def fields(name: str, **value: Any) -> dict[str, Any]:
    """A field whose value is an object."""
    return {name: value}
