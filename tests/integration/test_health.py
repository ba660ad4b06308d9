"""What the bus says of itself, on real servers: which state, since when, why, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pgnotifybus import Closed, Lagged, PgNotifyBus, Standby, observe
from pgnotifybus.core.health import STATES
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import RecordingObserver
from support.copies import several_hosts, standby_beside
from support.servers import PASSWORD
from support.sql import execute

PrivateServer = Callable[..., EmbeddedServer]

KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'pgnotifybus listener' AND datname = current_database()"
)


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


def states(recorder: RecordingObserver) -> list[str]:
    """Every state that was told, in their order."""
    return [event.new for event in recorder.of(observe.StateChanged)]


async def test_every_state_is_told_once_with_its_reason(database18: str, driver: Driver) -> None:
    recorder = RecordingObserver()
    bus = PgNotifyBus(database18, ["orders"], driver=driver, observer=recorder)
    health = bus.health()
    assert (health.state, health.since, health.generation) == ("new", None, 0)
    started = datetime.now(UTC)
    async with bus:
        health = bus.health()
        assert (health.state, health.cause, health.advice, health.generation) == (
            "live",
            None,
            None,
            1,
        )
        assert health.since is not None
        assert started - timedelta(seconds=1) <= health.since <= datetime.now(UTC)
        assert health.last_message_at is health.last_probe_at is None
        assert health.queue_usage is not None
        assert 0 <= health.queue_usage < 0.5
        await execute(database18, KILL)
        health = await bus.wait_until("down", timeout=10)
        assert health.cause is not None
        assert "terminat" in health.cause or "closed" in health.cause
        assert health.queue_usage is None
        health = await bus.wait_until("live", timeout=10)
        assert (health.cause, health.generation) == (None, 2)
        receiver = bus.subscribe("orders")
        assert receiver is not None
        await execute(database18, "SELECT pg_notify('orders', '')")
        await receiver.recv()
        assert bus.health().last_message_at is not None
    assert bus.health().state == "stopped"
    assert (await bus.wait_until("stopped")).state == "stopped"
    assert states(recorder) == ["connecting", "live", "down", "live", "stopped"]


async def test_a_server_that_is_away_is_one_state_however_often_it_is_tried(
    private_server: PrivateServer, driver: Driver
) -> None:
    server = private_server()
    recorder = RecordingObserver()
    bus = PgNotifyBus(
        server.dsn,
        ["orders"],
        driver=driver,
        observer=recorder,
        backoff_initial=0.05,
        backoff_maximum=0.1,
    )
    async with bus:
        await asyncio.to_thread(server.stop)
        await recorder.wait_for(observe.ConnectFailed, 5)
        health = bus.health()
        assert health.state == "down"
        assert health.cause is not None
        assert health.advice is not None
        assert "Check host, port" in health.advice
        await asyncio.to_thread(server.start)
        await bus.wait_until("live", timeout=20)
    assert states(recorder) == ["connecting", "live", "down", "live", "stopped"]


async def test_a_receiver_that_does_not_keep_up_is_named_until_it_does(database18: str) -> None:
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18, ["orders", "jobs"], capacity=2, observer=recorder, probe_interval=0.1
    ) as bus:
        slow, quick = bus.subscribe("orders"), bus.subscribe("jobs")
        assert slow is not None
        assert quick is not None
        for number in range(5):
            await execute(database18, f"SELECT pg_notify('orders', '{number}')")
        health = await bus.wait_until("lagging", timeout=10)
        assert health.cause is not None
        assert "1 receiver of 1 channel cannot keep up; on 'orders', 3 messages" in health.cause
        lagged = await recorder.wait_for(observe.ReceiversLagged)
        assert (lagged.channel, lagged.receivers) == ("orders", 1)
        with pytest.raises(Lagged):
            slow.try_recv()
        assert (await bus.wait_until("live", timeout=10)).cause is None
        told = await recorder.wait_for(observe.ReceiversLagged, where=lambda e: e.skipped > 0)
        assert (told.channel, told.skipped) == ("orders", 3)
        assert (slow.try_recv(), slow.try_recv()) == ("3", "4")
    assert states(recorder) == ["connecting", "live", "lagging", "live", "stopped"]


async def test_a_queue_that_fills_is_told_before_it_is_full(
    private_server: PrivateServer,
) -> None:
    """Complaint 9: somebody listens and stays in a transaction, and nobody else can help it."""
    server = private_server(18, {"max_notify_queue_pages": "64"})
    async with (
        PgNotifyBus(server.dsn, ["orders"], probe_interval=0.1) as bus,
        await psycopg.AsyncConnection.connect(server.dsn) as stuck,
    ):
        await stuck.execute("LISTEN orders")
        await stuck.commit()
        await stuck.execute("SELECT 1")
        for _ in range(5):
            await execute(
                server.dsn,
                "SELECT pg_notify('orders', repeat('x', 7000) || n)"
                " FROM generate_series(1, 8) AS n",
            )
        health = await bus.wait_until("lagging", timeout=10)
        assert health.cause is not None
        assert "notification queue is" in health.cause
        assert health.queue_usage is not None
        assert health.queue_usage >= 0.5
        await stuck.close()
        await bus.wait_until("live", timeout=10)


async def test_of_several_hosts_the_primary_is_found_and_found_again(
    private_server: PrivateServer, driver: Driver
) -> None:
    """Trap 10, complaint 10: also when it has become another one."""
    primary = private_server(18, {"wal_level": "replica"})
    recorder = RecordingObserver()
    with standby_beside(primary, PASSWORD) as standby:
        with pytest.raises(Standby, match=r"standby.*name all hosts"):
            async with PgNotifyBus(standby.dsn, ["orders"], driver=driver, start_timeout=0.01):
                pass
        hosts = several_hosts(standby.dsn, primary.dsn)
        async with PgNotifyBus(hosts, ["orders"], driver=driver, observer=recorder) as bus:
            receiver = bus.subscribe("orders")
            assert receiver is not None
            await execute(primary.dsn, "SELECT pg_notify('orders', 'of the primary')")
            async with asyncio.timeout(10):
                assert await receiver.recv() == "of the primary"
            await asyncio.to_thread(primary.stop)
            # Which of them is told depends on which host was tried last: both are true.
            await bus.wait_until("standby", "down", timeout=10)
            await recorder.wait_for(observe.ConnectFailed)
            await execute(standby.dsn, "SELECT pg_promote()")
            health = await bus.wait_until("live", timeout=60)
            assert health.generation == 2
            await execute(standby.dsn, "SELECT pg_notify('orders', 'of the new one')")
            async with asyncio.timeout(10):
                assert await receiver.recv() == "of the new one"


async def test_waiting_for_a_state(database18: str) -> None:
    bus = PgNotifyBus(database18, ["orders"])
    for wrong in ((), ("lively",)):
        with pytest.raises(ValueError, match="must be one of new, connecting, live"):
            await bus.wait_until(*wrong)
    with pytest.raises(TimeoutError, match=r"the bus is new and not live after 0\.01 s"):
        await bus.wait_until("live", timeout=0.01)
    early = asyncio.create_task(bus.wait_until("live"))
    async with bus:
        assert (await early).state == "live"
        late = asyncio.create_task(bus.wait_until("standby"))
        cancelled = asyncio.create_task(bus.wait_until("down"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait({cancelled})
    with pytest.raises(Closed, match="was not standby"):
        await late
    with pytest.raises(Closed):
        await bus.wait_until(*(state for state in STATES if state != "stopped"))
