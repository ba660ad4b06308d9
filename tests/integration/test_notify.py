"""Notifying in the caller's transaction, over every kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import pq
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.string import StrDumper
from sqlalchemy import create_engine, exc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from pgnotifybus import (
    Channel,
    Envelope,
    InvalidChannel,
    LinkLost,
    Notification,
    PayloadTooLarge,
    PgNotifyBus,
    notify,
    notify_sync,
    observe,
)
from pgnotifybus.core.names import SCHEMA
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.testing import RecordingObserver
from support.callers import BEGIN_BY_THEMSELVES, DRIVERS_OWN, KINDS, opened, sqlalchemy_url
from support.notifying import (
    driven,
    foreign,
    listening,
    shared_database,
    spilled,
    subscribed,
    table_locked,
    take,
)
from support.payloads import noise
from support.sql import execute
from support.waiting import SPILLING, kill_waiting, until_waits

LARGE = noise(12_000)
LARGER = noise(50_000, seed=2)

NASTY = """it's "q" %s % {} :p1 ::x \\: $1 $$ ; -- /* žluť """
"""A schema with all that a driver might take for a parameter, a quote or an end."""


@pytest.fixture(scope="module")
def shop(server: EmbeddedServer) -> Iterator[str]:
    """The DSN of a database with the spill table, on each PostgreSQL in turn."""
    yield from _shop(server)


@pytest.fixture(scope="module")
def shop18(pg18: EmbeddedServer) -> Iterator[str]:
    """The same on PostgreSQL 18 only: for what is up to the driver."""
    yield from _shop(pg18)


def _shop(server: EmbeddedServer) -> Iterator[str]:
    with shared_database(server, SCHEMA, NASTY) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE canary (id int PRIMARY KEY)")
        yield dsn


@pytest.fixture
def channel() -> str:
    return f"c {uuid.uuid4()}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


class Abandoned(Exception):
    """Why a test rolls back."""


async def abandoned(
    context: contextlib.AbstractAsyncContextManager[None], *sends: Callable[[], Any]
) -> None:
    """Send within a transaction, or to a savepoint, and roll back."""
    with contextlib.suppress(Abandoned):
        async with context:
            for send in sends:
                await send()
            raise Abandoned


# -- in the caller's transaction ------------------------------------------------------------------


async def test_a_commit_sends_it_in_order_and_nothing_before_does(
    shop: str, kind: str, channel: str
) -> None:
    async with listening(shop, channel) as receiver, opened(kind, shop) as caller:
        async with caller.transaction():
            await caller.notify(channel, "1")
            await caller.notify(channel, LARGE)
            await caller.notify(Channel(channel, dict), {"n": 3})
            await caller.notify(channel)
            await foreign(shop, channel, "while it was open")
        assert await take(receiver, 5) == ["while it was open", "1", LARGE, '{"n":3}', ""]
        assert await spilled(shop, channel) == 1


async def test_a_rollback_sends_nothing_and_leaves_no_row(
    shop: str, kind: str, channel: str
) -> None:
    async with listening(shop, channel) as receiver, opened(kind, shop) as caller:
        await abandoned(
            caller.transaction(),
            lambda: caller.notify(channel, "1"),
            lambda: caller.notify(channel, LARGE),
        )
        await foreign(shop, channel, "sentinel")
        assert await take(receiver, 1) == ["sentinel"]
        assert await spilled(shop, channel) == 0


async def test_a_savepoint_rolled_back_drops_only_its_own(
    shop: str, kind: str, channel: str
) -> None:
    """Trap 23."""
    async with listening(shop, channel) as receiver, opened(kind, shop) as caller:
        async with caller.transaction():
            await caller.notify(channel, "1")
            await abandoned(
                caller.savepoint(),
                lambda: caller.notify(channel, "dropped"),
                lambda: caller.notify(channel, LARGER),
            )
            async with caller.savepoint():
                await caller.notify(channel, LARGE)
            await caller.notify(channel, "4")
        assert await take(receiver, 3) == ["1", LARGE, "4"]
        assert await spilled(shop, channel) == 1


async def test_in_autocommit_mode_it_is_sent_at_once(shop: str, kind: str, channel: str) -> None:
    async with (
        listening(shop, channel) as receiver,
        opened(kind, shop, autocommit=True) as caller,
    ):
        await caller.notify(channel, "1")
        await caller.notify(channel, LARGE)
        assert await take(receiver, 2) == ["1", LARGE]


@pytest.mark.parametrize("kind", BEGIN_BY_THEMSELVES)
async def test_a_connection_that_begins_by_itself_sends_when_it_is_committed(
    shop: str, kind: str, channel: str
) -> None:
    async with listening(shop, channel) as receiver, opened(kind, shop) as caller:
        await caller.notify(channel, "dropped")
        await caller.notify(channel, LARGER)
        await caller.rollback()
        await caller.notify(channel, "1")
        await caller.notify(channel, LARGE)
        await foreign(shop, channel, "while it was open")
        await caller.commit()
        assert await take(receiver, 3) == ["while it was open", "1", LARGE]


@pytest.mark.parametrize("kind", DRIVERS_OWN)
async def test_a_transaction_begun_by_hand_is_one(shop: str, kind: str, channel: str) -> None:
    """BEGIN as a statement, which the driver has not been told about."""
    async with (
        listening(shop, channel) as receiver,
        opened(kind, shop, autocommit=True) as caller,
    ):
        for end in ("ROLLBACK", "COMMIT"):
            await caller.fetch("BEGIN")
            await caller.notify(channel, end)
            await caller.notify(channel, LARGE)
            await foreign(shop, channel, f"before {end}")
            await caller.fetch(end)
        got = await take(receiver, 4)
        assert got == ["before ROLLBACK", "before COMMIT", "COMMIT", LARGE]


async def test_the_same_twice_in_a_transaction_arrives_once_unless_it_is_spilled(
    shop: str, channel: str
) -> None:
    """Trap 23: that is PostgreSQL's doing. Rows of the spill table have each an id of their own."""
    async with listening(shop, channel) as receiver, opened("psycopg", shop) as caller:
        async with caller.transaction():
            for payload in ("same", "same", "x" * 9_000, "x" * 9_000, LARGE, LARGE):
                await caller.notify(channel, payload)
            async with caller.savepoint():
                await caller.notify(channel, "same")
            await caller.notify(channel, "end")
        assert await take(receiver, 5) == ["same", "x" * 9_000, LARGE, LARGE, "end"]


async def test_a_session_joined_into_a_transaction_sends_when_that_commits(
    shop18: str, channel: str
) -> None:
    """As test suites do it: what the session commits is a savepoint of somebody else's."""
    engine = create_async_engine(sqlalchemy_url(shop18, "asyncpg"), poolclass=NullPool)
    async with listening(shop18, channel) as receiver:
        for end in ("rolled back", "committed"):
            async with engine.connect() as connection:
                outer = await connection.begin()
                async with AsyncSession(
                    connection, join_transaction_mode="create_savepoint"
                ) as session:
                    await notify(session, channel, end)
                    await notify(session, channel, LARGE)
                    await session.commit()
                    await notify(session, channel, "not committed")
                await foreign(shop18, channel, f"before it is {end}")
                await (outer.commit() if end == "committed" else outer.rollback())
        assert await take(receiver, 4) == [
            "before it is rolled back",
            "before it is committed",
            "committed",
            LARGE,
        ]
    await engine.dispose()


# -- over a connection of the bus -----------------------------------------------------------------


@pytest.mark.parametrize("source", ["psycopg", "asyncpg", "asyncpg-pool"])
async def test_the_bus_sends_over_a_connection_that_is_not_the_listeners(
    shop18: str, channel: str, source: str
) -> None:
    """So that a commit that waits delays no LISTEN; and it is committed when it returns."""
    recorder = RecordingObserver()
    async with (
        driven(source, shop18) as made,
        PgNotifyBus(made, [channel], observer=recorder) as bus,
    ):
        events = subscribed(bus, channel).events()
        await bus.notify(channel, LARGE)
        assert await spilled(shop18, channel) == 1
        async with table_locked(shop18):
            sending = asyncio.create_task(bus.notify(channel, LARGER))
            await until_waits(shop18, SPILLING)
            dynamic = await bus.listen(f"{channel} 2")
            await foreign(shop18, f"{channel} 2", "served")
            assert await take(dynamic, 1) == ["served"]
            assert not sending.done()
        await sending
        up = await recorder.wait_for(observe.LinkUp)
        async with asyncio.timeout(20):
            for payload in (LARGE, LARGER):
                event = await anext(events)
                assert isinstance(event, Notification)
                assert event.payload == payload
                assert event.pid != up.pid


@pytest.mark.parametrize("source", ["psycopg", "asyncpg", "asyncpg-pool"])
async def test_a_bus_whose_sending_is_killed_says_that_it_does_not_know(
    shop18: str, channel: str, source: str
) -> None:
    """`LinkLost`, whatever the driver; and the next one goes over a new connection."""
    async with driven(source, shop18) as made, PgNotifyBus(made, [channel]) as bus:
        receiver = subscribed(bus, channel)
        async with table_locked(shop18):
            sending = asyncio.create_task(bus.notify(channel, LARGE))
            await kill_waiting(shop18, SPILLING)
            with pytest.raises(LinkLost, match="whether the notification was sent is not known"):
                await sending
        await bus.notify(channel, "next")
        assert await take(receiver, 1) == ["next"]
        assert bus.health().generation == 1


async def test_a_bus_whose_transactions_are_read_only_sends_what_needs_no_table(
    shop18: str, channel: str
) -> None:
    read_only = f"{shop18}?options=-cdefault_transaction_read_only%3Don"
    async with PgNotifyBus(read_only, [channel]) as bus:
        receiver = subscribed(bus, channel)
        with pytest.raises(PayloadTooLarge, match="read-only"):
            await bus.notify(channel, LARGE)
        await bus.notify(channel, "goes all the same")
        assert await take(receiver, 1) == ["goes all the same"]


# -- what cannot be sent --------------------------------------------------------------------------

BAD_CHANNELS = ["", "a" * 64, "é" * 32, "nul\0", "\ud800", 42, None, b"bytes"]
BAD_PAYLOADS: list[tuple[Any, type[Exception]]] = [
    ("a\0b", ValueError),
    ("\ud800", ValueError),
    ("x" * 9_000 + "\udfff", ValueError),
    (b"bytes", TypeError),
    (None, TypeError),
    (42, TypeError),
    ("x" * (16 * 1024 * 1024 + 1), PayloadTooLarge),
]


async def test_bad_input_is_refused_before_anything_reaches_the_server(
    shop18: str, kind: str, channel: str
) -> None:
    """Trap 22: the server sees no statement, so the transaction goes on."""
    async with listening(shop18, channel) as receiver, opened(kind, shop18) as caller:
        async with caller.transaction():
            await caller.notify(channel, "before")
            ((pid,),) = await caller.fetch("SELECT pg_backend_pid()")
            question = "SELECT query, state_change FROM pg_stat_activity WHERE pid = %s"
            last_heard = await execute(shop18, question, pid)
            for name in BAD_CHANNELS:
                with pytest.raises(InvalidChannel):
                    await caller.notify(name, "x")
            for payload, error in BAD_PAYLOADS:
                with pytest.raises(error):
                    await caller.notify(channel, payload)
            with pytest.raises(TypeError, match="takes int"):
                await caller.notify(Channel(channel, int), "one")
            assert await execute(shop18, question, pid) == last_heard
            await caller.notify(channel, "after")
        assert await take(receiver, 2) == ["before", "after"]


async def test_too_large_without_the_table_leaves_the_transaction_usable(
    shop18: str, kind: str, channel: str
) -> None:
    async with listening(shop18, channel) as receiver, opened(kind, shop18) as caller:
        async with caller.transaction():
            await caller.notify(channel, "before")
            with pytest.raises(PayloadTooLarge, match="schema install") as refused:
                await caller.notify(channel, LARGE, schema="not installed")
            assert (refused.value.size, refused.value.limit) == (12_000, 7_999)
            assert "12000 bytes" in str(refused.value)
            assert "7999 is the limit" in str(refused.value)
            with pytest.raises(
                PayloadTooLarge, match="its envelope takes the other 12;"
            ) as refused:
                await caller.notify(
                    channel, noise(7_999), envelope=Envelope("me"), schema="not installed"
                )
            assert (refused.value.size, refused.value.limit) == (7_999, 7_987)
            assert await caller.fetch("SELECT 1") == [(1,)]
            await caller.notify(channel, "x" * 9_000, schema="not installed")
        assert await take(receiver, 2) == ["before", "x" * 9_000], "compressed, it fits"


@pytest.mark.parametrize("kind", DRIVERS_OWN)
async def test_too_large_in_a_read_only_transaction_leaves_it_usable(
    shop: str, kind: str, channel: str
) -> None:
    """NOTIFY is allowed there, and INSERT would abort it."""
    async with listening(shop, channel) as receiver, opened(kind, shop) as caller:
        async with caller.transaction():
            await caller.fetch("SET TRANSACTION READ ONLY")
            await caller.notify(channel, "before")
            with pytest.raises(PayloadTooLarge, match="read-only") as refused:
                await caller.notify(channel, LARGE)
            assert (refused.value.size, refused.value.limit) == (12_000, 7_999)
            await caller.notify(channel, "after")
        assert await take(receiver, 2) == ["before", "after"]


@pytest.mark.parametrize("kind", DRIVERS_OWN)
async def test_too_large_for_a_role_without_the_right_names_the_grants_that_help(
    shop: str, kind: str, channel: str
) -> None:
    """Both of them, and no other; without them, the transaction is still usable."""
    name = '"' + NASTY.replace('"', '""') + '"'
    grants = [f"GRANT USAGE ON SCHEMA {name}", f"GRANT INSERT ON {name}.payloads"]
    visitor = f"visitor_{uuid.uuid4().hex[:12]}"
    await execute(shop, f"CREATE ROLE {visitor}")
    async with (
        listening(shop, channel, schema=NASTY) as receiver,
        opened(kind, shop, autocommit=True) as caller,
    ):
        for missing in (grants, grants[:1], grants[1:]):
            for grant in grants:
                if grant not in missing:
                    await execute(shop, f"{grant} TO {visitor}")
            await caller.fetch("BEGIN")
            await caller.fetch(f"SET LOCAL ROLE {visitor}")
            with pytest.raises(PayloadTooLarge) as refused:
                await caller.notify(channel, LARGE, schema=NASTY)
            assert all(grant in str(refused.value) for grant in grants)
            await caller.notify(channel, f"usable without {len(missing)}")
            await caller.fetch("COMMIT")
            await execute(shop, f"DROP OWNED BY {visitor}")
        for grant in grants:
            await execute(shop, f"{grant} TO {visitor}")
        await caller.fetch("BEGIN")
        await caller.fetch(f"SET LOCAL ROLE {visitor}")
        await caller.notify(channel, LARGE, schema=NASTY)
        await caller.fetch("COMMIT")
        assert await take(receiver, 4) == [
            "usable without 2",
            "usable without 1",
            "usable without 1",
            LARGE,
        ]
    await execute(shop, f"DROP OWNED BY {visitor}; DROP ROLE {visitor}")


async def test_what_the_driver_raises_comes_through_as_it_is(
    shop18: str, kind: str, channel: str
) -> None:
    """An aborted transaction and a closed connection are errors, never silence."""
    drivers = (
        psycopg.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        exc.SQLAlchemyError,
    )
    async with listening(shop18, channel) as receiver:
        async with opened(kind, shop18) as caller:

            async def in_an_aborted_transaction() -> None:
                async with caller.transaction():
                    with pytest.raises(drivers):
                        await caller.fetch("SELECT 1 / 0")
                    await caller.notify(channel, "to nobody")

            with pytest.raises(drivers):
                await in_an_aborted_transaction()
            ((pid,),) = await caller.fetch("SELECT pg_backend_pid()")
            await execute(shop18, "SELECT pg_terminate_backend(%s)", pid)
            with pytest.raises(drivers):
                await caller.notify(channel, "to nobody")
        await foreign(shop18, channel, "sentinel")
        assert await take(receiver, 1) == ["sentinel"]


# -- names ----------------------------------------------------------------------------------------


async def test_a_schema_of_any_name_holds_the_payloads(
    shop18: str, kind: str, channel: str
) -> None:
    async with (
        listening(shop18, channel, schema=NASTY) as receiver,
        opened(kind, shop18) as caller,
    ):
        async with caller.transaction():
            await caller.notify(channel, LARGE, schema=NASTY)
        assert await take(receiver, 1) == [LARGE]
        assert await spilled(shop18, channel, schema=NASTY) == 1
        assert await spilled(shop18, channel) == 0


FRAGMENTS = [
    *"\"'\\;:%$?{}()-/*`^& \n\t\r\x01\x02\x7fžł€😀aZ",
    "''",
    '""',
    "DROP TABLE canary",
    "); DROP TABLE canary; --",
    "'); DROP TABLE canary; --",
    '"; DROP TABLE canary; --',
    "$1",
    "$$",
    "%s",
    "%(p1)s",
    "%%",
    ":p1",
    "\\:p2",
    "::text",
    "--",
    "E'",
    "U&'",
]
NAMES = (
    st.lists(st.sampled_from(FRAGMENTS) | st.characters(codec="utf-8"), min_size=1, max_size=12)
    .map("".join)
    .filter(lambda name: "\0" not in name and 0 < len(name.encode()) <= 63)
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=NAMES, kind=st.sampled_from(KINDS))
async def test_no_channel_name_is_taken_for_sql(shop: str, name: str, kind: str) -> None:
    """Whoever sends and whoever listens: exactly that channel gets it, and nothing else happens."""
    similar = {name.lower(), name.upper(), name.strip(), f"{name}'", f'"{name}"', "canary"}
    others = [each for each in similar - {name, ""} if len(each.encode()) <= 63]
    async with PgNotifyBus(shop, [name]) as bus, opened(kind, shop) as caller:
        receiver = subscribed(bus, name)
        bystanders = [await bus.listen(other) for other in others]
        async with caller.transaction():
            await caller.notify(name, name)
            await caller.notify(name, LARGE)
        await bus.notify(name, "from the bus")
        assert await take(receiver, 3) == [name, LARGE, "from the bus"]
        for other, bystander in zip(others, bystanders, strict=True):
            await foreign(shop, other, "sentinel")
            assert await take(bystander, 1) == ["sentinel"]
    assert await execute(shop, "SELECT count(*) FROM canary") == [(0,)]


# -- the wrong kind -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_of_the_other_sort_is_told_the_function_for_it(
    shop18: str, kind: str
) -> None:
    async with opened(kind, shop18) as caller:
        if caller.blocks:
            with pytest.raises(TypeError, match=r"use notify_sync$"):
                await notify(caller.connection, "c")
        else:
            with pytest.raises(TypeError, match=r"await notify$"):
                notify_sync(caller.connection, "c")


async def test_what_is_no_connection_is_told_what_one_is(shop18: str) -> None:
    url = sqlalchemy_url(shop18, "psycopg")
    engine, async_engine = create_engine(url), create_async_engine(url)
    async with (
        await psycopg.AsyncConnection.connect(shop18) as connection,
        connection.cursor() as cursor,
        connection.cursor("named") as server_cursor,
        asyncpg.create_pool(shop18, min_size=0, max_size=1) as pool,
    ):
        for wrong in (
            None,
            42,
            shop18,
            object(),
            engine,
            async_engine,
            sessionmaker(engine),
            async_sessionmaker(async_engine),
            cursor,
            server_cursor,
            pool,
            psycopg_pool.AsyncConnectionPool(shop18, open=False),
            psycopg_pool.ConnectionPool(shop18, open=False),
            PgNotifyBus(shop18, []),
            type(connection),
        ):
            name = type(wrong).__name__
            with pytest.raises(TypeError, match=f"an asyncpg connection, a psycopg Async.*{name}$"):
                await notify(wrong, "c")
            with pytest.raises(TypeError, match=f"a psycopg Connection, or a SQLAl.*{name}$"):
                notify_sync(wrong, "c")
    engine.dispose()
    await async_engine.dispose()


async def test_a_class_of_the_callers_own_is_taken_for_what_it_is(
    shop18: str, channel: str
) -> None:
    class Tracing(psycopg.AsyncConnection[Any]):
        pass

    # By a name of the blocking sort, which says nothing about it.
    class Connection(AsyncSession):
        pass

    class Recording(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
        pass

    engine = create_async_engine(sqlalchemy_url(shop18, "asyncpg"), poolclass=NullPool)
    async with listening(shop18, channel) as receiver:
        async with await Tracing.connect(shop18) as tracing:
            await notify(tracing, channel, "1")
        async with Connection(engine) as unit, unit.begin():
            await notify(unit, channel, "2")
        recording = await asyncpg.connect(shop18, connection_class=Recording)
        await notify(recording, channel, "3")
        await recording.close()
        assert await take(receiver, 3) == ["1", "2", "3"]


# -- settings of the caller's ---------------------------------------------------------------------


class Shouting(StrDumper):
    """A way to write text that is the application's own."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.upper())


class Quiet(psycopg.adapt.Loader):
    """A way to read text that is the application's own."""

    def load(self, data: Any) -> object:
        return bytes(data)


def own_adapters(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    connection.adapters.register_dumper(str, Shouting)
    connection.adapters.register_loader("text", Quiet)


class BinaryCursor(psycopg.Cursor[Any]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format = pq.Format.BINARY


class AsyncBinaryCursor(psycopg.AsyncCursor[Any]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.format = pq.Format.BINARY


PSYCOPG_OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"row_factory": dict_row}, {"row_factory": dict_row}),
    ({"row_factory": namedtuple_row}, {"row_factory": namedtuple_row}),
    ({"cursor_factory": psycopg.AsyncClientCursor}, {"cursor_factory": psycopg.ClientCursor}),
    ({"cursor_factory": psycopg.AsyncRawCursor}, {"cursor_factory": psycopg.RawCursor}),
    ({"cursor_factory": AsyncBinaryCursor}, {"cursor_factory": BinaryCursor}),
    ({"prepare_threshold": 0}, {"prepare_threshold": 0}),
    ({"prepare_threshold": None}, {"prepare_threshold": None}),
    ({}, {}),
]


@pytest.mark.parametrize("options", [pytest.param(a, id=str(list(a))) for a, _ in PSYCOPG_OPTIONS])
@pytest.mark.parametrize("pipeline", [False, True])
async def test_whatever_a_psycopg_connection_is_told(
    shop18: str, channel: str, options: dict[str, Any], pipeline: bool
) -> None:
    async with (
        listening(shop18, channel) as receiver,
        await psycopg.AsyncConnection.connect(shop18, **options) as connection,
    ):
        if not options:
            own_adapters(connection)
        async with contextlib.AsyncExitStack() as stack:
            if pipeline:
                await stack.enter_async_context(connection.pipeline())
            async with connection.transaction():
                await notify(connection, channel, "one")
                await notify(connection, channel, LARGE)
                with pytest.raises(PayloadTooLarge, match="schema install"):
                    await notify(connection, channel, LARGE, schema="not installed")
                await abandoned(
                    connection.transaction(),  # type: ignore[arg-type]  # yields one, of no use here
                    lambda: notify(connection, channel, LARGER),
                )
        assert await take(receiver, 2) == ["one", LARGE]


@pytest.mark.parametrize("options", [pytest.param(b, id=str(list(b))) for _, b in PSYCOPG_OPTIONS])
@pytest.mark.parametrize("pipeline", [False, True])
async def test_whatever_a_blocking_psycopg_connection_is_told(
    shop18: str, channel: str, options: dict[str, Any], pipeline: bool
) -> None:
    async with listening(shop18, channel) as receiver:
        with psycopg.connect(shop18, **options) as connection:
            if not options:
                own_adapters(connection)
            with contextlib.ExitStack() as stack:
                if pipeline:
                    stack.enter_context(connection.pipeline())
                with connection.transaction():
                    notify_sync(connection, channel, "one")
                    notify_sync(connection, channel, LARGE)
                    with pytest.raises(PayloadTooLarge, match="schema install"):
                        notify_sync(connection, channel, LARGE, schema="not installed")
                    with connection.transaction(force_rollback=True):
                        notify_sync(connection, channel, LARGER)
        assert await take(receiver, 2) == ["one", LARGE]


async def test_a_failure_in_the_same_pipeline_sends_nothing(shop18: str, channel: str) -> None:
    async with (
        listening(shop18, channel) as receiver,
        await psycopg.AsyncConnection.connect(shop18) as connection,
    ):

        async def failing() -> None:
            async with connection.pipeline(), connection.transaction():
                await notify(connection, channel, "one")
                await connection.execute("SELECT 1 / 0")

        with pytest.raises(psycopg.errors.DivisionByZero):
            await failing()
        await foreign(shop18, channel, "sentinel")
        assert await take(receiver, 1) == ["sentinel"]


async def test_between_the_rows_of_a_cursor_of_the_callers(shop18: str, channel: str) -> None:
    """It disturbs neither a cursor on the server, nor asyncpg's."""
    series = "SELECT i FROM generate_series(1, 4) AS i"
    got = []
    async with listening(shop18, channel) as receiver:
        async with (
            await psycopg.AsyncConnection.connect(shop18) as connection,
            connection.cursor("named") as cursor,
        ):
            cursor.itersize = 1
            await cursor.execute(series)
            async for (number,) in cursor:
                await notify(connection, channel, f"{number}{LARGE}")
                got.append(number)
        connection = await asyncpg.connect(shop18)
        async with connection.transaction():
            async for record in connection.cursor(series, prefetch=2):
                await notify(connection, channel, f"{record['i']}{LARGER}")
                got.append(record["i"])
        await connection.close()
        assert got == [1, 2, 3, 4] * 2
        assert await take(receiver, 8) == [
            f"{number}{payload}" for payload in (LARGE, LARGER) for number in range(1, 5)
        ]


class OwnRecord(asyncpg.Record):  # type: ignore[misc]  # asyncpg has no types
    pass


@pytest.mark.parametrize(
    "options",
    [{"statement_cache_size": 0}, {"record_class": OwnRecord}, {}],
    ids=["no cache", "records", "codecs"],
)
async def test_whatever_an_asyncpg_connection_is_told(
    shop18: str, channel: str, options: dict[str, Any]
) -> None:
    async with listening(shop18, channel) as receiver:
        connection = await asyncpg.connect(shop18, **options)
        if not options:
            for name in ("text", "varchar", "bpchar", "json", "jsonb"):
                await connection.set_type_codec(
                    name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
                )
        async with connection.transaction():
            await notify(connection, channel, "one")
            await notify(connection, channel, LARGE)
            with pytest.raises(PayloadTooLarge, match="schema install"):
                await notify(connection, channel, LARGE, schema="not installed")
        await connection.close()
        assert await take(receiver, 2) == ["one", LARGE]


SQLALCHEMY_OPTIONS: list[dict[str, Any]] = [
    {"stream_results": True},
    {"yield_per": 1},
    {"stream_results": True, "max_row_buffer": 1},
    {"isolation_level": "SERIALIZABLE"},
    {"logging_token": "shop18"},
    {"schema_translate_map": {None: "elsewhere", "pgnotifybus": "elsewhere"}},
]


@pytest.mark.parametrize("options", [pytest.param(o, id=str(list(o))) for o in SQLALCHEMY_OPTIONS])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sync"])
async def test_whatever_sqlalchemy_is_told(
    shop18: str, channel: str, options: dict[str, Any], driver: str
) -> None:
    """A server-side cursor, for one, would refuse the INSERT and abort the transaction."""
    async with listening(shop18, channel) as receiver:
        if driver == "sync":
            engine = create_engine(
                sqlalchemy_url(shop18, "psycopg"), poolclass=NullPool, execution_options=options
            )
            with Session(engine) as session, session.begin():
                notify_sync(session, channel, "one")
                notify_sync(session.connection(), channel, LARGE)
                with pytest.raises(PayloadTooLarge, match="schema install"):
                    notify_sync(session, channel, LARGE, schema="not installed")
            engine.dispose()
        else:
            async_engine = create_async_engine(
                sqlalchemy_url(shop18, driver), poolclass=NullPool, execution_options=options
            )
            async with AsyncSession(async_engine) as session_, session_.begin():
                await notify(session_, channel, "one")
                await notify(await session_.connection(), channel, LARGE)
                with pytest.raises(PayloadTooLarge, match="schema install"):
                    await notify(session_, channel, LARGE, schema="not installed")
            await async_engine.dispose()
        assert await take(receiver, 2) == ["one", LARGE]


async def test_an_engine_that_echoes(
    shop18: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(sqlalchemy_url(shop18, "psycopg"), poolclass=NullPool, echo=True)
    async with listening(shop18, channel) as receiver:
        with Session(engine) as session, session.begin():
            notify_sync(session, channel, LARGE)
        assert await take(receiver, 1) == [LARGE]
    engine.dispose()
    assert "pg_notify" in caplog.text
    assert LARGE not in caplog.text


class Base(DeclarativeBase):
    pass


class Canary(Base):
    __tablename__ = "canary"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


async def test_objects_that_are_pending_are_flushed_when_the_session_likes(
    shop18: str, channel: str
) -> None:
    """Notifying flushes nothing, which could fail; they share one fate in the end."""
    engine = create_async_engine(sqlalchemy_url(shop18, "asyncpg"), poolclass=NullPool)
    async with listening(shop18, channel) as receiver:
        async with AsyncSession(engine) as session:
            async with session.begin():
                session.add(Canary(id=1))
                await notify(session, channel, LARGE)
                assert len(session.new) == 1
            assert await take(receiver, 1) == [LARGE]
            transaction = await session.begin()
            session.add(Canary(id=1))
            await notify(session, channel, LARGE)
            with pytest.raises(exc.IntegrityError):
                await transaction.commit()
            await transaction.rollback()
            await foreign(shop18, channel, "sentinel")
            assert await take(receiver, 1) == ["sentinel"]
    assert await execute(shop18, "DELETE FROM canary RETURNING id") == [(1,)]
    await engine.dispose()


async def test_two_phase_commit_is_refused_by_postgresql_in_the_drivers_words(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    """Trap 23: PREPARE TRANSACTION after NOTIFY. The error is the driver's, and nothing is sent."""
    dsn = private_server(18, {"max_prepared_transactions": "4"}).dsn
    async with listening(dsn, "c") as receiver:
        one = await psycopg.AsyncConnection.connect(dsn)
        await one.tpc_begin("one")
        await notify(one, "c", "1")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="executed LISTEN, UNLISTEN"):
            await one.tpc_prepare()
        await one.close()
        two = await asyncpg.connect(dsn)
        await two.execute("BEGIN")
        await notify(two, "c", "2")
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="executed LISTEN, UNLISTEN"):
            await two.execute("PREPARE TRANSACTION 'two'")
        await two.close()
        engine = create_engine(sqlalchemy_url(dsn, "psycopg"), poolclass=NullPool)
        with Session(engine, twophase=True) as session:
            notify_sync(session, "c", "3")
            # SQLAlchemy's attempt to roll back what was not prepared hides why; before 2.1 that
            # attempt itself was refused by the session.
            with pytest.raises((exc.DBAPIError, exc.IllegalStateChangeError)):
                session.commit()
        engine.dispose()
        await foreign(dsn, "c", "sentinel")
        assert await take(receiver, 1) == ["sentinel"]


def test_another_database_is_refused_in_clear_words() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(TypeError, match="sqlite: only PostgreSQL"):
        notify_sync(connection, "c", "1")
    engine.dispose()
