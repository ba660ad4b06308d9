"""Consumers: each event takes effect exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus import (
    Closed,
    CursorExpired,
    EpochMismatch,
    EventLog,
    EventLogError,
    InvalidChannel,
    LinkError,
    LinkLost,
    SchemaError,
    schema,
)
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.log.consumer import Consumer
from support.callers import sqlalchemy_url
from support.sql import execute
from support.storying import Writers, committed, crasher, killer
from support.waiting import until

SEED = 7
DRIVERS = (
    psycopg.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # also of a connection that is just going down
    exc.SQLAlchemyError,
)
APPEND = "SELECT pgnotifybus.append('orders', %s)"
DONE = "CREATE TABLE done (id bigint PRIMARY KEY, payload text)"


@pytest.fixture
async def dsn(database18: str) -> str:
    """A database with a log, and a table for what was done."""
    await schema.install(database18)
    await execute(database18, DONE)
    return database18


@pytest.fixture
async def log(dsn: str) -> AsyncIterator[EventLog]:
    async with EventLog(dsn) as log:
        yield log


async def append(dsn: str, *payloads: str) -> None:
    for payload in payloads:
        await execute(dsn, APPEND, payload)


async def done(dsn: str) -> list[str]:
    return [row[0] for row in await execute(dsn, "SELECT payload FROM done ORDER BY id")]


async def work(batch: Any) -> None:
    """Note events in the table, over whatever connection."""
    for event in batch.events:
        sql, connection = "INSERT INTO done VALUES ", batch.connection
        match type(connection).__module__.partition(".")[0]:
            case "asyncpg":
                await connection.execute(f"{sql} ($1, $2)", event.id, event.payload)
            case "psycopg":
                await connection.execute(f"{sql} (%s, %s)", (event.id, event.payload))
            case _:
                values = {"id": event.id, "payload": event.payload}
                await connection.execute(text(f"{sql} (:id, :payload)"), values)


async def consume(consumer: Consumer, count: int, limit: int = 100) -> None:
    """Work until so many events are done."""
    async with asyncio.timeout(30):
        while count > 0:
            async with consumer.batch(limit=limit) as batch:
                await work(batch)
            count -= len(batch.events)


class _Bad(Exception):
    """Of a handler."""


# -- the transaction ------------------------------------------------------------------------------


KINDS = [
    "psycopg",
    "asyncpg",
    "asyncpg pool",
    "psycopg pool",
    "engine asyncpg",
    "engine psycopg",
    "factory asyncpg",
    "factory psycopg",
]


@contextlib.asynccontextmanager
async def log_over(dsn: str, kind: str, **options: Any) -> AsyncIterator[EventLog]:
    """A log over each kind of source."""
    async with contextlib.AsyncExitStack() as stack:
        source: Any = dsn
        if kind == "asyncpg":
            options["driver"] = "asyncpg"
        elif kind == "asyncpg pool":
            source = await stack.enter_async_context(
                asyncpg.create_pool(dsn, min_size=0, max_size=5)
            )
        elif kind == "psycopg pool":
            source = psycopg_pool.AsyncConnectionPool(dsn, min_size=0, max_size=4, open=False)
            await stack.enter_async_context(source)
        elif kind.startswith("engine"):
            source = create_async_engine(sqlalchemy_url(dsn, kind.split()[1]))
            stack.push_async_callback(source.dispose)
        elif kind == "factory asyncpg":

            async def source() -> Any:
                return await asyncpg.connect(dsn)

        elif kind == "factory psycopg":

            async def source() -> Any:
                return await psycopg.AsyncConnection.connect(dsn)

        yield await stack.enter_async_context(EventLog(source, **options))


@pytest.mark.parametrize("kind", KINDS)
async def test_work_and_cursor_are_one_transaction_over_every_source(dsn: str, kind: str) -> None:
    await append(dsn, "1", "2", "3")
    async with log_over(dsn, kind) as log:
        async with log.consumer("billing", "orders") as consumer:
            with pytest.raises(_Bad):  # noqa: PT012 - the block is what fails
                async with consumer.batch() as batch:
                    await work(batch)
                    raise _Bad
            assert await done(dsn) == []
            await consume(consumer, 3, limit=2)
            assert await done(dsn) == ["1", "2", "3"]
            waiting = asyncio.create_task(consume(consumer, 1))
            await append(dsn, "4")
            await waiting
        assert await done(dsn) == ["1", "2", "3", "4"]
        [(locks,)] = await execute(
            dsn,
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND classid = (hashtext('pgnotifybus consumer pgnotifybus')::bigint & 4294967295)",
        )
        assert locks == 0
        async with log.consumer("billing", "orders") as consumer:
            assert (await consumer.lag()).events == 0


async def test_it_begins_where_it_was_told_and_goes_on_where_it_was(
    dsn: str, log: EventLog
) -> None:
    await append(dsn, "1", "2")
    cursor = await log.cursor()
    [(now,)] = await execute(dsn, "SELECT clock_timestamp()")
    await append(dsn, "3")
    cases: list[tuple[str, Any, list[str]]] = [
        ("a", "beginning", ["1", "2", "3", "last"]),
        ("b", "now", ["last"]),
        ("c", cursor, ["3", "last"]),
        ("d", str(cursor), ["3", "last"]),
        ("e", now, ["3", "last"]),
    ]
    for name, after, expected in cases:
        await execute(dsn, "TRUNCATE done")
        async with log.consumer(name, "orders", after=after) as consumer:
            assert (await consumer.lag()).events == len(expected) - 1
            if len(expected) > 1:
                await consume(consumer, 1, limit=1)
        await append(dsn, "last")
        async with log.consumer(name, "orders", after="now") as consumer:
            while (await consumer.lag()).events:
                async with consumer.batch() as batch:
                    await work(batch)
        await execute(dsn, "DELETE FROM pgnotifybus.events WHERE payload = 'last'")
        assert await done(dsn) == expected
    states = {each.name: each for each in await log.consumers()}
    assert set(states) == set("abcde")
    assert states["a"].channels == ["orders"]
    assert not states["a"].active


async def test_it_goes_on_with_other_channels(dsn: str, log: EventLog) -> None:
    async with log.consumer("billing", "orders"):
        pass
    await execute(dsn, "SELECT pgnotifybus.append('jobs', 'job')")
    async with log.consumer("billing", "jobs", "orders") as consumer:
        await consume(consumer, 1)
    assert await done(dsn) == ["job"]
    assert [each.channels for each in await log.consumers()] == [["jobs", "orders"]]


async def test_seek_and_reset_go_back_and_forth(dsn: str, log: EventLog) -> None:
    await append(dsn, "1", "2", "3")
    async with log.consumer("billing", "orders") as consumer:
        await consume(consumer, 3)
        await consumer.reset()
        assert (await consumer.lag()).events == 3
        await consumer.seek("now")
        assert (await consumer.lag()).events == 0
        first = await anext(log.follow("orders", after="beginning"))
        await consumer.seek(first.cursor)
        async with consumer.batch() as batch:
            assert [event.payload for event in batch.events] == ["2", "3"]
        assert await consumer.drop()
        assert not await consumer.drop()
        with pytest.raises(EventLogError, match="dropped"):
            await consumer.lag()


# -- who works ------------------------------------------------------------------------------------


async def test_one_works_and_another_takes_over(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    async with EventLog(dsn) as second, second.consumer("billing", "orders") as other:
        async with log.consumer("billing", "orders") as consumer:
            await consume(consumer, 1)
            standing_by = asyncio.create_task(consume(other, 1))
            await append(dsn, "2")
            await consume(consumer, 1)
            assert (consumer.active, other.active) == (True, False)
            assert [each.active for each in await log.consumers()] == [True]
        await append(dsn, "3")
        await standing_by
        assert other.active
    assert await done(dsn) == ["1", "2", "3"]


@pytest.mark.parametrize("how", ["connection", "process"])
async def test_another_takes_over_from_one_that_died(dsn: str, log: EventLog, how: str) -> None:
    await append(dsn, "1", "2")
    script = (
        "import asyncio, sys\n"
        "from pgnotifybus import EventLog\n"
        "async def main():\n"
        "    async with EventLog(sys.argv[1]) as log, log.consumer('billing', 'orders') as c:\n"
        "        async with c.batch() as batch:\n"
        "            await batch.connection.execute('INSERT INTO done VALUES (1, 1)')\n"
        "            print('in a batch', flush=True)\n"
        "            await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, dsn, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"in a batch\n"
        async with log.consumer("billing", "orders") as consumer:
            waiting = asyncio.create_task(consume(consumer, 2))
            if how == "process":
                process.kill()
            else:
                await execute(
                    dsn,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                    " state = 'idle in transaction' AND application_name LIKE '%consumer'"
                    " AND datname = current_database()",
                )
            await waiting
        assert await done(dsn) == ["1", "2"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("crash", [False, True], ids=["backends", "server"])
async def test_each_event_takes_effect_exactly_once(
    private_server: Callable[..., EmbeddedServer], crash: bool
) -> None:
    """Members over several kinds of sources, killed at random, beside writers of every kind."""
    settings = {"max_prepared_transactions": "64", "max_connections": "200"}
    server = private_server(18, settings)
    dsn, chance = server.dsn, random.Random(SEED)
    await schema.remove(dsn)
    await schema.install(dsn)
    await execute(dsn, f"DROP TABLE IF EXISTS done; {DONE}")
    async with contextlib.AsyncExitStack() as stack:
        kinds = ("psycopg", "asyncpg", "engine asyncpg", "psycopg pool")
        logs = [await stack.enter_async_context(log_over(dsn, kind)) for kind in kinds]

        async def member(log: EventLog) -> None:
            async with log.consumer("billing", "orders", backoff_initial=0.01) as consumer:
                while True:
                    with contextlib.suppress(_Bad, LinkLost, *DRIVERS):
                        async with consumer.batch(limit=chance.randint(1, 200)) as batch:
                            await work(batch)
                            if chance.random() < 0.2:
                                raise _Bad

        async def fickle(log: EventLog) -> None:
            while True:
                with contextlib.suppress(TimeoutError, LinkError):
                    async with asyncio.timeout(0.5 + 2 * chance.random()):
                        await member(log)
                await asyncio.sleep(0.02)

        members = [asyncio.create_task(fickle(log)) for log in logs]
        disturbances = [asyncio.create_task(killer(lambda: server.dsn, chance))]
        if crash:
            disturbances.append(asyncio.create_task(crasher(server, chance)))
        await Writers(dsn, 8, SEED, channels=["orders", "jobs"]).run(6)
        for task in disturbances:
            task.cancel()
        await asyncio.wait(disturbances)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'writer'"
            )
            rows = await (await connection.execute("SELECT gid FROM pg_prepared_xacts")).fetchall()
            for (gid,) in rows:
                await connection.execute(f"ROLLBACK PREPARED '{gid}'".encode())
        await execute(dsn, "SELECT pgnotifybus.append('orders', 'last')")
        await until(dsn, "SELECT count(*) = 1 FROM done WHERE payload = 'last'")
        for task in members:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.wait(members)
    got = [row[0] for row in await execute(dsn, "SELECT id FROM done ORDER BY id")]
    dead = await execute(dsn, "SELECT id, error FROM pgnotifybus.dead_letters")
    taken = sorted([*got, *(row[0] for row in dead)])
    assert taken == await committed(dsn, "orders"), f"seed {SEED}"
    assert len(got) > 100


# -- what fails -----------------------------------------------------------------------------------


async def test_a_poisoned_event_is_set_aside_and_the_rest_goes_on(dsn: str, log: EventLog) -> None:
    await append(dsn, *map(str, range(20)))
    async with log.consumer("billing", "orders", max_attempts=3, backoff_initial=0.01) as consumer:
        tried = 0
        while (await consumer.lag()).events:
            with contextlib.suppress(_Bad):
                async with consumer.batch() as batch:
                    await work(batch)
                    if any(event.payload in ("7", "13") for event in batch.events):
                        tried += len(batch.events) == 1
                        raise _Bad("it cannot be")
        assert tried == 6
        good = [str(number) for number in range(20) if number not in (7, 13)]
        assert await done(dsn) == good
        letters = await consumer.dead_letters()
        assert [letter.event.payload for letter in letters] == ["7", "13"]
        assert {(letter.attempts, letter.error) for letter in letters} == {
            (3, "_Bad: it cannot be")
        }
        assert (await log.consumers())[0].dead_letters == 2
        # Replayed, one of them works now; the other one stays.
        assert await consumer.replay(letters[0].event.id) == 1
        await consume(consumer, 1)
        assert await consumer.replay() == 1
        with pytest.raises(_Bad):  # noqa: PT012 - the block is what fails
            async with consumer.batch() as batch:
                assert [event.payload for event in batch.events] == ["13"]
                raise _Bad("again")
        [letter] = await consumer.dead_letters()
        assert (letter.attempts, letter.error, letter.replay) == (4, "_Bad: again", False)
        await append(dsn, "20")
        await consume(consumer, 1)
        assert "20" in await done(dsn)


async def test_an_event_is_not_blamed_for_another(dsn: str, log: EventLog) -> None:
    """One that commits late stands in front of the one that has failed, which had a larger id."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as slow,
        log.consumer("billing", "orders", max_attempts=2, backoff_initial=0.01) as consumer,
    ):
        await slow.execute(APPEND.encode(), ["slow"])
        await append(dsn, "quick")
        for commits, expected in ((True, "quick"), (False, "slow"), (False, "slow")):
            assert await consumer.dead_letters() == []
            with pytest.raises(_Bad):  # noqa: PT012 - the block is what fails
                async with consumer.batch() as batch:
                    assert [event.payload for event in batch.events] == [expected]
                    raise _Bad
            if commits:
                await slow.commit()
        [letter] = await consumer.dead_letters()
        assert (letter.event.payload, letter.attempts) == ("slow", 2)
        await consume(consumer, 1)
        assert await done(dsn) == ["quick"]


async def test_it_is_retried_later_and_later(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    loop = asyncio.get_running_loop()
    times = []
    async with log.consumer("billing", "orders", backoff_initial=0.1) as consumer:
        for _ in range(4):
            with pytest.raises(_Bad):  # noqa: PT012 - the block is what fails
                async with consumer.batch():
                    times.append(loop.time())
                    raise _Bad
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True):
            assert wait >= least * 0.99
        await consume(consumer, 1)
        assert (await log.consumers())[0].attempts == 0


async def test_what_is_not_the_fault_of_the_event_does_not_count(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    async with log.consumer("billing", "orders", max_attempts=1) as consumer:
        for error in (
            psycopg.errors.SerializationFailure("x"),
            psycopg.errors.DeadlockDetected("x"),
            asyncio.CancelledError(),
            KeyboardInterrupt(),
        ):
            with pytest.raises(type(error)):
                async with consumer.batch():
                    raise error
        with pytest.raises(psycopg.Error):
            async with consumer.batch() as batch:
                await batch.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert await consumer.dead_letters() == []
        await consume(consumer, 1)
    assert await done(dsn) == ["1"]


async def test_a_statement_that_failed_and_was_swallowed_is_told(dsn: str, log: EventLog) -> None:
    await append(dsn, "1")
    async with log.consumer("billing", "orders", backoff_initial=0.01) as consumer:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # noqa: PT012
            async with consumer.batch() as batch:
                with contextlib.suppress(psycopg.Error):
                    await batch.connection.execute("SELECT 1/0")
        await consume(consumer, 1)
    assert await done(dsn) == ["1"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_fails_at_the_commit_counts(dsn: str, kind: str) -> None:
    await execute(dsn, "ALTER TABLE done ADD UNIQUE (payload) DEFERRABLE INITIALLY DEFERRED")
    await append(dsn, "same", "same")
    async with (
        log_over(dsn, kind) as log,
        log.consumer("billing", "orders", backoff_initial=0.01, max_attempts=2) as consumer,
    ):
        failures = 0
        while (await consumer.lag()).events:
            assert failures < 3
            try:
                async with asyncio.timeout(10), consumer.batch() as batch:
                    await work(batch)
            except DRIVERS:
                failures += 1
        assert failures == 3  # of both, and twice of the second one
        assert await done(dsn) == ["same"]
        [letter] = await consumer.dead_letters()
        assert "duplicate key" in letter.error


async def test_the_end_of_the_log_ends_its_consumers(dsn: str) -> None:
    """The one that waits for events, and the one that stands by; an open batch is finished."""
    async with contextlib.AsyncExitStack() as stack:
        log = EventLog(dsn)
        await log.__aenter__()
        names = ("billing", "billing", "mailing")
        first, second, third = [
            await stack.enter_async_context(log.consumer(name, "orders")) for name in names
        ]
        await append(dsn, "1")
        await consume(first, 1)
        async with asyncio.timeout(1.0):  # and so before one that stands by looks again
            waiting = [asyncio.ensure_future(consume(each, 1)) for each in (first, second)]
            async with third.batch() as batch:
                await work_of_mailing(batch)
                await log.__aexit__(None, None, None)
            for ended in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(ended, Closed)
        with pytest.raises(Closed):
            await consume(third, 1)
    assert sorted(await done(dsn)) == ["1", "mailed"]


async def work_of_mailing(batch: Any) -> None:
    await batch.connection.execute("INSERT INTO done VALUES (-1, 'mailed')")


async def test_retention_that_passes_a_consumer_is_told(dsn: str, log: EventLog) -> None:
    await append(dsn, "1", "2")
    async with log.consumer("billing", "orders") as consumer:
        await consume(consumer, 1, limit=1)
        assert await log.prune(older_than=timedelta(0)) == 2
        await append(dsn, "3")
        with pytest.raises(CursorExpired) as expired:
            await consume(consumer, 1)
        with pytest.raises(CursorExpired):
            await consumer.lag()
        await consumer.seek(expired.value.oldest)
        await consume(consumer, 1)
        assert await done(dsn) == ["1", "3"]
        with pytest.raises(EpochMismatch, match="ahead"):
            await consumer.seek(await _future(log, dsn))


async def _future(log: EventLog, dsn: str) -> Any:
    """A cursor that this server has not come to yet."""
    from pgnotifybus import Cursor
    from pgnotifybus.core.snapshot import Snapshot

    position = (await log.cursor()).position
    assert position.since is not None
    later = position.since._replace(snapshot=Snapshot(position.since.snapshot.end + 1000))
    return Cursor.at(position._replace(since=later))


# -- bad input, and the end -----------------------------------------------------------------------


async def test_bad_input_is_refused(dsn: str, log: EventLog) -> None:
    calls: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: log.consumer("", "orders"), InvalidChannel, "empty"),
        (lambda: log.consumer("a"), ValueError, "at least one channel"),
        (lambda: log.consumer("a", "b", max_attempts=0), ValueError, "max_attempts"),
        (lambda: log.consumer("a", "b", backoff_initial=0), ValueError, "initial"),
        (lambda: log.consumer("a", "b", after=7), TypeError, "after"),  # type: ignore[arg-type]
    ]
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()
    consumer = log.consumer("a", "orders")
    with pytest.raises(RuntimeError, match="async with"):
        async with consumer.batch():
            pass
    async with consumer:
        with pytest.raises(ValueError, match="at least 1"):
            consumer.batch(limit=0)
        await append(dsn, "1")
        async with consumer.batch():
            with pytest.raises(RuntimeError, match="open already"):
                async with consumer.batch():
                    pass
        with pytest.raises(RuntimeError, match="entered once"):
            await consumer.__aenter__()
    with pytest.raises(Closed):
        async with consumer.batch():
            pass


async def test_missing_rights_name_the_grant(dsn: str) -> None:
    role = f"role_{uuid.uuid4().hex[:8]}"
    await execute(
        dsn,
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA pgnotifybus TO {role};"
        f" GRANT SELECT ON pgnotifybus.events, pgnotifybus.log TO {role}",
    )
    parts = urlsplit(dsn)
    theirs = parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}").geturl()
    try:
        async with EventLog(theirs) as log:
            with pytest.raises(SchemaError, match=r"GRANT SELECT, INSERT, UPDATE, DELETE ON"):
                async with log.consumer("billing", "orders"):
                    pass
            await execute(
                dsn,
                "GRANT SELECT, INSERT, UPDATE, DELETE ON pgnotifybus.consumers,"
                f" pgnotifybus.dead_letters TO {role}",
            )
            await append(dsn, "1")
            async with log.consumer("billing", "orders") as consumer, consumer.batch() as batch:
                assert [event.payload for event in batch.events] == ["1"]
    finally:
        await execute(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_cancelled_wherever_it_waits_it_leaves_nothing(dsn: str, log: EventLog) -> None:
    await append(dsn, *map(str, range(40)))
    async with log.consumer("billing", "orders") as consumer:
        for turns in range(0, 60, 2):
            task = asyncio.create_task(consume(consumer, 1, limit=1))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await consume(consumer, (await consumer.lag()).events)
    assert await done(dsn) == sorted(map(str, range(40)), key=int)
