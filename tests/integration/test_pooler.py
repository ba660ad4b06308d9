"""A pooler in between: one that swallows notifications is found, one that does not is welcome."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from pgnotifybus import BehindPooler, PgNotifyBus, observe
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import RecordingObserver
from support.pgbouncer import PROGRAM, Mode, bouncer
from support.sql import execute

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed (package pgbouncer)"
)


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


async def hears(bus: PgNotifyBus, dsn: str) -> None:
    """That what commits elsewhere is delivered."""
    receiver = bus.subscribe("orders")
    assert receiver is not None
    await execute(dsn, "SELECT pg_notify('orders', '42')")
    async with asyncio.timeout(10):
        assert await receiver.recv() == "42"
    receiver.close()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_one_that_swallows_notifications_is_found_when_connecting(
    pg18: EmbeddedServer, database18: str, driver: Driver, mode: Mode
) -> None:
    """Trap 11: LISTEN succeeds, and nothing would ever arrive."""
    with bouncer(pg18, database18, mode) as pooled:
        began = time.monotonic()
        bus = PgNotifyBus(pooled.dsn, ["orders"], driver=driver, probe_timeout=1.0)
        with pytest.raises(BehindPooler, match=r"pooler.*pool_mode=session.*direct_dsn"):
            async with bus:
                pass
        assert time.monotonic() - began < 3.0
        assert bus.health().generation == 0


async def test_asking_ones_own_session_would_tell_nothing(
    pg18: EmbeddedServer, database18: str
) -> None:
    """Why it takes two: what a session notifies itself comes with the answer, pooler or not."""
    with bouncer(pg18, database18, "transaction") as pooled:
        async with await psycopg.AsyncConnection.connect(pooled.dsn, autocommit=True) as connection:
            heard: list[str] = []
            connection.add_notify_handler(lambda notify: heard.append(notify.payload))
            await connection.execute("LISTEN orders")
            await connection.execute("SELECT pg_notify('orders', 'by itself')")
            assert heard == ["by itself"]
            await execute(database18, "SELECT pg_notify('orders', 'by another')")
            await connection.execute("SELECT 1")
            assert heard == ["by itself"]
            await connection.execute("UNLISTEN *")


async def test_one_that_keeps_sessions_is_welcome(
    pg18: EmbeddedServer, database18: str, driver: Driver
) -> None:
    recorder = RecordingObserver()
    with bouncer(pg18, database18, "session") as pooled:
        async with PgNotifyBus(pooled.dsn, ["orders"], driver=driver, observer=recorder) as bus:
            await hears(bus, database18)
            assert bus.health().state == "live"
            await bus.notify("orders", "through the pooler")
    assert not recorder.of(observe.DeliveryUnproven)


async def test_one_that_has_no_connection_left_to_try_is_told(
    pg18: EmbeddedServer, database18: str
) -> None:
    """It cannot be known: better to listen, and to say so, than not to."""
    recorder = RecordingObserver()
    with bouncer(pg18, database18, "session", size=1) as pooled:
        async with PgNotifyBus(pooled.dsn, ["orders"], probe_timeout=0.5, observer=recorder) as bus:
            assert len(recorder.of(observe.DeliveryUnproven)) == 1
            await hears(bus, database18)


async def test_the_direct_address_is_used_where_there_is_one(
    pg18: EmbeddedServer, database18: str, driver: Driver
) -> None:
    """To listen; and what is sent goes through the pooler as before."""
    recorder = RecordingObserver()
    with bouncer(pg18, database18, "transaction") as pooled:
        bus = PgNotifyBus(
            pooled.dsn,
            ["orders"],
            driver=driver,
            direct_dsn=database18,
            probe_timeout=1.0,
            observer=recorder,
        )
        async with bus:
            await hears(bus, database18)
            assert (bus.health().state, bus.health().generation) == ("live", 1)
            [turned] = recorder.of(observe.TurnedToDirect)
            assert isinstance(turned.error, BehindPooler)
            [(address,)] = await execute(
                database18,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'pgnotifybus listener'",
            )
            assert address == 1
            # A later link goes there at once.
            await execute(
                database18,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                " application_name = 'pgnotifybus listener' AND datname = current_database()",
            )
            await recorder.wait_for(observe.LinkUp, 2)
            await hears(bus, database18)
            assert len(recorder.of(observe.TurnedToDirect)) == 1


async def test_a_bus_that_runs_says_what_is_in_its_way(
    pg18: EmbeddedServer, database18: str
) -> None:
    with bouncer(pg18, database18, "transaction") as pooled:
        bus = PgNotifyBus(pooled.dsn, ["orders"], probe_timeout=0.5)
        shutdown = asyncio.Event()
        task = asyncio.create_task(bus.run(shutdown))
        health = await bus.wait_until("behind a pooler", timeout=10)
        assert health.cause is not None
        assert "delivers nothing" in health.cause
        assert health.advice is not None
        assert "direct_dsn" in health.advice
        with pytest.raises(TimeoutError, match=r"is behind a pooler and not live.*direct_dsn"):
            await bus.wait_until("live", timeout=0.01)
        shutdown.set()
        await task


async def test_a_server_of_its_own_costs_no_second_connection(
    database18: str, driver: Driver
) -> None:
    """Nor a transaction id: the probe is for where a pooler is."""
    question = "SELECT pg_snapshot_xmax(pg_current_snapshot())"
    before = await execute(database18, question)
    async with PgNotifyBus(database18, ["orders"], driver=driver):
        assert await execute(database18, question) == before
