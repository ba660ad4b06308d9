"""What triggers tell, statement by statement."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql

_END = "#end"

AT_BYTES = len(',"at":1795678650.207257')
"""What the time takes of a payload, where values are told."""


class Told:
    """A session that listens to what it causes itself."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], channel: str) -> None:
        self.connection = connection
        self.warnings: list[str] = []
        """What the server has warned of."""
        self.raw: list[str] = []
        """The payloads of the last call."""
        self.at: list[float] = []
        """The times that these have told, where values are told."""
        self._channel = channel
        self._arrived: list[str] = []
        connection.add_notify_handler(self._notified)
        connection.add_notice_handler(self._noticed)

    async def by(self, *statements: str) -> list[Any]:
        """Run statements, each for itself, and return what was told, taken out of its JSON.

        The times are left out. Rows, which come in no order that means anything, are sorted as
        those of `change` are.
        A sentinel behind them, which the server delivers in order, shows that nothing else comes.
        """
        for each in statements:
            await self.connection.execute(each.encode())
        await self.connection.execute("SELECT pg_catalog.pg_notify(%s, %s)", [self._channel, _END])
        assert self._arrived[-1] == _END, "the server hands over a session's own notifications"
        self.raw, self._arrived = self._arrived[:-1], []
        found = [json.loads(payload) for payload in self.raw]
        self.at = [each.pop("at") for each in found if "at" in each]
        for each in found:
            each.get("rows", []).sort(key=json.dumps)
        return found

    def _notified(self, notify: psycopg.Notify) -> None:
        assert notify.channel == self._channel
        self._arrived.append(notify.payload)

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary or "")


@asynccontextmanager
async def told_on(dsn: str, channel: str, *statements: str) -> AsyncIterator[Told]:
    """Run statements, and listen to a channel from then on."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for each in statements:
            await connection.execute(each.encode())
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield Told(connection, channel)


def change(op: str, *rows: object, table: str = "orders", schema: str = "public") -> dict[str, Any]:
    """What is told of a statement whose rows fit."""
    found = sorted(rows, key=json.dumps)
    return {"schema": schema, "table": table, "op": op, "rows": found}


def keys_only(op: str, *rows: object, table: str = "orders") -> dict[str, Any]:
    """What is told of a statement whose keys fit, but not its values."""
    return change(op, *rows, table=table) | {"keys_only": True}


def reread(op: str, count: int | None = None, *, table: str = "orders") -> dict[str, Any]:
    """What is told of a statement of which nothing fits."""
    told: dict[str, Any] = {"schema": "public", "table": table, "op": op, "reread": True}
    return told if count is None else told | {"count": count}
