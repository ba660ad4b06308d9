"""Appending to the log and following it, on real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus import (
    Channel,
    Closed,
    Cursor,
    CursorExpired,
    Event,
    EventLog,
    Gap,
    InvalidChannel,
    InvalidCursor,
    Malformed,
    PayloadTooLarge,
    SchemaError,
    SchemaMissing,
    schema,
)
from pgnotifybus.links.sources import Driver
from pgnotifybus.log import here, maintenance, reading, retention
from support.callers import BEGIN_BY_THEMSELVES, KINDS, opened, sqlalchemy_url
from support.sql import execute
from support.waiting import until

APPEND = "SELECT pgnotifybus.append('orders', %s)"


@pytest.fixture
async def dsn(database: str) -> str:
    """A database with a log, on each PostgreSQL in turn."""
    await schema.install(database)
    return database


@pytest.fixture
async def dsn18(database18: str) -> str:
    """A database with a log."""
    await schema.install(database18)
    return database18


@pytest.fixture
async def writer(dsn18: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection that commits by itself."""
    async with await psycopg.AsyncConnection.connect(dsn18, autocommit=True) as connection:
        yield connection


async def _read(follower: Any, count: int) -> list[Event[Any]]:
    async with asyncio.timeout(20):
        events = [await anext(follower) for _ in range(count)]
    assert not any(isinstance(event, Gap) for event in events)
    return events


async def _nothing_but(log: EventLog, follower: Any, writer: Any, channel: str = "orders") -> None:
    """That nothing is there, shown by what is sent behind it."""
    sentinel = uuid.uuid4().hex
    await log.append(writer, channel, sentinel)
    [event] = await _read(follower, 1)
    assert event.payload == sentinel


# -- appending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_an_event_is_there_when_the_callers_transaction_commits(
    dsn18: str, kind: str
) -> None:
    async with EventLog(dsn18) as log, log.follow("orders") as follower:
        async with opened(kind, dsn18) as caller:

            async def append(payload: Any, **options: Any) -> int:
                if caller.blocks:
                    return log.append_sync(caller.connection, "orders", payload, **options)
                return await log.append(caller.connection, "orders", payload, **options)

            with contextlib.suppress(_Undo):
                async with caller.transaction():
                    await append("never")
                    raise _Undo
            async with caller.transaction():
                await append("1", key="k", headers={"a": [1, None, "ž"]})
                with contextlib.suppress(_Undo):
                    async with caller.savepoint():
                        await append("never")
                        raise _Undo
                await append({"not": "text"})
            first, second = await _read(follower, 2)
            assert (first.payload, first.key, first.headers) == ("1", "k", {"a": [1, None, "ž"]})
            assert second.json() == {"not": "text"}
            assert (second.key, second.headers) == (None, {})
            assert first.id < second.id
            if kind in BEGIN_BY_THEMSELVES:
                await append("2")
                await caller.commit()
                assert [event.payload for event in await _read(follower, 1)] == ["2"]


class _Undo(Exception):
    """Rolls back."""


async def test_what_is_hard_to_quote_arrives_as_it_is(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    hard = """it's "q" %s % {} :p1 ::x \\: $1 $$ ; -- /* žluť */ {a,NULL,"b"} \\ \n\t"""
    async with EventLog(dsn18) as log, log.follow(hard[:40]) as follower:
        await log.append(writer, hard[:40], hard, key=hard, headers={hard: hard})
        await log.append_many(writer, hard[:40], [hard, "", "NULL"], keys=[hard, None, "NULL"])
        events = await _read(follower, 4)
        assert [event.payload for event in events] == [hard, hard, "", "NULL"]
        assert [event.key for event in events] == [hard, hard, None, "NULL"]
        assert events[0].headers == {hard: hard}
        assert {event.channel for event in events} == {hard[:40]}


async def test_bad_input_is_refused_before_anything_is_sent(dsn18: str) -> None:
    log = EventLog(dsn18, payload_limit=10)
    async with await psycopg.AsyncConnection.connect(dsn18) as connection:
        bad: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
            ("", "x", {}, InvalidChannel, "empty"),
            ("x" * 64, "x", {}, InvalidChannel, "63"),
            ("a", "\0", {}, ValueError, "NUL"),
            ("a", "x", {"key": "\0"}, ValueError, "key.*NUL"),
            ("a", "x", {"key": 7}, TypeError, "key"),
            ("a", "x", {"headers": {"a": "\0"}}, ValueError, "NUL"),
            ("a", "x", {"headers": [1]}, TypeError, "mapping"),
            ("a", "x", {"headers": {"a": object()}}, TypeError, "JSON"),
            ("a", float("nan"), {}, ValueError, "JSON"),
            ("a", "12345678901", {}, PayloadTooLarge, "11 bytes"),
        ]
        for channel, payload, options, error, text in bad:
            with pytest.raises(error, match=text):
                await log.append(connection, channel, payload, **options)
        with pytest.raises(ValueError, match="2 payloads and 1 keys"):
            await log.append_many(connection, "a", ["x", "y"], keys=["k"])
        with pytest.raises(TypeError, match="append_sync"):
            await log.append(object(), "a", "x")
        assert await log.append_many(connection, "a", []) == []
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with pytest.raises(ValueError, match="at least 1"):
        EventLog(dsn18, payload_limit=0)


async def test_without_the_schema_or_rights_the_error_says_what_to_do(database18: str) -> None:
    log = EventLog(database18)
    async with await psycopg.AsyncConnection.connect(database18) as connection:
        with pytest.raises(SchemaMissing, match="pgnotifybus schema install"):
            await log.append(connection, "a", "x")
    with pytest.raises(SchemaMissing, match="pgnotifybus schema install"):
        async with EventLog(database18):
            pass
    await schema.install(database18)
    await execute(database18, "DROP TABLE pgnotifybus.segments")
    with pytest.raises(SchemaMissing, match="has not all that it should have"):
        async with EventLog(database18):
            pass
    await schema.install(database18)
    await execute(
        database18, "COMMENT ON SCHEMA pgnotifybus IS 'pgnotifybus schema, version 99; and more'"
    )
    with pytest.raises(SchemaError, match="upgrade the library"):
        async with EventLog(database18):
            pass


async def test_what_the_error_grants_is_enough(dsn18: str) -> None:
    role = f"role_{uuid.uuid4().hex[:8]}"
    await execute(dsn18, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    parts = urlsplit(dsn18)
    theirs = parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}").geturl()
    try:
        async with await psycopg.AsyncConnection.connect(theirs, autocommit=True) as connection:
            log = EventLog(theirs)
            with pytest.raises(SchemaError, match="GRANT USAGE ON SCHEMA"):
                await log.append(connection, "orders", "x")
            await execute(dsn18, f"GRANT USAGE ON SCHEMA pgnotifybus TO {role}")
            with pytest.raises(SchemaError, match="GRANT INSERT, SELECT ON"):
                await log.append(connection, "orders", "x")
            await execute(dsn18, f"GRANT INSERT, SELECT ON pgnotifybus.events TO {role}")
            await log.append(connection, "orders", "1")
            with pytest.raises(SchemaError, match=r"GRANT SELECT ON .*\.log"):
                async with log:
                    pass
            await execute(dsn18, f"GRANT SELECT ON pgnotifybus.log TO {role}")
            async with EventLog(theirs) as log:
                follower = log.follow("orders", after="beginning")
                assert [event.payload for event in await _read(follower, 1)] == ["1"]
                with pytest.raises(SchemaError, match="GRANT SELECT, DELETE ON"):
                    await log.prune()
    finally:
        await execute(dsn18, f"DROP OWNED BY {role}")
        await execute(dsn18, f"DROP ROLE {role}")


# -- following ------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_what_was_missed_and_what_comes_is_one_stream(dsn: str, driver: Driver) -> None:
    for number in range(3):
        await execute(dsn, APPEND, str(number))
    async with EventLog(dsn, driver=driver) as log:
        follower = log.follow("orders", after="beginning")
        events = await _read(follower, 3)
        await execute(dsn, APPEND, "3")
        events += await _read(follower, 1)
        assert [event.payload for event in events] == ["0", "1", "2", "3"]
        for number, event in enumerate(events[:3]):
            again = log.follow("orders", after=str(event.cursor))
            assert [each.id for each in await _read(again, 3 - number)] == [
                each.id for each in events[number + 1 :]
            ]
        now = datetime.now(UTC)
        assert all(timedelta(0) <= now - event.created_at < timedelta(hours=1) for event in events)


@pytest.mark.parametrize(
    "kind", ["asyncpg pool", "psycopg pool", "engine asyncpg", "engine psycopg", "factory"]
)
async def test_every_source_serves(dsn18: str, kind: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        source: object
        if kind == "asyncpg pool":
            source = await stack.enter_async_context(
                asyncpg.create_pool(dsn18, min_size=0, max_size=5)
            )
        elif kind == "psycopg pool":
            source = await stack.enter_async_context(
                psycopg_pool.AsyncConnectionPool(dsn18, min_size=1, open=False)
            )
        elif kind == "factory":

            async def source() -> object:
                return await asyncpg.connect(dsn18)

        else:
            engine = create_async_engine(sqlalchemy_url(dsn18, kind.split()[1]))
            stack.push_async_callback(engine.dispose)
            source = engine
        log = await stack.enter_async_context(EventLog(source))
        follower = log.follow("orders", after="beginning")
        await execute(dsn18, APPEND, "1")
        assert [event.payload for event in await _read(follower, 1)] == ["1"]
        await execute(dsn18, APPEND, "2")
        assert [event.payload for event in await _read(follower, 1)] == ["2"]
        assert (await log.contents()).events == 2


async def test_a_smaller_id_that_commits_later_is_delivered_after_it(dsn: str) -> None:
    """Trap 26: what a cursor that is an id would lose."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as slow,
        EventLog(dsn) as log,
        log.follow("orders") as follower,
    ):
        smaller = await log.append(slow, "orders", "slow")
        await execute(dsn, APPEND, "quick")
        [quick] = await _read(follower, 1)
        assert (quick.payload, quick.id > smaller) == ("quick", True)
        resumed = log.follow("orders", after=quick.cursor)
        joined = asyncio.create_task(_read(resumed, 1))
        await slow.commit()
        for events in (await _read(follower, 1), await joined):
            assert [(event.payload, event.id) for event in events] == [("slow", smaller)]


async def test_catching_up_takes_many_pages_and_misses_nothing(
    dsn18: str, writer: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 30: more than a page, more than a window of ids, and more comes meanwhile."""
    monkeypatch.setattr(reading, "WINDOW", 700)
    async with EventLog(dsn18) as log:
        start = await log.cursor()
        for part in range(5):
            await log.append_many(writer, "others", [""] * 1500)
            await log.append_many(writer, "orders", [str(part * 400 + n) for n in range(400)])
        half = log.follow("orders", after=start)
        events = await _read(half, 1000)
        ends = [
            log.follow("orders", after="beginning"),
            log.follow("orders", after=start),
            log.follow("orders", after=events[-1].cursor),
        ]
        reads = [
            asyncio.create_task(_read(follower, count))
            for follower, count in zip(ends, [2001, 2001, 1001], strict=True)
        ]
        await log.append(writer, "orders", "2000")
        expected = [str(number) for number in range(2001)]
        assert [event.payload for event in await reads[0]] == expected
        assert [event.payload for event in await reads[1]] == expected
        assert [event.payload for event in await reads[2]] == expected[1000:]
        assert [event.payload for event in events + await _read(half, 1001)] == expected


async def test_a_follower_that_is_overrun_is_caught_up_from_the_table(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with (
        EventLog(dsn18, capacity=1) as log,
        log.follow("orders") as slow,
        log.follow("orders") as quick,
    ):
        for number in range(50):
            await log.append(writer, "orders", str(number))
            assert [event.payload for event in await _read(quick, 1)] == [str(number)]
        assert log.statistics().catch_up_reads <= 1  # that of entering
        assert [event.payload for event in await _read(slow, 50)] == [str(n) for n in range(50)]
        await _nothing_but(log, slow, writer)


async def test_a_thousand_followers_cost_what_one_costs(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with EventLog(dsn18) as log, contextlib.AsyncExitStack() as stack:
        followers = [log.follow("orders") for _ in range(1000)]
        before = log.statistics()
        async with asyncio.TaskGroup() as group:
            for follower in followers:
                group.create_task(stack.enter_async_context(follower))
        joining = log.statistics().reads - before.reads
        for number in range(10):
            await log.append(writer, "orders", str(number))
            for follower in followers:
                assert [event.payload for event in await _read(follower, 1)] == [str(number)]
        after = log.statistics()
        assert joining <= 3
        assert after.reads - before.reads - joining <= 20
        assert after.catch_up_reads == before.catch_up_reads


async def test_channels_are_followed_together_in_one_order_and_others_not_at_all(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with (
        EventLog(dsn18) as log,
        log.follow("a", "b") as both,
        log.follow("a") as first,
    ):
        for number in range(20):
            await log.append(writer, "abc"[number % 3], str(number))
        expected = [str(number) for number in range(20) if number % 3 < 2]
        assert [event.payload for event in await _read(both, len(expected))] == expected
        assert [event.payload for event in await _read(first, 7)] == [
            str(number) for number in range(0, 20, 3)
        ]
        await _nothing_but(log, both, writer, "b")
        await _nothing_but(log, first, writer, "a")


async def test_an_unrelated_transaction_holds_up_nothing(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    """Trap 27: a cursor that waits for the oldest transaction would wait for ever."""
    await execute(dsn18, "CREATE TABLE unrelated (a int)")
    async with await psycopg.AsyncConnection.connect(dsn18) as other:
        await other.execute("INSERT INTO unrelated VALUES (1)")
        async with EventLog(dsn18) as log, log.follow("orders") as follower:
            for number in range(10):
                await log.append(writer, "orders", str(number))
                assert [event.payload for event in await _read(follower, 1)] == [str(number)]
            late = log.follow("orders", after="beginning")
            assert len(await _read(late, 10)) == 10


async def test_from_a_point_in_time_on(dsn18: str, writer: psycopg.AsyncConnection[Any]) -> None:
    async with EventLog(dsn18) as log:
        await log.append(writer, "orders", "before")
        await writer.execute("SELECT pg_sleep(0.01)")
        [(moment,)] = await execute(dsn18, "SELECT clock_timestamp()")
        await log.append_many(writer, "orders", ["1", "2"])
        follower = log.follow("orders", after=moment)
        events = await _read(follower, 2)
        assert [event.payload for event in events] == ["1", "2"]
        [event] = await _read(log.follow("orders", after=events[0].cursor), 1)
        assert event.payload == "2"
        [event] = await _read(log.follow("orders", after=await log.cursor(moment)), 1)
        assert event.payload == "1"
        later = log.follow("orders", after=moment + timedelta(hours=1))
        async with later:
            await _nothing_but(log, later, writer)


async def test_retention_that_passes_a_follower_is_told(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    """Trap 29."""
    async with EventLog(dsn18) as log:
        start = await log.cursor()
        await log.append_many(writer, "orders", [str(number) for number in range(9000)])
        slow = log.follow("orders", after=start)
        await _read(slow, 10)
        now = await log.cursor()
        assert await log.prune() == 0
        assert await log.prune(older_than=timedelta(0)) == 9000
        await log.append(writer, "orders", "kept")
        assert [event.payload for event in await _read(log.follow("orders", after=now), 1)] == [
            "kept"
        ]
        with pytest.raises(CursorExpired) as expired:
            await _read(log.follow("orders", after=start), 1)
        oldest = expired.value.oldest
        assert isinstance(oldest, Cursor)
        assert [event.payload for event in await _read(log.follow("orders", after=oldest), 1)] == [
            "kept"
        ]
        # The pages that it holds already are handed out; then it is told.
        with pytest.raises(CursorExpired):
            await _read(slow, 9000)
        patient = log.follow("orders", after=start, gaps=True)
        gap = await anext(patient)
        assert gap == Gap("expired", "orders", 1, None)
        assert [event.payload for event in await _read(patient, 1)] == ["kept"]


async def test_retention_counts_from_when_an_event_could_be_read(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    """Written long before its commit, it would be gone before anybody could have read it."""
    await schema.install(dsn18, event_retention=timedelta(seconds=1))
    async with (
        await psycopg.AsyncConnection.connect(dsn18) as slow,
        EventLog(dsn18, prune=False) as log,
        log.follow("orders") as follower,
    ):
        await log.append(slow, "orders", "slow")
        await log.append(writer, "orders", "old")
        await log.prune()  # a segment ends here
        await until(dsn18, "SELECT now() - closed_at > '1.1 s' FROM pgnotifybus.segments")
        assert await log.prune() == 1
        await slow.commit()
        assert await log.prune() == 0
        assert [event.payload for event in await _read(follower, 2)] == ["old", "slow"]


async def test_a_log_is_pruned_to_a_size_by_who_has_it_open(
    dsn18: str, writer: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "GRACE", 0.0)
    await schema.install(dsn18, event_size=100_000, event_retention=timedelta(seconds=10))
    async with EventLog(dsn18) as log:
        before = await log.cursor()
        for _ in range(3):
            await log.append_many(writer, "orders", ["x"] * 400)
            before = await log.cursor()
            await log.prune()
        assert (await log.contents()).events == 400
        await log.append(writer, "orders", "kept")
        assert [event.payload for event in await _read(log.follow("orders", after=before), 1)] == [
            "kept"
        ]
        await schema.install(dsn18, event_retention=timedelta(seconds=1))
        await until(dsn18, "SELECT count(*) = 0 FROM pgnotifybus.events")


@dataclass
class Order:
    """What is sent."""

    id: int


async def test_a_typed_channel_is_appended_to_and_followed(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    orders = Channel("orders", Order)
    async with EventLog(dsn18) as log, log.follow(orders) as follower:
        await log.append(writer, orders, Order(7))
        await log.append(writer, "orders", "none")
        await log.append(writer, orders, Order(8))
        [event] = await _read(follower, 1)
        assert event.payload == Order(7)
        with pytest.raises(Malformed):
            await _read(follower, 1)
        assert (await _read(follower, 1))[0].payload == Order(8)
        many = log.follow(orders, after="beginning")
        assert [event.payload for event in await many.recv_many()] == [Order(7)]
        with pytest.raises(Malformed):
            await many.recv_many()
        assert [event.payload for event in await many.recv_many()] == [Order(8)]


async def test_many_are_read_at_once(dsn18: str, writer: psycopg.AsyncConnection[Any]) -> None:
    async with EventLog(dsn18) as log:
        await log.append_many(writer, "orders", [str(number) for number in range(10)])
        follower = log.follow("orders", after="beginning")
        assert [event.payload for event in await follower.recv_many(3)] == ["0", "1", "2"]
        cursor = follower.cursor
        assert cursor is not None
        assert [event.payload for event in await follower.recv_many()] == [
            str(number) for number in range(3, 10)
        ]
        again = log.follow("orders", after=cursor)
        assert (await again.recv_many())[0].payload == "3"
        with pytest.raises(ValueError, match="at least 1"):
            await follower.recv_many(0)
        with pytest.raises(ValueError, match="gaps"):
            await log.follow("orders", gaps=True).recv_many()


async def test_a_follower_that_was_left_says_where_to_go_on(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    """What it held and had not handed out lies behind its cursor."""
    async with EventLog(dsn18) as log:
        await log.append_many(writer, "orders", ["1", "2", "3"])
        async with log.follow("orders", after="beginning") as follower:
            await _read(follower, 1)
        follower.close()
        assert follower.cursor is not None
        again = log.follow("orders", after=follower.cursor)
        assert [event.payload for event in await _read(again, 2)] == ["2", "3"]
        await log.append_many(writer, "orders", ["4", "5"])  # the live tail hands out both at once
        assert (await _read(again, 1))[0].payload == "4"
        again.close()
        assert again.cursor is not None
        once_more = log.follow("orders", after=again.cursor)
        assert (await _read(once_more, 1))[0].payload == "5"


async def test_a_cursor_lies_before_a_gap_until_that_is_handed_out(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with EventLog(dsn18) as log:
        start = await log.cursor()
        await log.append(writer, "orders", "lost")
        assert await log.prune(older_than=timedelta(0)) == 1
        follower = log.follow("orders", "invoices", after=start, gaps=True)
        first = await anext(follower)
        assert isinstance(first, Gap)
        assert follower.cursor == start
        assert isinstance(await anext(follower), Gap)
        assert follower.cursor != start


async def test_reading_what_is_there_ends(dsn18: str, writer: psycopg.AsyncConnection[Any]) -> None:
    async with EventLog(dsn18) as log:
        assert await _all_of(log.follow("orders", after="beginning", live=False)) == []
        await log.append_many(writer, "orders", [str(number) for number in range(5000)])
        async with log.follow("orders", after="beginning", live=False) as follower:
            await log.append(writer, "orders", "later")
            assert await _all_of(follower) == [str(number) for number in range(5000)]
            assert await _all_of(follower) == []
        assert follower.cursor is not None
        rest = log.follow("orders", after=follower.cursor, live=False)
        assert [event.payload for event in await rest.recv_many()] == ["later"]
        with pytest.raises(Closed, match="what there was"):
            await rest.recv_many()
        assert await _all_of(log.follow("orders", live=False)) == []
        start = await log.cursor("beginning")
        await log.prune(older_than=timedelta(0))
        await log.append(writer, "orders", "kept")
        with pytest.raises(CursorExpired):
            await _all_of(log.follow("orders", after=start, live=False))
        told = [item async for item in log.follow("orders", after=start, live=False, gaps=True)]
        assert isinstance(told[0], Gap)
        assert [event.payload for event in told[1:] if isinstance(event, Event)] == ["kept"]


async def test_a_cancelled_step_loses_nothing(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with EventLog(dsn18) as log:
        follower = log.follow("orders", after="beginning")
        got: list[str] = []
        for number in range(30):
            await log.append(writer, "orders", str(number))
            for turns in range(12):  # at a later await each time
                step = asyncio.ensure_future(anext(follower))
                for _ in range(turns):
                    await asyncio.sleep(0)
                step.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    event = await step
                    assert isinstance(event, Event)
                    got.append(event.payload)
        rest = await _read(follower, 30 - len(got)) if len(got) < 30 else []
        assert got + [event.payload for event in rest] == [str(number) for number in range(30)]


async def test_the_end_of_the_log_ends_the_loops(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with EventLog(dsn18) as log:
        follower = log.follow("orders", after="beginning")
        await log.append(writer, "orders", "1")
        await _read(follower, 1)
        left = log.follow("orders")
        waits = asyncio.create_task(_all_of(left))
        async with log.follow("orders") as other:
            await log.append(writer, "orders", "2")
            await _read(other, 1)  # the tail has handed it to all
        left.close()
        assert await waits in ([], ["2"])
    assert await _all_of(follower) == ["2"]
    assert await _all_of(follower) == []
    with pytest.raises(Closed):
        log.follow("orders")
    with pytest.raises(RuntimeError, match="entered once"):
        await log.__aenter__()


async def _all_of(follower: Any) -> list[str]:
    return [event.payload async for event in follower]


async def test_bad_cursors_and_names_are_refused_at_once(dsn18: str) -> None:
    log = EventLog(dsn18)
    with pytest.raises(RuntimeError, match="async with"):
        log.follow("orders")
    async with log:
        for after, error in [
            ("garbage", InvalidCursor),
            (str(await log.cursor())[:-1], InvalidCursor),
            (datetime.fromisoformat("2026-01-01T00:00"), ValueError),
            (7, TypeError),
        ]:
            with pytest.raises(error):
                log.follow("orders", after=after)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="at least one channel"):
            log.follow()
        with pytest.raises(InvalidChannel):
            log.follow("")
        with pytest.raises(ValueError, match="followed alone"):
            log.follow(Channel("a"), "b")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="negative"):
            await log.prune(older_than=timedelta(seconds=-1))


async def test_a_follower_goes_on_after_the_log_could_not_be_read(
    dsn18: str, writer: psycopg.AsyncConnection[Any]
) -> None:
    async with EventLog(dsn18) as log, log.follow("orders") as follower:
        await execute(dsn18, "ALTER TABLE pgnotifybus.log RENAME TO hidden")
        step = asyncio.ensure_future(anext(follower))
        await execute(dsn18, "NOTIFY pgnotifybus, ''")
        await writer.execute("SELECT pg_notify('pgnotifybus:pgnotifybus', '*')")
        with pytest.raises(SchemaMissing):
            await step
        await execute(dsn18, "ALTER TABLE pgnotifybus.hidden RENAME TO log")
        await _nothing_but(log, follower, writer)


async def test_an_idle_log_writes_nothing_and_hardly_asks(dsn18: str) -> None:
    async with EventLog(dsn18) as log, log.follow("orders") as follower:
        await until(
            dsn18,
            "SELECT count(*) FILTER (WHERE application_name LIKE '%pacemaker') = 0"
            " AND count(*) FILTER (WHERE application_name LIKE '%maintenance'"
            "                        AND state = 'idle') = 1"
            " FROM pg_stat_activity WHERE datname = current_database()",
        )
        before = log.statistics()
        [(wal,)] = await execute(dsn18, "SELECT pg_current_wal_insert_lsn()::text")
        queries = "SELECT max(query_start)::text FROM pg_stat_activity WHERE application_name LIKE"
        [(asked,)] = await execute(dsn18, f"{queries} 'pgnotifybus %%' AND %s", True)
        await execute(dsn18, "SELECT pg_sleep(3)")
        [(asked_since,)] = await execute(dsn18, f"{queries} 'pgnotifybus %%' AND %s", True)
        [(written,)] = await execute(
            dsn18, "SELECT (pg_current_wal_insert_lsn() - %s::pg_lsn)::text", wal
        )
        assert log.statistics() == before
        assert asked == asked_since
        assert int(written) < 500  # the server itself notes what runs, now and then
        # Over a long time: the tail, the maintenance and the probe of the listening connection.
        assert 1 / here.IDLE + 1 / maintenance.IDLE + 1 / 60 < 1 / 30
        assert follower.cursor is not None
