"""The publisher against real PostgreSQL: batches, faults, and an account that adds up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus import (
    Channel,
    Closed,
    Gap,
    LinkError,
    Notification,
    PgNotifyBus,
    PublishFailed,
    observe,
    schema,
)
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import FaultProxy, RecordingObserver
from support.payloads import noise
from support.sql import execute

PrivateServer = Callable[..., EmbeddedServer]

LARGE = noise(12_000)


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


async def kill_publishers(dsn: str) -> int:
    rows = await execute(
        dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'pgnotifybus publisher' AND datname = current_database()",
    )
    return len(rows)


# -- when nothing goes wrong ----------------------------------------------------------------------


async def test_many_tasks_few_commits_every_message_in_its_order(
    database: str, driver: Driver
) -> None:
    async with PgNotifyBus(database, ["a", "b"], driver=driver, capacity=5_000) as bus:
        receivers = {name: bus.subscribe(name) for name in ("a", "b")}
        async with bus.publisher() as publisher:

            async def work(task: int) -> None:
                for n in range(100):
                    await publisher.publish("ab"[n % 2], f"{task} {n}")

            await asyncio.gather(*(work(task) for task in range(20)))
            await publisher.flush()
            statistics = publisher.statistics()
        assert statistics.sent == 2_000
        assert statistics.commits < 20
        for receiver in receivers.values():
            assert receiver is not None
            got: list[str] = []
            async with asyncio.timeout(10):
                while len(got) < 1_000:
                    got += await receiver.recv_many()
            for task in range(20):
                own = [int(each.split()[1]) for each in got if each.split()[0] == str(task)]
                assert len(own) == 50
                assert all(one < other for one, other in itertools.pairwise(own))


async def test_what_postgresql_would_collapse_arrives_each_time(database18: str) -> None:
    """Trap 23, unless it is asked for."""
    async with PgNotifyBus(database18, ["jobs"]) as bus:
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        async with bus.publisher() as publisher:
            for payload in ("", "1", "", "", "2"):
                await publisher.publish("jobs", payload)
        async with asyncio.timeout(10):
            assert [await receiver.recv() for _ in range(5)] == ["", "1", "", "", "2"]
        async with bus.publisher(collapse_duplicates=True) as publisher:
            for payload in ("", "1", "", "", "2"):
                await publisher.publish("jobs", payload)
        async with asyncio.timeout(10):
            assert [await receiver.recv() for _ in range(3)] == ["", "1", "2"]
        assert publisher.statistics().commits == 1


async def test_payloads_of_any_kind_and_size_in_one_batch(database: str, driver: Driver) -> None:
    await schema.install(database)
    nasty = ['{"a", "b\\"}', "\\", '"', "'; --", "\x01", "NULL", "{}", "日本\n\t", "", " "]
    payloads = [*nasty, LARGE, "x" * 50_000, *(f"after {each}" for each in nasty), noise(300_000)]
    async with PgNotifyBus(database, [Channel("a")], driver=driver) as bus:
        receiver = bus.subscribe("a")
        assert receiver is not None
        async with bus.publisher(envelope=bus.envelope(timed=True)) as publisher:
            for payload in payloads:
                await publisher.publish("a", payload)
        assert publisher.statistics().commits == 1
        events = receiver.events()
        async with asyncio.timeout(10):
            got = [await anext(events) for _ in payloads]
        assert [each.payload for each in got if isinstance(each, Notification)] == payloads
        assert {each.origin for each in got if isinstance(each, Notification)} == {bus.origin}


async def test_typed_values_and_keys(database18: str) -> None:
    prices: Channel[dict[str, int]] = Channel("prices", dict[str, int])
    async with PgNotifyBus(database18, [prices]) as bus:
        receiver = bus.subscribe(prices)
        assert receiver is not None
        async with bus.publisher(linger=60) as publisher:
            for n in range(100):
                await publisher.publish(prices, {"ABC": n}, key="ABC")
            await publisher.publish(prices, {"XYZ": 1}, key="XYZ")
            with pytest.raises(TypeError, match="takes dict"):
                await publisher.publish(prices, "text")  # type: ignore[misc]
        async with asyncio.timeout(10):
            assert [await receiver.recv() for _ in range(2)] == [{"ABC": 99}, {"XYZ": 1}]
        assert publisher.statistics().replaced == 99


@pytest.mark.parametrize(
    ("payload", "durable", "waits"),
    [(LARGE, True, True), (LARGE, False, False), ("1", True, False), ("1", False, False)],
)
async def test_what_a_commit_waits_for(
    private_server: PrivateServer, payload: str, durable: bool, waits: bool
) -> None:
    """For the disk only if it has written a row, and unless it is ephemeral.

    A transaction that has notified and nothing else has nothing that a crash could lose: PostgreSQL
    does not wait for its commit record (RecordTransactionCommit of xact.c).
    """
    server = private_server(settings={"wal_writer_delay": "10s"})
    await schema.install(server.dsn)
    async with PgNotifyBus(server.dsn, []) as bus, bus.publisher(durable=durable) as publisher:
        await publisher.publish("jobs", "connects")
        await publisher.flush()
        [(before,)] = await execute(server.dsn, "SELECT pg_current_wal_insert_lsn()")
        await publisher.publish("jobs", payload)
        await publisher.flush()
        flushed = "SELECT pg_current_wal_flush_lsn() > %s::pg_lsn"
        assert await execute(server.dsn, flushed, before) == [(waits,)]


@contextlib.asynccontextmanager
async def source_of(kind: str, dsn: str) -> AsyncIterator[object]:
    """Every kind of source beside a DSN."""
    match kind:
        case "asyncpg pool":
            async with asyncpg.create_pool(dsn, min_size=0, max_size=2) as pool:
                yield pool
        case "psycopg pool":
            async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1) as own:
                yield own
        case "factory":
            yield lambda: asyncpg.connect(dsn)
        case _:
            url = dsn.replace("postgresql://", f"postgresql+{kind.removesuffix(' engine')}://")
            engine = create_async_engine(url)
            yield engine
            await engine.dispose()


@pytest.mark.parametrize(
    "kind", ["asyncpg pool", "psycopg pool", "factory", "asyncpg engine", "psycopg engine"]
)
async def test_over_other_sources(database18: str, kind: str) -> None:
    await schema.install(database18)
    async with (
        source_of(kind, database18) as source,
        PgNotifyBus(source, ["jobs"]) as bus,
    ):
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        async with bus.publisher() as publisher:
            await asyncio.gather(*(publisher.publish("jobs", str(n)) for n in range(100)))
            await publisher.publish("jobs", LARGE)
            await bus.notify("jobs", "beside it")
        async with asyncio.timeout(10):
            got = [await receiver.recv() for _ in range(102)]
        got.remove("beside it")
        assert got == [*(str(n) for n in range(100)), LARGE]


async def test_without_the_table_only_what_is_too_large_is_not_sent(database: str) -> None:
    async with PgNotifyBus(database, ["jobs"]) as bus:
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        async with bus.publisher() as publisher:
            for payload in ("1", LARGE, "2"):
                await publisher.publish("jobs", payload)
            with pytest.raises(PublishFailed, match=r"12000 bytes.*schema install") as failed:
                await publisher.flush()
            assert failed.value.unsent == [("jobs", LARGE)]
            assert LARGE[:50] not in str(failed.value)
        async with asyncio.timeout(10):
            assert [await receiver.recv() for _ in range(2)] == ["1", "2"]


# -- the end of the bus ---------------------------------------------------------------------------


async def test_the_end_of_the_bus_sends_what_waits(database18: str) -> None:
    async with PgNotifyBus(database18, ["jobs"]) as other:
        receiver = other.subscribe("jobs")
        assert receiver is not None
        bus = PgNotifyBus(database18, [])
        await bus.__aenter__()
        async with bus.publisher(linger=60) as publisher:
            await publisher.publish("jobs", "1")
            await bus.__aexit__(None, None, None)
            async with asyncio.timeout(10):
                assert await receiver.recv() == "1"
            with pytest.raises(Closed, match="the bus has ended"):
                await publisher.publish("jobs", "2")
        with pytest.raises(Closed, match="the bus has ended"):
            await bus.publisher().__aenter__()


async def test_a_bus_that_does_not_run_has_no_publisher(database18: str) -> None:
    bus = PgNotifyBus(database18, [])
    with pytest.raises(RuntimeError, match="not running"):
        await bus.publisher().__aenter__()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"capacity": 1.5}, "capacity"),
        ({"linger": -1}, "linger"),
        ({"drain_timeout": float("nan")}, "drain_timeout"),
        ({"delivery": "exactly-once"}, "delivery"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PgNotifyBus("postgresql://", []).publisher(**settings)  # type: ignore[arg-type]


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
async def test_killed_connections_lose_and_repeat_nothing(
    database18: str, driver: Driver, durable: bool
) -> None:
    """The accounting invariant: what was accepted is what was received, each once, in order."""
    seed = 20_261_126
    chance = random.Random(seed)
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18, ["jobs"], driver=driver, capacity=20_000, observer=recorder
    ) as bus:
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        async with bus.publisher(
            durable=durable, delivery="at-most-once", batch_size=200, linger=0.001, capacity=1_000
        ) as publisher:

            async def kill() -> None:
                killed = 0
                for attempt in itertools.count():
                    await publisher.publish("jobs", f"attempt {attempt}")
                    killed += await kill_publishers(database18)
                    if killed == 15:
                        return

            async def publish() -> None:
                for n in range(5_000):
                    await publisher.publish("jobs", str(n))
                    if not chance.randrange(20):
                        await asyncio.sleep(0)

            await asyncio.gather(kill(), publish())
            await publisher.flush()
            statistics = publisher.statistics()
        assert statistics.accepted == statistics.sent
        assert recorder.of(observe.PublishDelayed), "nothing was hit"
        got: list[str] = []
        async with asyncio.timeout(20):
            while len(got) < statistics.accepted:
                got += await receiver.recv_many()
        assert len(got) == len(set(got)) == statistics.accepted
        assert [int(each) for each in got if each.isdecimal()] == list(range(5_000))


class HeldCommit:
    """Commits that write a large payload wait until they are let go."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def __aenter__(self) -> HeldCommit:
        await schema.install(self._dsn)
        await execute(
            self._dsn,
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END'",
        )
        await execute(
            self._dsn,
            "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON pgnotifybus.payloads"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()",
        )
        self._holder = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        await self._holder.execute("SELECT pg_advisory_lock(42)")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._holder.close()

    async def wait_held(self) -> None:
        """Wait until a commit waits."""
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with asyncio.timeout(20):
            while not await (await self._holder.execute(waiting.encode())).fetchone():
                await self._holder.execute("SELECT pg_sleep(0.01)")

    async def let_go(self) -> None:
        await self._holder.execute("SELECT pg_advisory_unlock(42)")


@contextlib.asynccontextmanager
async def two_buses(dsn: str, driver: Driver) -> AsyncIterator[tuple[PgNotifyBus, FaultProxy]]:
    """One that listens, as `.other` of the other, which publishes through a proxy."""
    async with (
        FaultProxy.in_front_of(dsn) as proxy,
        PgNotifyBus(proxy.dsn, [], driver=driver, observer=RecordingObserver()) as bus,
    ):
        yield bus, proxy


@pytest.mark.parametrize("ends", ["committed", "aborted"])
async def test_a_commit_that_was_cut_off_is_asked_for(
    database: str, driver: Driver, ends: str
) -> None:
    """The server still commits when the publisher asks: it waits for how that ends."""
    async with (
        PgNotifyBus(database, ["jobs"]) as listening,
        two_buses(database, driver) as (bus, proxy),
        HeldCommit(database) as held,
    ):
        receiver = listening.subscribe("jobs")
        assert receiver is not None
        async with bus.publisher(delivery="at-most-once") as publisher:
            await publisher.publish("jobs", LARGE)
            await held.wait_held()
            [(pid,)] = await execute(
                database,
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            await proxy.reset()
            # It is there again to ask how that commit ends, over another connection.
            await until_asked(database, besides=pid)
            if ends == "aborted":
                await execute(database, "SELECT pg_terminate_backend(%s)", pid)
            await held.let_go()
            await publisher.flush()
            await publisher.publish("jobs", "behind")
        statistics = publisher.statistics()
        async with asyncio.timeout(20):
            assert [await receiver.recv() for _ in range(2)] == [LARGE, "behind"]
        assert (statistics.sent, statistics.unknown) == (2, 0)
        assert await execute(database, "SELECT count(*) FROM pgnotifybus.payloads") == [(1,)]


async def until_asked(dsn: str, besides: int) -> None:
    """Wait until another connection of a publisher has asked for the status of a transaction."""
    asking = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgnotifybus publisher'"
        " AND pid <> %s AND query LIKE '%%pg_xact_status%%'"
        " AND datname = current_database()"
    )
    async with asyncio.timeout(20):
        while not await execute(dsn, asking, besides):
            await execute(dsn, "SELECT pg_sleep(0.01)")


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
@pytest.mark.parametrize("version", [16, 18])
async def test_after_a_crash_nobody_can_know(
    private_server: PrivateServer, delivery: str, version: int
) -> None:
    server = private_server(version)
    await schema.remove(server.dsn)
    await execute(server.dsn, "DROP FUNCTION IF EXISTS hold")
    async with (
        HeldCommit(server.dsn) as held,
        PgNotifyBus(server.dsn, [], backoff_initial=0.1) as bus,
        bus.publisher(delivery=delivery) as publisher,  # type: ignore[arg-type]
    ):
        await publisher.publish("jobs", LARGE)
        await held.wait_held()
        server.kill()
        server.start()
        if delivery == "at-most-once":
            with pytest.raises(PublishFailed, match="not known") as failed:
                await publisher.flush()
            assert failed.value.unknown == [("jobs", LARGE)]
        else:
            await publisher.flush()
        sent = publisher.statistics().sent
        rows = await execute(server.dsn, "SELECT count(*) FROM pgnotifybus.payloads")
    assert rows == [(sent,)] == [(1 if delivery == "at-least-once" else 0,)]


async def test_a_server_that_is_away_costs_nothing_but_time(
    private_server: PrivateServer, driver: Driver
) -> None:
    server = private_server()
    await schema.remove(server.dsn)
    await schema.install(server.dsn)
    recorder = RecordingObserver()
    async with (
        PgNotifyBus(server.dsn, [], driver=driver, observer=recorder, backoff_initial=0.1) as bus,
        bus.publisher(batch_size=7) as publisher,
    ):
        await publisher.publish("jobs", LARGE)
        await publisher.flush()
        server.stop()
        for n in range(50):
            await publisher.publish("jobs", f"{n} {LARGE}")
        await recorder.wait_for(observe.PublishDelayed, 3)
        server.start()
        await publisher.flush()
        assert publisher.statistics().sent == 51
        # The rows say what was committed, though nobody listened.
        rows = await execute(server.dsn, "SELECT payload FROM pgnotifybus.payloads ORDER BY ctid")
    assert [payload.split()[0] for (payload,) in rows[1:]] == [str(n) for n in range(50)]


async def test_a_full_notification_queue_delays_and_loses_nothing(
    private_server: PrivateServer,
) -> None:
    """Trap 34: commits are refused with 54000 until the slowest listener has caught up."""
    server = private_server(settings={"max_notify_queue_pages": "64"})
    recorder = RecordingObserver()
    async with (
        PgNotifyBus(server.dsn, ["jobs"], observer=recorder, capacity=1_000) as bus,
        await psycopg.AsyncConnection.connect(server.dsn) as slow,
    ):
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        await slow.execute("LISTEN jobs")
        await slow.commit()
        await slow.execute("SELECT 1")  # in a transaction from now on: it takes nothing
        async with bus.publisher(batch_size=20) as publisher:
            for n in range(200):
                await publisher.publish("jobs", f"{n:04}{noise(5_000)}")
            delayed = await recorder.wait_for(observe.PublishDelayed)
            assert "54000" in str(delayed.error)
            await slow.close()
            # Nobody holds it up any more, but it is full until somebody has it cleared.
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                await execute(server.dsn, "NOTIFY other")
            await publisher.flush()
            assert publisher.statistics().sent == 200
        async with asyncio.timeout(20):
            got = [await receiver.recv() for _ in range(200)]
        assert [int(each[:4]) for each in got] == list(range(200))


async def test_a_single_notification_clears_a_queue_that_is_full_of_what_all_have_read(
    private_server: PrivateServer,
) -> None:
    """Trap 34: otherwise it would be refused for ever."""
    server = private_server(settings={"max_notify_queue_pages": "64"})
    async with PgNotifyBus(server.dsn, []) as bus:
        async with await psycopg.AsyncConnection.connect(server.dsn) as slow:
            await slow.execute("LISTEN jobs")
            await slow.commit()
            await slow.execute("SELECT 1")

            async def fill() -> None:
                for n in range(200):
                    await bus.notify("jobs", f"{n:04}{noise(5_000)}")

            with pytest.raises(LinkError, match="54000"):
                await fill()
        await bus.notify("jobs", "1")


async def test_a_listener_that_reconnects_meanwhile_is_told(database18: str) -> None:
    """What a publisher sends while a listener is away is behind that listener's gap."""
    recorder = RecordingObserver()
    async with (
        PgNotifyBus(database18, ["jobs"], observer=recorder, backoff_initial=0.1) as bus,
        bus.publisher() as publisher,
    ):
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        events = receiver.events()
        await publisher.publish("jobs", "1")
        assert (await anext(events)).channel == "jobs"
        await execute(
            database18,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'pgnotifybus%%' AND datname = current_database()"
            " AND pid <> %s",
            0,
        )
        await publisher.publish("jobs", "2")
        await recorder.wait_for(observe.LinkUp, 2)
        await publisher.flush()
        await publisher.publish("jobs", "3")
        async with asyncio.timeout(10):
            assert await anext(events) == Gap("reconnected", "jobs", 2, None)
