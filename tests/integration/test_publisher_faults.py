"""The sending side on servers, networks and pools that make it hard."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest

from pgnotifybus import PayloadLost, PgNotifyBus, PublishFailed, observe, schema
from pgnotifybus.core.envelope import refer
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.publish.statements import identify, new_row
from pgnotifybus.testing import FaultProxy, RecordingObserver
from support.payloads import noise
from support.sql import execute

PrivateServer = Callable[..., EmbeddedServer]

LARGE = noise(12_000)


async def test_a_slow_network_can_send_a_large_payload(database18: str) -> None:
    """Longer than the server waits for who is idle in a transaction: much data has more time.

    Over asyncpg, which sends a statement that it has prepared in one piece, behind nothing.
    """
    await schema.install(database18)
    recorder = RecordingObserver()
    async with (
        FaultProxy.in_front_of(database18) as proxy,
        PgNotifyBus(
            proxy.dsn,
            [],
            driver="asyncpg",
            observer=recorder,
            probe_interval=None,
        ) as bus,
        bus.publisher() as publisher,
    ):
        await publisher.publish("jobs", LARGE)
        await publisher.flush()
        await proxy.drip(512 * 1024)
        await publisher.publish("jobs", noise(6 * 1024 * 1024))  # 12 s
        await publisher.flush()
        await proxy.heal()
    assert recorder.of(observe.PublishDelayed) == []


async def test_a_right_that_is_revoked_meanwhile_loses_no_messages(database18: str) -> None:
    """Without it a publisher only knows less about a commit that was not answered."""
    role = f"sender_{uuid.uuid4().hex[:8]}"
    function = "FUNCTION pg_catalog.pg_control_system()"
    await execute(database18, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        parts = urlsplit(database18)
        dsn = parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}").geturl()
        async with PgNotifyBus(dsn, []) as bus, bus.publisher() as publisher:
            await publisher.publish("jobs", "1")
            await publisher.flush()
            await execute(database18, f"REVOKE EXECUTE ON {function} FROM PUBLIC")
            await publisher.publish("jobs", "2")
            await publisher.flush()
            assert publisher.statistics().sent == 2
    finally:
        await execute(database18, f"DROP ROLE {role}")


async def test_a_batch_larger_than_the_notification_queue_jams_nobody(
    private_server: PrivateServer,
) -> None:
    """Trap 34. Refused, it would fill the cluster's queue with what no listener is woken for."""
    server = private_server(settings={"max_notify_queue_pages": "64"})
    async with PgNotifyBus(server.dsn, ["jobs"], capacity=1_000) as bus:
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        async with bus.publisher() as publisher:
            for n in range(200):
                await publisher.publish("jobs", f"{n:04}{noise(5_000)}")
        await execute(server.dsn, "NOTIFY unrelated")
        async with asyncio.timeout(20):
            got = [await receiver.recv() for _ in range(200)]
        assert [int(each[:4]) for each in got] == list(range(200))


async def test_a_pool_whose_setup_fails_for_a_moment_does_not_end_the_publisher(
    database18: str,
) -> None:
    fails = False
    recorder = RecordingObserver()

    async def setup(_: object) -> None:
        if fails:
            raise KeyError("no secret at this moment")

    async with (
        asyncpg.create_pool(database18, min_size=2, max_size=3, setup=setup) as pool,
        PgNotifyBus(pool, ["jobs"], observer=recorder) as bus,
        bus.publisher() as publisher,
    ):
        fails = True
        await publisher.publish("jobs", "1")
        delayed = await recorder.wait_for(observe.PublishDelayed)
        assert "no secret" in str(delayed.error)
        fails = False
        await publisher.publish("jobs", "2")
        await publisher.flush()
        assert publisher.statistics().sent == 2


async def test_a_row_larger_than_its_notification_says_is_not_fetched(database18: str) -> None:
    """Whoever may write to the table could otherwise fill every receiver's memory."""
    await schema.install(database18)
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, ["jobs"], observer=recorder) as bus:
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        row = new_row()
        await execute(
            database18,
            "INSERT INTO pgnotifybus.payloads (id, channel, payload)"
            " VALUES (%s, 'jobs', repeat('x', 50000000))",
            row,
        )
        await execute(database18, "SELECT pg_notify('jobs', %s)", refer(row, 1))
        async with asyncio.timeout(20):
            with pytest.raises(PayloadLost, match="could not be fetched"):
                await receiver.recv()
        assert "larger than was said" in recorder.of(observe.PayloadsLost)[0].reason


async def test_where_transactions_are_read_only_just_large_payloads_are_not_sent(
    database18: str,
) -> None:
    await schema.install(database18)
    await execute(
        database18,
        "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',"
        " current_database()); END$$",
    )
    async with PgNotifyBus(database18, ["jobs"]) as bus, bus.publisher() as publisher:
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        await publisher.publish("jobs", LARGE)
        await publisher.publish("jobs", "small")
        with pytest.raises(PublishFailed, match="read-only") as failed:
            await publisher.flush()
        assert failed.value.unsent == [("jobs", LARGE)]
        async with asyncio.timeout(10):
            assert await receiver.recv() == "small"


async def test_a_statement_timeout_of_the_pool_is_not_the_publishers(database18: str) -> None:
    await schema.install(database18)
    recorder = RecordingObserver()
    async with (
        asyncpg.create_pool(
            database18, min_size=2, max_size=3, server_settings={"statement_timeout": "20"}
        ) as pool,
        PgNotifyBus(pool, [], observer=recorder) as bus,
        bus.publisher() as publisher,
    ):
        await publisher.publish("jobs", noise(8 * 1024 * 1024))
        await publisher.flush()
    assert recorder.of(observe.PublishDelayed) == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_what_the_server_quotes_of_a_row_is_not_repeated(
    database18: str, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    """The DETAIL of an error may hold what was to be sent."""
    await schema.install(database18)
    await execute(database18, "ALTER TABLE pgnotifybus.payloads ALTER expires_at DROP DEFAULT")
    async with PgNotifyBus(database18, [], driver=driver) as bus, bus.publisher() as publisher:
        await publisher.publish("jobs", f"password=hunter2 {LARGE}")
        with pytest.raises(PublishFailed, match="expires_at") as failed:
            await publisher.flush()
    assert "hunter2" not in str(failed.value) + caplog.text


async def test_who_the_server_is_does_not_depend_on_the_session(database18: str) -> None:
    told = set()
    for zone in ("UTC", "Asia/Tokyo"):
        async with await psycopg.AsyncConnection.connect(
            database18, options=f"-c TimeZone={zone}"
        ) as connection:
            told.add(await (await connection.execute(identify().sql.encode())).fetchone())
    assert len(told) == 1


async def test_deleting_what_is_too_old_holds_up_no_payload(database18: str) -> None:
    """Somebody has locked a row that is to be deleted."""
    await schema.install(database18)
    await execute(
        database18,
        "INSERT INTO pgnotifybus.payloads (id, channel, payload, expires_at)"
        " VALUES (gen_random_uuid(), 'x', 'y', now() - interval '1 day')",
    )
    async with (
        PgNotifyBus(database18, ["jobs"]) as bus,
        await psycopg.AsyncConnection.connect(database18) as other,
    ):
        receiver = bus.subscribe("jobs")
        assert receiver is not None
        await other.execute("SELECT FROM pgnotifybus.payloads FOR UPDATE")
        for n in range(3):
            await bus.notify("jobs", f"{n} {LARGE}")
            async with asyncio.timeout(5):
                assert await receiver.recv() == f"{n} {LARGE}"
