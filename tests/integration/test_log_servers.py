"""A log that goes on elsewhere: restored from a dump, on a promoted standby, made anew."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgnotifybus import Cursor, EpochMismatch, Event, EventLog, Gap, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.log.follower import Follower
from support.copies import discard, dump, restore, standby_of
from support.servers import PASSWORD
from support.sql import execute
from support.waiting import until

PrivateServer = Callable[..., EmbeddedServer]

APPEND = "SELECT pgnotifybus.append('orders', %s)"


@pytest.fixture
def primary(private_server: PrivateServer) -> EmbeddedServer:
    return private_server(18, {"wal_level": "replica", "max_wal_senders": "4"})


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
