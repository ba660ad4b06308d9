"""Where the event log could lose an event, give one twice, or stop, and does not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgnotifybus import EventLog, EventLogError, LinkLost, observe, schema
from pgnotifybus.database.queries import Script
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.links.base import ServerError
from pgnotifybus.links.sources import Driver, connector
from pgnotifybus.log import durable, maintenance, pacing, reading, retention, tail
from pgnotifybus.log.event import Event
from pgnotifybus.log.here import Here
from pgnotifybus.log.rows import Page
from pgnotifybus.log.wakes import Wakes
from pgnotifybus.testing import RecordingObserver
from support.sql import execute
from support.waiting import until, until_waits

APPEND = "SELECT pgnotifybus.append('orders', %s)"


@pytest.fixture
async def dsn(database18: str) -> str:
    """A database with a log."""
    await schema.install(database18)
    return database18


@pytest.fixture
async def log(dsn: str) -> AsyncIterator[EventLog]:
    async with EventLog(dsn) as log:
        yield log


async def _read(follower: Any, count: int) -> list[str]:
    async with asyncio.timeout(20):
        events: list[Event[str]] = [await anext(follower) for _ in range(count)]
    return [event.payload for event in events]


# -- nothing is lost ------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_consumer_is_given_what_it_appends_in_its_own_batch(
    dsn: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot of a transaction does not say of itself that it runs."""
    read = reading.read

    def after_others(*arguments: Any) -> Script[Page]:
        """So that the snapshot reaches beyond the transaction of the batch."""
        with psycopg.connect(dsn) as connection:
            connection.execute("SELECT pg_current_xact_id()")
        return (yield from read(*arguments))

    monkeypatch.setattr(reading, "read", after_others)
    async with (
        EventLog(dsn, driver=driver) as log,
        log.consumer("billing", "orders") as consumer,
    ):
        await execute(dsn, APPEND, "0")
        for number in range(5):
            async with asyncio.timeout(20), consumer.batch() as batch:
                assert [event.payload for event in batch.events] == [str(number)]
                await log.append(batch.connection, "orders", str(number + 1))


@pytest.mark.parametrize("after", ["now", "beginning"])
async def test_in_front_of_a_row_that_cannot_be_read_and_behind_it_nothing_is_lost(
    dsn: str, log: EventLog, after: str
) -> None:
    bad = (
        "INSERT INTO pgnotifybus.events (channel, payload, created_at)"
        " VALUES ('orders', 'bad', 'infinity')"
    )
    good = [str(number) for number in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        follower = log.follow("orders", after=after)
        if after == "now":
            await stack.enter_async_context(follower)
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            for each in (APPEND, APPEND, bad, APPEND, APPEND):
                await connection.execute(each.encode(), None if each == bad else (good.pop(0),))
        for _ in range(2):
            with pytest.raises(EventLogError, match="cannot be read"):
                await _read(follower, 1)
        await execute(dsn, "DELETE FROM pgnotifybus.events WHERE payload = 'bad'")
        assert await _read(follower, 4) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("few", [10_000, 20])
async def test_however_many_are_new_they_come_once_and_in_order(
    dsn: str, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Sorting them all for the first one would take longer than a statement may."""
    monkeypatch.setattr(reading, "FEW", few)
    monkeypatch.setattr(reading, "WINDOW", 64)
    async with EventLog(dsn) as log, log.follow("orders") as live:
        start = await log.cursor()
        async with log.consumer("billing", "orders", after=start) as consumer:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer:
                for number in range(0, 400, 40):
                    # A statement each, but for one channel of many.
                    payloads = [str(each) for each in range(number, number + 40)]
                    await log.append_many(writer, "orders", payloads)
                    await log.append_many(writer, "others", payloads)
            expected = [str(number) for number in range(400)]
            assert await _read(live, 400) == expected
            assert await _read(log.follow("orders", after=start), 400) == expected
            assert await _read(log.follow("orders", "others", after=start), 800)
            got: list[str] = []
            while len(got) < 400:
                async with asyncio.timeout(20), consumer.batch(limit=70) as batch:
                    got += [event.payload for event in batch.events]
            assert got == expected
            assert (await consumer.lag()).events == 0


async def test_a_consumer_passes_much_of_other_channels_step_by_step(
    dsn: str, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FEW", 10)
    monkeypatch.setattr(reading, "WINDOW", 10)
    async with log.consumer("billing", "orders") as consumer:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer:
            await log.append_many(writer, "others", [""] * 1200)
            await log.append(writer, "orders", "behind them")
        async with asyncio.timeout(20), consumer.batch() as batch:
            assert [event.payload for event in batch.events] == ["behind them"]


async def test_ids_that_are_gone_are_not_looked_through(dsn: str, log: EventLog) -> None:
    await execute(dsn, "SELECT setval('pgnotifybus.events_id_seq', 5000000000)")
    await execute(dsn, APPEND, "far")
    before = log.statistics().catch_up_reads
    assert await _read(log.follow("orders", after="beginning"), 1) == ["far"]
    assert log.statistics().catch_up_reads <= before + 3


# -- nothing comes twice --------------------------------------------------------------------------


async def test_who_joins_while_it_is_looked_is_given_nothing_twice(
    dsn: str, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cursor may lie behind that look."""
    looked, go = asyncio.Event(), asyncio.Event()
    make_durable = durable.make_durable

    async def wait(runner: Any, here: Here) -> None:
        if not looked.is_set():
            looked.set()
            await go.wait()
        await make_durable(runner, here)

    monkeypatch.setattr(tail, "make_durable", wait)
    first = asyncio.create_task(log.follow("orders").__aenter__())
    await looked.wait()
    await execute(dsn, APPEND, "read by then")
    async with EventLog(dsn) as other:
        cursor = await other.cursor()
    follower = log.follow("orders", after=cursor)
    joining = asyncio.create_task(follower.__aenter__())
    await asyncio.sleep(0)
    go.set()
    await joining
    await execute(dsn, APPEND, "new")
    assert await _read(follower, 1) == ["new"]
    assert await _read(await first, 1) == ["read by then"]


# -- it goes on, and it ends ----------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_transaction_that_a_script_left_open_is_nobody_elses(
    dsn: str, driver: Driver
) -> None:
    side = SideLink(connector(dsn, driver), part="test", connect_timeout=5.0, timeout=10.0)
    for _ in range(2):
        with pytest.raises(ServerError):
            async with side.use() as runner:
                await runner.execute("BEGIN; SELECT 1/0; COMMIT")
        with contextlib.suppress(ServerError):  # it is noticed here at the latest
            async with side.use() as runner:
                await runner.fetch("SELECT 1::text")
    async with side.use() as runner:
        assert await runner.fetch("SELECT 1::text") == [("1",)]
    await side.close()


async def test_a_flush_that_is_refused_stops_nothing(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, over a session that is as good as before."""
    flush = durable._FLUSH
    monkeypatch.setattr(
        durable,
        "_FLUSH",
        f"{flush}; SELECT pg_catalog.pg_cancel_backend(pid)"
        " FROM pg_catalog.pg_stat_activity WHERE pid = pg_backend_pid();"
        " SELECT pg_sleep(30)",
    )
    monkeypatch.setattr(durable, "_WAITS", ())
    recorder = RecordingObserver()
    async with EventLog(dsn, observer=recorder) as log:
        # A role-back writes without waiting for the disk: so the first look has to flush.
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute("SELECT pg_current_xact_id()")
            await connection.rollback()
            joining = asyncio.create_task(log.follow("orders").__aenter__())
            await recorder.wait_for(
                observe.LogDelayed, where=lambda event: event.doing == "reading the event log"
            )
            monkeypatch.setattr(durable, "_FLUSH", flush)
            follower = await asyncio.wait_for(joining, 20)
        await execute(dsn, APPEND, "1")
        assert await _read(follower, 1) == ["1"]


async def test_pruning_that_is_cancelled_ends_and_leaves_nothing_open(
    dsn: str, log: EventLog
) -> None:
    await execute(dsn, APPEND, "1")
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        await blocker.execute("SELECT * FROM pgnotifybus.log FOR UPDATE")
        pruning = asyncio.create_task(log.prune(older_than=timedelta(0)))
        await until_waits(dsn, "WITH gone")
        pruning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pruning
    assert await log.prune(older_than=timedelta(0)) == 1


async def test_pruning_that_is_refused_leaves_no_transaction_open(dsn: str) -> None:
    async with EventLog(dsn, prune=False) as log:
        side = log._engine.side("test")
        await execute(dsn, "ALTER TABLE pgnotifybus.segments RENAME TO hidden")
        with pytest.raises(ServerError, match="segments"):
            async with side.use() as runner:
                await retention.cut(runner, "pgnotifybus")
        await execute(dsn, "ALTER TABLE pgnotifybus.hidden RENAME TO segments")
        async with side.use() as runner:
            assert await retention.cut(runner, "pgnotifybus")
        await side.close()


async def test_a_follower_that_is_closed_by_another_task_ends(dsn: str, log: EventLog) -> None:
    await execute(dsn, APPEND, "1")
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        follower = log.follow("orders", after="beginning")
        async with follower:
            await blocker.execute("LOCK TABLE pgnotifybus.events")
            step = asyncio.create_task(anext(follower))
            await until_waits(dsn, "WITH first")
            follower.close()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(step, 10)


async def test_a_follower_that_is_closed_while_it_joins_leaves_nothing(
    dsn: str, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        follower = log.follow("orders", after="beginning")
        begun = asyncio.Event()
        begin = log._engine.begin

        async def note(*arguments: Any) -> Any:
            await blocker.execute("LOCK TABLE pgnotifybus.events")
            begun.set()
            return await begin(*arguments)

        monkeypatch.setattr(log._engine, "begin", note)
        step = asyncio.create_task(anext(follower))
        await begun.wait()
        follower.close()
        await blocker.rollback()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(step, 10)
    rings = log._engine.running().tail._rings.values()
    assert sum(ring.shared.receivers for ring in rings) == 0


async def test_who_waits_at_a_quiet_channel_is_not_overtaken_by_retention(dsn: str) -> None:
    await schema.install(dsn, event_retention=timedelta(seconds=1))
    async with (
        EventLog(dsn) as log,
        log.follow("quiet") as follower,
        log.consumer("billing", "quiet") as consumer,
    ):

        async def consume() -> list[str]:
            async with consumer.batch() as batch:
                return [event.payload for event in batch.events]

        consuming = asyncio.create_task(consume())
        waiting = asyncio.create_task(_read(follower, 1))
        for _ in range(2):  # what is appended now is deleted before anything comes
            await execute(dsn, "SELECT pgnotifybus.append('busy', '')")
            await until(dsn, "SELECT count(*) = 0 FROM pgnotifybus.events")
        await execute(dsn, "SELECT pgnotifybus.append('quiet', 'at last')")
        assert await waiting == ["at last"]
        assert await asyncio.wait_for(consuming, 20) == ["at last"]


async def test_where_there_is_no_row_that_says_what_to_keep_nothing_is_due(
    dsn: str, log: EventLog
) -> None:
    await execute(dsn, "DELETE FROM pgnotifybus.log")
    side = log._engine.side("test")
    async with side.use() as runner:
        assert await retention.due(runner, "pgnotifybus") == retention.Due(False, False, None)
    await side.close()


async def test_pruning_goes_on_after_the_schema_was_made_anew(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_INTERVAL", 0.05)
    monkeypatch.setattr(maintenance, "_SHORTEST", 0.05)
    async with EventLog(dsn):
        await schema.remove(dsn)
        await execute(dsn, "CREATE SCHEMA pgnotifybus")
        failed = asyncio.Event()
        due = retention.due

        async def note(*arguments: Any) -> Any:
            try:
                return await due(*arguments)
            except ServerError:
                failed.set()
                raise

        monkeypatch.setattr(retention, "due", note)
        await asyncio.wait_for(failed.wait(), 10)
        await schema.install(dsn, event_retention=timedelta(seconds=1))
        await execute(dsn, APPEND, "1")
        await until(dsn, "SELECT count(*) = 0 FROM pgnotifybus.events")


@pytest.mark.parametrize("may_be_awake", [True, False])
async def test_who_may_not_be_the_pacemaker_only_tells_what_a_dead_one_has_left(
    dsn: str, may_be_awake: bool
) -> None:
    loop = asyncio.get_running_loop()
    wakes = Wakes(loop.time)
    wakes.believe("awake")
    wakes.heard_at = loop.time() - 3600
    duty = pacing.Pacing(
        connector(dsn),
        "pgnotifybus",
        wakes,
        lambda _: None,  # type: ignore[arg-type]
        connect_timeout=5.0,
        may_be_awake=may_be_awake,
    )
    drain_only = await asyncio.wait_for(duty._wanted(), 10)
    assert drain_only is not may_be_awake


async def test_two_consumers_whose_names_look_alike_to_the_server_both_work(
    dsn: str, log: EventLog
) -> None:
    """Of 32 bits, some of 200,000 names share all."""
    [(names,)] = await execute(
        dsn,
        "SELECT array_agg('c' || n) FROM generate_series(1, 200000) AS n"
        " GROUP BY hashtext('c' || n) HAVING count(*) > 1 LIMIT 1",
    )
    await execute(dsn, APPEND, "1")
    async with contextlib.AsyncExitStack() as stack:
        consumers = [
            await stack.enter_async_context(log.consumer(name, "orders", after="beginning"))
            for name in names[:2]
        ]
        for consumer in consumers:
            async with asyncio.timeout(10), consumer.batch() as batch:
                assert [event.payload for event in batch.events] == ["1"]
        assert all(state.active for state in await log.consumers())
    assert not any(state.active for state in await log.consumers())


async def test_a_query_of_which_the_client_is_gone_ends(dsn: str) -> None:
    link = await connector(dsn).connect("test", 5.0)
    asking = asyncio.create_task(link.fetch("SELECT pg_sleep(300)::text"))
    running = "SELECT count(*) = {} FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(300)%%'"
    running += " AND pid <> pg_backend_pid()"
    await until(dsn, running.format(1))
    link.abort()
    with pytest.raises(LinkLost):
        await asking
    await until(dsn, running.format(0))
