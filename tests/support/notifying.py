"""Both ends of a notification, and the spill table between them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import asyncpg
import psycopg
from psycopg import sql

from pgnotifybus import PgNotifyBus, schema
from pgnotifybus.core.envelope import refer
from pgnotifybus.core.names import SCHEMA, quote
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.publish.statements import new_row
from pgnotifybus.subscription import Subscription
from support.sql import execute


@contextlib.contextmanager
def shared_database(server: EmbeddedServer, *schemas: str) -> Iterator[str]:
    """The DSN of a database with the spill table in these schemas, for many tests in turn."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = server.dsn_for(database=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for each in schemas:
            connection.execute(schema.sql(schema=each).encode())
    yield dsn
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        connection.execute(drop.format(sql.Identifier(name)))


@contextlib.asynccontextmanager
async def listening(dsn: str, channel: str, *, schema: str = SCHEMA) -> AsyncIterator[Subscription]:
    """A receiver on a bus of its own."""
    async with PgNotifyBus(dsn, [channel], schema=schema) as bus:
        yield subscribed(bus, channel)


def subscribed(bus: PgNotifyBus, channel: str) -> Subscription:
    """A receiver of a channel that the bus was made with."""
    receiver = bus.subscribe(channel)
    assert receiver is not None
    return receiver


async def take(receiver: Subscription, count: int) -> list[str]:
    """The next payloads, waited for."""
    async with asyncio.timeout(10):
        return [await receiver.recv() for _ in range(count)]


async def foreign(dsn: str, channel: str, payload: str) -> None:
    """Notify as somebody who does not know this library."""
    await execute(dsn, "SELECT pg_notify(%s, %s)", channel, payload)


async def spilled(dsn: str, channel: str, *, schema: str = SCHEMA) -> int:
    """How many payloads of a channel the spill table holds."""
    table = f"{quote(schema)}.payloads".replace("%", "%%")
    ((count,),) = await execute(dsn, f"SELECT count(*) FROM {table} WHERE channel = %s", channel)
    assert isinstance(count, int)
    return count


async def plant(dsn: str, channel: str, payload: str) -> str:
    """Write a row of the spill table, and return the wire that refers to it, not sent."""
    row = new_row()
    await execute(
        dsn,
        "INSERT INTO pgnotifybus.payloads (id, channel, payload) VALUES (%s, %s, %s)",
        row,
        channel,
        payload,
    )
    return refer(row, len(payload.encode()))


@contextlib.asynccontextmanager
async def table_locked(dsn: str) -> AsyncIterator[None]:
    """Nobody else can use the spill table, as while it is altered."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("LOCK TABLE pgnotifybus.payloads IN ACCESS EXCLUSIVE MODE")
        yield


@contextlib.asynccontextmanager
async def driven(kind: str, dsn: str) -> AsyncIterator[object]:
    """A source of a bus, for each way in which it keeps connections beside the listener's."""
    match kind:
        case "psycopg":
            yield dsn
        case "asyncpg":
            yield dsn.replace("postgresql://", "postgresql+asyncpg://")
        case _:
            async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
                yield pool
