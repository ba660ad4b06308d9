"""A log that goes on elsewhere: restored from a dump, on a promoted standby, made anew."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgnotifybus import Cursor, CursorExpired, EpochMismatch, Event, EventLog, Gap, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.log import retention
from pgnotifybus.log.follower import Follower
from support.copies import discard, dump, restore, standby_of
from support.servers import PASSWORD
from support.sql import execute
from support.waiting import until

PrivateServer = Callable[..., EmbeddedServer]

APPEND = "SELECT pgnotifybus.append('orders', %s)"


@pytest.fixture
def primary(private_server: PrivateServer) -> EmbeddedServer:
    return private_server(
        18,
        {"wal_level": "replica", "max_wal_senders": "4", "max_prepared_transactions": "4"},
    )


@pytest.fixture
async def dsn(primary: EmbeddedServer) -> str:
    await schema.remove(primary.dsn)
    await schema.install(primary.dsn)
    return primary.dsn


@pytest.fixture
def standby(primary: EmbeddedServer) -> Iterator[EmbeddedServer]:
    copy = standby_of(primary, PASSWORD)
    yield copy
    discard(copy)


async def test_a_follower_goes_on_at_a_promoted_standby(
    primary: EmbeddedServer, dsn: str, standby: EmbeddedServer
) -> None:
    await asyncio.to_thread(standby.start)
    current = dsn

    async def connect() -> psycopg.AsyncConnection[tuple[object, ...]]:
        return await psycopg.AsyncConnection.connect(current, autocommit=True)

    async with EventLog(connect) as log, log.follow("orders") as follower:
        for number in range(3):
            await execute(dsn, APPEND, str(number))
        assert [event.payload for event in await _read(follower, 3)] == ["0", "1", "2"]
        await execute(dsn, APPEND, "3")
        await until(standby.dsn, "SELECT count(*) = 4 FROM pgnotifybus.events")
        await asyncio.to_thread(primary.kill)
        await execute(standby.dsn, "SELECT pg_promote()")
        current = standby.dsn
        await execute(current, APPEND, "4")
        events = await _read(follower, 2)
        assert [event.payload for event in events] == ["3", "4"]
        await execute(current, APPEND, "5")
        again = log.follow("orders", after=events[0].cursor)
        assert [event.payload for event in await _read(again, 2)] == ["4", "5"]


async def test_what_a_primary_had_not_sent_does_not_hide_what_its_successor_writes(
    primary: EmbeddedServer, dsn: str, standby: EmbeddedServer
) -> None:
    """The new primary gives the ids of the transactions that are lost to others."""
    await execute(dsn, APPEND, "common")
    await asyncio.to_thread(standby.start)
    await until(standby.dsn, "SELECT count(*) = 1 FROM pgnotifybus.events")
    await asyncio.to_thread(standby.stop)
    async with EventLog(dsn) as log:
        for number in range(20):
            await execute(dsn, APPEND, f"lost {number}")
        cursor = (await _read(log.follow("orders", after="beginning"), 21))[-1].cursor
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.start)
    await execute(standby.dsn, "SELECT pg_promote()")
    for number in range(5):
        await execute(standby.dsn, APPEND, f"new {number}")
    newest = cursor.position.newest
    assert newest is not None
    [(xid,)] = await execute(
        standby.dsn, "SELECT max(xid)::text FROM pgnotifybus.events WHERE payload LIKE 'new%'"
    )
    assert newest.snapshot.sees(int(xid))  # by the transaction alone, it would count as read
    async with EventLog(standby.dsn) as log:
        events = await _read(log.follow("orders", after=cursor), 5)
        assert [event.payload for event in events] == [f"new {number}" for number in range(5)]
        await execute(standby.dsn, APPEND, "last")
        events = await _read(log.follow("orders", after=events[-1].cursor), 1)
        assert events[0].payload == "last"


async def test_a_prepared_transaction_that_is_committed_after_a_failover_is_delivered(
    primary: EmbeddedServer, dsn: str, standby: EmbeddedServer
) -> None:
    """Its events are of the timeline before; it was running in every snapshot since."""
    await asyncio.to_thread(standby.start)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("BEGIN; SET LOCAL pgnotifybus.wake = off")
        await connection.execute(APPEND.encode(), ("prepared",))
        await connection.execute("PREPARE TRANSACTION 'far'")
    [(end,)] = await execute(dsn, "SELECT pg_current_wal_insert_lsn()::text")
    await until(standby.dsn, "SELECT pg_last_wal_replay_lsn() >= CAST(%s AS pg_lsn)", end)
    await asyncio.to_thread(primary.kill)
    try:
        await execute(standby.dsn, "SELECT pg_promote()")
        await _delivers_what_is_prepared(standby.dsn)
    finally:  # it would hold locks in the tests to come
        await asyncio.to_thread(primary.start)
        await execute(dsn, "ROLLBACK PREPARED 'far'")


async def _delivers_what_is_prepared(current: str) -> None:
    async with (
        EventLog(current) as log,
        log.follow("orders") as follower,
        log.consumer("billing", "orders") as consumer,
    ):
        await log.prune()
        await execute(current, APPEND, "1")
        assert [event.payload for event in await _read(follower, 1)] == ["1"]
        await log.prune()  # a segment ends here
        cursor = await log.cursor()
        await execute(current, "COMMIT PREPARED 'far'")
        await execute(current, "SELECT pgnotifybus.wake()")
        assert [event.payload for event in await _read(follower, 1)] == ["prepared"]
        again = await _read(log.follow("orders", after=cursor), 1)
        assert [event.payload for event in again] == ["prepared"]
        got: list[str] = []
        while len(got) < 2:
            async with asyncio.timeout(20), consumer.batch() as batch:
                got += [event.payload for event in batch.events]
        assert sorted(got) == ["1", "prepared"]
        side = log._engine.side("test")
        async with side.use() as runner:
            assert (await retention.due(runner, "pgnotifybus")).new
        await side.close()
        [(known,)] = await execute(current, "SELECT sum(events)::int FROM pgnotifybus.segments")
        await log.prune()
        [(more,)] = await execute(current, "SELECT sum(events)::int FROM pgnotifybus.segments")
        assert more == known + 1


async def test_a_cursor_of_the_successor_is_ahead_of_the_old_primary(
    primary: EmbeddedServer, dsn: str, standby: EmbeddedServer
) -> None:
    await asyncio.to_thread(standby.start)
    await execute(standby.dsn, "SELECT pg_promote()")
    async with EventLog(standby.dsn) as log:
        cursor = await log.cursor()
    async with EventLog(dsn) as log:
        with pytest.raises(EpochMismatch, match="ahead of this server"):
            await anext(log.follow("orders", after=cursor))


@pytest.fixture
async def other(primary: EmbeddedServer) -> AsyncIterator[str]:
    name = f"other_{uuid.uuid4().hex[:8]}"
    await execute(primary.dsn, f"CREATE DATABASE {name}")
    yield name
    await execute(primary.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same server", "other server"])
async def test_a_log_restored_from_a_dump_is_noticed_and_goes_on(
    primary: EmbeddedServer,
    private_server: PrivateServer,
    dsn: str,
    other: str,
    elsewhere: bool,
) -> None:
    """Trap 29. Its events have the transaction ids of another server, all larger than any here."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for number in range(50):  # so that transaction ids there are ahead of those here
            await connection.execute(APPEND.encode(), (f"old {number}",))
    async with EventLog(dsn) as log:
        cursor = await log.cursor()
    script = dump(primary, "postgres")
    target = private_server(18) if elsewhere else primary
    name = "postgres" if elsewhere else other
    if elsewhere:
        await schema.remove(target.dsn)
    restore(target, name, script)
    there = target.dsn_for(database=name)
    async with EventLog(there) as log:
        with pytest.raises(EpochMismatch, match="restored from a dump, or copied"):
            await anext(log.follow("orders", after=cursor))
        async with log.follow("orders") as live:
            gapped = log.follow("orders", after=cursor, gaps=True)
            gap = await anext(gapped)
            assert isinstance(gap, Gap)
            assert gap.reason == "epoch"
            skipping = asyncio.create_task(_read(gapped, 2))
            await until_joined(log, 2)
            for number in range(2):
                await execute(there, APPEND, f"new {number}")
            assert [event.payload for event in await _read(live, 2)] == ["new 0", "new 1"]
            assert [event.payload for event in await skipping] == ["new 0", "new 1"]
        everything = await _read(log.follow("orders", after="beginning"), 52)
        assert [event.payload for event in everything] == [
            *(f"old {number}" for number in range(50)),
            "new 0",
            "new 1",
        ]
        # In between, too.
        rest = await _read(log.follow("orders", after=everything[10].cursor), 41)
        assert [event.id for event in rest] == [event.id for event in everything[11:]]
        assert await schema.install(there) is False


async def test_who_reads_what_was_restored_is_told_what_retention_deletes_of_it(
    primary: EmbeddedServer, dsn: str, other: str
) -> None:
    async with EventLog(dsn) as log:
        for part in range(2):
            await _append_many(log, dsn, [f"old {part}"] * 5000)
            await log.prune()  # a segment ends here
    restore(primary, other, dump(primary, "postgres"))
    there = primary.dsn_for(database=other)
    async with EventLog(there, prune=False) as log:
        slow = log.follow("orders", after="beginning")
        cursor = (await _read(slow, 10))[-1].cursor
        await _append_many(log, there, ["new"] * 10)
        behind = await log.cursor()
        # As when it had grown too old: of the segments that were restored, the first one goes.
        await execute(
            there,
            "UPDATE pgnotifybus.segments SET closed_at = closed_at - interval '1 day'"
            " WHERE id = (SELECT min(id) FROM pgnotifybus.segments)",
        )
        assert await log.prune(older_than=timedelta(hours=12)) == 5000
        with pytest.raises(CursorExpired) as expired:
            await _read(log.follow("orders", after=cursor), 1)
        rest = await _read(log.follow("orders", after=expired.value.oldest), 5010)
        assert [event.payload for event in rest] == ["old 1"] * 5000 + ["new"] * 10
        assert len(await _read(log.follow("orders", after="beginning"), 5010)) == 5010
        assert len(await _read(log.follow("orders", after=rest[0].cursor), 5009)) == 5009
        assert len(await _read(slow, 10_000)) == 10_000  # it had read past what was deleted
        await execute(there, APPEND, "last")
        assert [event.payload for event in await _read(log.follow("orders", after=behind), 1)] == [
            "last"
        ]
        assert await log.prune(older_than=timedelta(0)) == 5011


async def _append_many(log: EventLog, dsn: str, payloads: list[str]) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await log.append_many(connection, "orders", payloads)


async def test_a_log_that_was_made_anew_is_noticed_by_cursors_and_by_who_follows(
    database18: str,
) -> None:
    await schema.install(database18)
    async with EventLog(database18) as log:
        cursor = await log.cursor()
        async with log.follow("orders") as follower, log.follow("orders", gaps=True) as patient:
            await schema.remove(database18)
            await schema.install(database18)
            await execute(database18, APPEND, "1")
            with pytest.raises(EpochMismatch, match="made anew"):
                await _read(follower, 1)
            assert isinstance(await asyncio.wait_for(anext(patient), 10), Gap)
            waiting = asyncio.create_task(_read(patient, 1))
            await until_joined(log, 1)
            await execute(database18, APPEND, "2")
            assert (await waiting)[0].payload == "2"
        with pytest.raises(EpochMismatch, match="made anew"):
            await anext(log.follow("orders", after=cursor))


async def until_joined(log: EventLog, count: int) -> None:
    """Wait until so many follow live: they have a place in the tail then."""
    parts = log._engine.running()
    async with asyncio.timeout(10):
        while True:
            rings = parts.tail._rings.values()
            if sum(ring.shared.receivers for ring in rings) >= count:
                return
            await asyncio.sleep(0.005)


async def _read(follower: Follower[Any], count: int) -> list[Event[str]]:
    async with asyncio.timeout(30):
        events = [await anext(follower) for _ in range(count)]
    assert len({str(event.cursor) for event in events}) == count
    assert all(Cursor(str(event.cursor)) == event.cursor for event in events)
    return events
