"""A server that crashes gives the ids of transactions that were not on disk to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from pgnotifybus import EventLog, observe, schema
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.testing import RecordingObserver
from support.sql import execute

PrivateServer = Callable[..., EmbeddedServer]

# So that nothing but a commit writes the log to disk.
SETTINGS = {"wal_writer_delay": "10s", "bgwriter_delay": "10s", "autovacuum": "off"}


async def test_the_id_of_a_transaction_that_was_rolled_back_is_given_again_after_a_crash(
    private_server: PrivateServer,
) -> None:
    """The fact that the rule of `log/tail.py` is built on; without it there would be no need."""
    server = private_server(18, SETTINGS)
    await schema.remove(server.dsn)
    await schema.install(server.dsn)
    await execute(server.dsn, "CHECKPOINT")
    async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
        await connection.execute("SELECT pgnotifybus.append('orders', 'never')")
        xid = await _one(connection, "SELECT pg_current_xact_id()::text")
        await connection.rollback()
        snapshot = Snapshot.parse(await _one(connection, "SELECT pg_current_snapshot()::text"))
        durable = await _one(
            connection, "SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()"
        )
    assert snapshot.sees(int(xid))  # it had ended
    assert not durable
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
        again = await _one(connection, "SELECT pg_current_xact_id()::text")
        assert int(again) <= int(xid)
        # To a cursor that is this snapshot, an event of the new transaction would be an old one.
        assert snapshot.sees(int(again))


async def test_what_is_written_after_a_crash_is_not_taken_for_read(
    private_server: PrivateServer,
) -> None:
    server = private_server(18, SETTINGS)
    await schema.remove(server.dsn)
    await schema.install(server.dsn)
    await execute(server.dsn, "CHECKPOINT")
    recorder = RecordingObserver()
    async with EventLog(server.dsn, observer=recorder, prune=False) as log:
        async with log.follow("orders") as follower:
            async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
                for _ in range(5):
                    await log.append(connection, "orders", "never")
                    await connection.rollback()
            # It looks, and sees those five as ended: who joins has it look.
            cursor = await log.cursor()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for number in range(3):
                await execute(server.dsn, "SELECT pgnotifybus.append('orders', %s)", str(number))
            async with asyncio.timeout(30):
                assert [(await anext(follower)).payload for _ in range(3)] == ["0", "1", "2"]
                again = log.follow("orders", after=cursor)
                assert [(await anext(again)).payload for _ in range(3)] == ["0", "1", "2"]
    assert len(recorder.of(observe.LinkUp)) == 2


async def _one(connection: psycopg.AsyncConnection[tuple[object, ...]], sql: str) -> str:
    [row] = await (await connection.execute(sql.encode())).fetchall()
    return row[0]  # type: ignore[return-value]
