"""Consumers beside others, and beside what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus import Closed, EpochMismatch, EventLog, EventLogError, PoolTooSmall, schema
from pgnotifybus.log.consumer import Consumer
from pgnotifybus.testing import FaultProxy
from support.callers import sqlalchemy_url
from support.sql import execute
from support.waiting import until, until_waits

APPEND = "SELECT pgnotifybus.append('orders', %s)"
TAKING = "SELECT position, attempts"  # a consumer's row, to lock it
IDLE = (
    "SELECT count(*) > 0 FROM pg_stat_activity WHERE state = 'idle' AND query = 'COMMIT'"
    " AND application_name = 'pgnotifybus consumer' AND datname = current_database()"
    " AND query_start > %s"  # it has looked since then, and found nothing
)


@pytest.fixture
async def dsn(database18: str) -> str:
    """A database with a log."""
    await schema.install(database18)
    return database18


@pytest.fixture
async def log(dsn: str) -> AsyncIterator[EventLog]:
    async with EventLog(dsn) as log:
        yield log


async def append(dsn: str, *payloads: str) -> None:
    for payload in payloads:
        await execute(dsn, APPEND, payload)


async def take(consumer: Consumer, count: int = 1, limit: int = 100) -> list[str]:
    """Consume so many events."""
    got: list[str] = []
    async with asyncio.timeout(20):
        while len(got) < count:
            async with consumer.batch(limit=limit) as batch:
                got += [event.payload for event in batch.events]
    return got


class _Bad(Exception):
    """Of a handler."""


# -- what is delivered ----------------------------------------------------------------------------


async def test_on_each_server(database: str) -> None:
    await schema.install(database)
    await append(database, "1", "2", "3")
    async with EventLog(database) as log, log.consumer("billing", "orders") as consumer:
        async with consumer.batch(limit=2) as batch:
            assert [event.payload for event in batch.events] == ["1", "2"]
        assert await take(consumer) == ["3"]


async def test_it_wakes_for_what_is_committed_and_for_nothing_else(dsn: str, log: EventLog) -> None:
    """While a transaction that has written elsewhere is open all the time."""
    await execute(dsn, "CREATE TABLE unrelated (a int)")
    async with (
        log.consumer("billing", "orders") as consumer,
        await psycopg.AsyncConnection.connect(dsn) as unrelated,
        await psycopg.AsyncConnection.connect(dsn) as writer,
    ):
        await unrelated.execute("INSERT INTO unrelated VALUES (1)")
        for number in map(str, range(5)):
            waiting = asyncio.create_task(take(consumer))
            await log.append(writer, "orders", "never")
            await writer.rollback()
            await log.append(writer, "orders", number)
            await writer.commit()
            async with asyncio.timeout(5):
                assert await waiting == [number]


async def test_an_event_of_a_transaction_that_commits_late_is_delivered(
    dsn: str, log: EventLog
) -> None:
    async with (
        log.consumer("billing", "orders") as consumer,
        await psycopg.AsyncConnection.connect(dsn) as writer,
    ):
        await log.append(writer, "orders", "early, but late")
        await append(dsn, "1", "2")
        assert await take(consumer, 2) == ["1", "2"]
        await writer.commit()
        assert await take(consumer) == ["early, but late"]


# -- who works ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset", "cut", "close_server_side"])
async def test_another_takes_over_when_the_network_is_cut(
    dsn: str, log: EventLog, fault: str
) -> None:
    await append(dsn, "1", "2")
    async with (
        FaultProxy.in_front_of(dsn) as proxy,
        EventLog(proxy.dsn) as far,
        far.consumer("billing", "orders") as theirs,
        log.consumer("billing", "orders") as ours,
    ):
        assert await take(theirs, limit=1) == ["1"]
        standing_by = asyncio.create_task(take(ours))
        await getattr(proxy, fault)()
        assert await standing_by == ["2"]
        await proxy.heal()


async def test_another_takes_over_when_the_task_is_cancelled(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    taken = asyncio.Event()

    async def work() -> None:
        async with log.consumer("billing", "orders") as consumer, consumer.batch():
            taken.set()
            await asyncio.Event().wait()

    async with log.consumer("billing", "orders") as other:
        task = asyncio.create_task(work())
        await taken.wait()
        standing_by = asyncio.create_task(take(other))
        task.cancel()
        await asyncio.wait([task])
        assert await standing_by == ["1"]


async def test_one_that_stands_by_ends_when_it_is_left(dsn: str) -> None:
    """It must not get the turn later, as nobody would give it back."""
    looking = asyncio.Event()

    async def connect() -> Any:
        looking.set()
        return await psycopg.AsyncConnection.connect(dsn, application_name="pgnotifybus test")

    async with EventLog(connect, prune=False, pacemaker=False) as log:
        await append(dsn, "1", "2")
        async with log.consumer("billing", "orders") as first:
            await take(first, limit=1)
            async with log.consumer("billing", "orders") as second:
                looking.clear()
                standing_by = asyncio.create_task(take(second))
                await looking.wait()
        with pytest.raises(Closed):
            await standing_by
        assert not second.active


async def test_one_that_waits_for_events_ends_when_it_is_left(dsn: str, log: EventLog) -> None:
    async with log.consumer("billing", "orders") as consumer:
        [(now,)] = await execute(dsn, "SELECT clock_timestamp()")
        waiting = asyncio.create_task(take(consumer))
        await until(dsn, IDLE, now)
    with pytest.raises(Closed):
        await waiting


# -- beside an open batch -------------------------------------------------------------------------


async def test_beside_a_batch_of_another_process(dsn: str, log: EventLog) -> None:
    """Looking waits for nobody; what moves the consumer waits for the batch."""
    await append(dsn, "1", "2")
    async with (
        EventLog(dsn) as far,
        far.consumer("billing", "orders") as theirs,
        log.consumer("billing", "orders") as ours,
    ):
        async with theirs.batch():
            async with asyncio.timeout(5):
                assert (await ours.lag()).events == 2
                assert await ours.dead_letters() == []
            resetting = asyncio.create_task(ours.reset())
            await until_waits(dsn, TAKING)
        await resetting
        assert await take(theirs, 2) == ["1", "2"]  # again


async def test_in_its_own_batch_it_does_not_wait_for_itself(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    async with log.consumer("billing", "orders") as consumer:
        async with consumer.batch():
            for moving in (consumer.reset, consumer.drop):
                with pytest.raises(RuntimeError, match="afterwards"):
                    await moving()
        await consumer.reset()
        assert await take(consumer) == ["1"]


async def test_seek_and_replay_wake_the_one_who_works_elsewhere(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    async with (
        EventLog(dsn) as far,
        far.consumer("billing", "orders", max_attempts=1) as theirs,
        log.consumer("billing", "orders") as ours,
    ):
        with pytest.raises(_Bad):
            async with theirs.batch():
                raise _Bad
        for again in (ours.replay, ours.reset):
            [(now,)] = await execute(dsn, "SELECT clock_timestamp()")
            waiting = asyncio.create_task(take(theirs))
            await until(dsn, IDLE, now)
            await again()
            async with asyncio.timeout(5):
                assert await waiting == ["1"]
        assert await ours.dead_letters() == []


async def test_the_error_of_a_block_goes_through_although_it_was_dropped(
    dsn: str, log: EventLog
) -> None:
    await append(dsn, "1")
    async with log.consumer("billing", "orders") as consumer:
        with pytest.raises(_Bad):  # noqa: PT012
            async with consumer.batch():
                dropping = asyncio.create_task(consumer.drop())
                await until_waits(dsn, "DELETE FROM")
                raise _Bad
        assert await dropping
        with pytest.raises(EventLogError, match="dropped"):
            await take(consumer)


# -- what fails -----------------------------------------------------------------------------------


async def test_of_those_that_are_replayed_only_the_bad_one_stays(dsn: str, log: EventLog) -> None:
    await append(dsn, "good", "bad", "fine")
    async with log.consumer("billing", "orders", max_attempts=1) as consumer:
        while (await consumer.lag()).events:
            with contextlib.suppress(_Bad):
                async with consumer.batch():
                    raise _Bad
        assert await consumer.replay() == 3
        for _ in range(3):
            with contextlib.suppress(_Bad):
                async with consumer.batch() as batch:
                    if batch.events[0].payload == "bad":
                        raise _Bad
        assert [each.event.payload for each in await consumer.dead_letters()] == ["bad"]


async def test_an_event_is_set_aside_as_it_was_although_it_was_deleted(
    dsn: str, log: EventLog
) -> None:
    headers = {"trace": ['"', "\\", "{}", "%s :a $1"], "n": 1}
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await log.append(connection, "orders", "a '\"\\{},NULL", key='"k"', headers=headers)
        await log.append(connection, "orders", "")
    async with log.consumer("billing", "orders", max_attempts=1) as consumer:
        events = []
        for _ in range(2):
            with pytest.raises(_Bad):  # noqa: PT012
                async with consumer.batch(limit=1) as batch:
                    events += batch.events
                    await execute(
                        dsn, "DELETE FROM pgnotifybus.events WHERE id = %s", events[-1].id
                    )
                    raise _Bad
        assert events[0].headers == headers
        letters = [letter.event for letter in await consumer.dead_letters()]
        assert [each._replace(cursor=events[0].cursor) for each in letters] == [
            each._replace(cursor=events[0].cursor) for each in events
        ]


async def test_what_was_swallowed_is_explained(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    async with log.consumer("billing", "orders", backoff_initial=0.01) as consumer:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction) as failed:  # noqa: PT012
            async with consumer.batch() as batch:
                with contextlib.suppress(psycopg.Error):
                    await batch.connection.execute("SELECT 1/0")
        assert "swallowed" in failed.value.__notes__[0]
        assert await take(consumer) == ["1"]


async def test_a_log_that_was_made_anew_is_not_read_on(dsn: str) -> None:
    await append(dsn, "1", "2")
    async with EventLog(dsn, prune=False) as log, log.consumer("billing", "orders") as consumer:
        await take(consumer, limit=1)
        rows = await execute(dsn, "SELECT name, channels, position FROM pgnotifybus.consumers")
        await schema.remove(dsn)
        with pytest.raises(EventLogError, match="install it first"):
            await take(consumer)
        await schema.install(dsn)
        await append(dsn, "of another log")
        with pytest.raises(EventLogError, match="dropped"):
            await take(consumer)
        sql = "INSERT INTO pgnotifybus.consumers (name, channels, position) VALUES (%s, %s, %s)"
        await execute(dsn, sql, *rows[0])
        with pytest.raises(EpochMismatch):
            await take(consumer)
        await consumer.reset()
        assert await take(consumer) == ["of another log"]


async def test_a_pool_of_one_is_too_small(dsn: str) -> None:
    async with (
        psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool,
        EventLog(pool) as log,
    ):
        with pytest.raises(PoolTooSmall):
            async with log.consumer("billing", "orders"):
                pass


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_engine_that_commits_by_itself_works_in_transactions(
    dsn: str, driver: str
) -> None:
    await append(dsn, "1")
    engine = create_async_engine(sqlalchemy_url(dsn, driver), isolation_level="AUTOCOMMIT")
    try:
        async with EventLog(engine) as log, log.consumer("billing", "orders") as consumer:
            with pytest.raises(_Bad):  # noqa: PT012
                async with consumer.batch() as batch:
                    await batch.connection.exec_driver_sql("CREATE TABLE mine ()")
                    raise _Bad
            assert await execute(dsn, "SELECT to_regclass('mine')") == [(None,)]
    finally:
        await engine.dispose()


# -- the connection -------------------------------------------------------------------------------


async def test_the_connections_of_a_pool_come_back_clean(dsn: str) -> None:
    """No lock, no transaction, no setting of ours; also after a block that has failed."""
    await append(dsn, "1")
    show = "SHOW tcp_keepalives_idle"
    async with (
        psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=3, open=False) as pool,
        EventLog(pool) as log,
    ):
        async with pool.connection() as connection:
            before = await (await connection.execute(show)).fetchone()
        async with log.consumer("billing", "orders") as consumer:
            with pytest.raises(_Bad):  # noqa: PT012
                async with consumer.batch() as batch:
                    ours = batch.connection
                    # The server lets another one work soon when this one's network is gone.
                    assert await (await ours.execute(show)).fetchone() == ("5",)
                    raise _Bad
        assert not ours.closed
        assert ours.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        pid = ours.info.backend_pid
        assert await execute(dsn, "SELECT FROM pg_locks WHERE pid = %s", pid) == []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(pool.max_size):
                connection = await stack.enter_async_context(pool.connection())
                assert await (await connection.execute(show)).fetchone() == before


@pytest.mark.parametrize("name", [None, "mine"])
async def test_the_name_of_a_session_of_asyncpg(dsn: str, name: str | None) -> None:
    await append(dsn, "1")
    source = dsn if name is None else f"{dsn}?application_name={name}"
    async with (
        EventLog(source, driver="asyncpg") as log,
        log.consumer("billing", "orders") as consumer,
        consumer.batch() as batch,
    ):
        assert isinstance(batch.connection, asyncpg.Connection)
        shown = await batch.connection.fetchval("SHOW application_name")
        assert shown == (name or "pgnotifybus consumer")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_cancelled_in_each_of_its_awaits_it_loses_nothing(dsn: str, driver: Any) -> None:
    """Each step of a task is cancelled once: the first, the second, and so on to the end."""
    await execute(dsn, "CREATE TABLE done (payload text)")
    steps, ended = 0, False
    async with EventLog(dsn, driver=driver) as log:
        while not ended:
            await append(dsn, str(steps))
            ended = await _cancelled_after(steps, _work_once(log))
            steps += 1
        async with log.consumer("billing", "orders") as consumer:
            while (await consumer.lag()).events:
                async with consumer.batch() as batch:
                    await _note(batch)
    done = await execute(dsn, "SELECT payload FROM done ORDER BY payload::int")
    assert [int(payload) for (payload,) in done] == list(range(steps))
    assert steps > 10


async def _work_once(log: EventLog) -> None:
    async with log.consumer("billing", "orders") as consumer, consumer.batch() as batch:
        await _note(batch)


async def _note(batch: Any) -> None:
    for event in batch.events:
        await batch.connection.execute(f"INSERT INTO done VALUES ('{event.payload}')")


class _Steps:
    """Runs a coroutine as it is, and cancels its task when it waits for the n-th time."""

    def __init__(self, coroutine: Any, steps: int) -> None:
        self._coroutine = coroutine
        self._steps = steps
        self.cancelled = False

    def __await__(self) -> Generator[Any, Any, None]:
        send: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                waits_for = send(value)
            except StopIteration:
                return
            if self._steps == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                self.cancelled = True
            self._steps -= 1
            try:
                value = yield waits_for
                send = self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - it is thrown on
                value, send = error, self._coroutine.throw


async def _cancelled_after(steps: int, coroutine: Any) -> bool:
    """Whether it ended before so many steps."""
    stepping = _Steps(coroutine, steps)

    async def go() -> None:
        await stepping

    task = asyncio.create_task(go())
    async with asyncio.timeout(20):
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return not stepping.cancelled
