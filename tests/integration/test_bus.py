"""The bus against real PostgreSQL, when nothing goes wrong."""

from __future__ import annotations

import asyncio
import base64
import gc
import random
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from pgnotifybus import (
    Closed,
    Gap,
    InvalidChannel,
    Notification,
    PayloadTooLarge,
    PgNotifyBus,
    observe,
    watch,
)
from pgnotifybus.testing import RecordingObserver
from support.sql import execute


async def test_the_first_thirty_seconds(database: str) -> None:
    """Enter, subscribe, notify, receive: on every PostgreSQL."""
    async with PgNotifyBus(database, ["orders"]) as bus:
        receiver = bus.subscribe("orders")
        assert receiver is not None
        await bus.notify("orders", "42")
        assert await receiver.recv() == "42"
        await execute(database, "NOTIFY orders, 'from anybody'")
        assert await receiver.recv() == "from anybody"
    with pytest.raises(Closed):
        await receiver.recv()


async def test_the_seeds_surface(database18: str) -> None:
    """Everything that the seed's documentation says, in its words."""
    bus = PgNotifyBus(database18, ["orders", "jobs", "orders"])
    assert bus.channels() == ["orders", "jobs"]
    assert bus.subscribe("unregistered") is None
    receiver = bus.subscribe("jobs")
    assert receiver is not None
    reconnects = bus.subscribe_reconnects()
    assert reconnects.borrow() == 0
    shutdown = asyncio.Event()
    running = asyncio.create_task(bus.run(shutdown))
    await reconnects.changed()
    assert reconnects.borrow() == 1
    await execute(database18, "SELECT pg_notify('jobs', 'raw payload')")
    assert await receiver.recv() == "raw payload"
    shutdown.set()
    await running
    with pytest.raises(Closed):
        await receiver.recv()
    with pytest.raises(RuntimeError, match="runs once"):
        await bus.run(shutdown)


async def test_events_are_notifications(database18: str) -> None:
    async with PgNotifyBus(database18, ["orders"]) as bus:
        receiver = bus.subscribe("orders")
        assert receiver is not None
        ((pid, *_),) = await execute(
            database18, "SELECT pg_backend_pid(), pg_notify('orders', 'x')"
        )
        async for event in receiver.events():
            assert event == Notification("orders", "x", pid, 1)
            break


async def test_capitals_spaces_and_quotes_in_names(database18: str) -> None:
    """Trap 22: what PostgreSQL can name is listened to exactly, also on the bus's own notify."""
    names = ["MixedCase", 'say "hi"', "two words", "žluť", "semi;colon", "é" * 31]
    async with PgNotifyBus(database18, names) as bus:
        for name in names:
            receiver = bus.subscribe(name)
            assert receiver is not None
            await bus.notify(name, name)
            assert await receiver.recv() == name
            dynamic = await bus.listen(name + "x")
            await execute(database18, "SELECT pg_notify(%s, 'dynamic')", name + "x")
            assert await dynamic.recv() == "dynamic"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a" * 64, "64 bytes"),
        ("é" * 32, "64 bytes"),
        ("nul\0", "NUL"),
        ("\ud800", "surrogate"),
        (42, "must be a str"),
    ],
)
async def test_impossible_names_are_refused_before_any_io(name: str, why: str) -> None:
    """Trap 22."""
    nowhere = "postgresql://127.0.0.1:1/x"
    with pytest.raises(InvalidChannel, match=why):
        PgNotifyBus(nowhere, ["good", name])
    bus = PgNotifyBus(nowhere, [])
    with pytest.raises(InvalidChannel, match=why):
        await bus.listen(name)


async def test_payloads_at_the_limit(database18: str) -> None:
    """Trap 22: 7,999 bytes pass; 8,000 that do not shrink are refused with size and limit."""
    async with PgNotifyBus(database18, ["c"]) as bus:
        receiver = bus.subscribe("c")
        assert receiver is not None
        for payload in ("", "x" * 7_999, "é" * 3_999 + "x"):
            await bus.notify("c", payload)
            assert await receiver.recv() == payload
        noise = base64.b64encode(random.Random(22).randbytes(9_000)).decode()
        with pytest.raises(PayloadTooLarge, match="schema install") as refused:
            await bus.notify("c", noise)
        assert (refused.value.size, refused.value.limit) == (12_000, 7_999)
        with pytest.raises(ValueError, match="NUL"):
            await bus.notify("c", "a\0b")
        with pytest.raises(TypeError):
            await bus.notify("c", b"bytes")  # type: ignore[call-overload]
        await execute(database18, "NOTIFY c; SELECT pg_notify('c', NULL)")
        assert await receiver.recv() == "", "NULL arrives as '', and twice the same as once"


async def test_a_slow_receiver_costs_only_itself(database18: str) -> None:
    """Invariants 2 and 4; traps 13 and 21: the count is exact over several rings."""
    async with PgNotifyBus(database18, ["c"], capacity=10) as bus:
        slow, fast = bus.subscribe("c"), bus.subscribe("c")
        assert slow is not None
        assert fast is not None
        got: list[str] = []
        for start in range(0, 100, 10):
            await execute(
                database18,
                "SELECT pg_notify('c', i::text) FROM generate_series(%s::int, %s) AS i",
                start,
                start + 9,
            )
            while len(got) < start + 10:
                got += await fast.recv_many()
        assert got == [str(i) for i in range(100)]
        events = slow.events()
        assert await anext(events) == Gap("lagged", "c", 1, 90)
        rest = [await anext(events) for _ in range(10)]
        assert [each.payload for each in rest if isinstance(each, Notification)] == [
            str(i) for i in range(90, 100)
        ]
        account = slow.statistics()
        assert (account.delivered, account.skipped, account.unread) == (10, 90, 0)


async def test_two_subscribers_of_one_channel(database18: str) -> None:
    """Trap 15: each gets every message once, and one that leaves takes nothing from the other."""
    async with PgNotifyBus(database18, ["c", "c"]) as bus:
        first, second, dynamic = bus.subscribe("c"), bus.subscribe("c"), await bus.listen("c")
        assert first is not None
        assert second is not None
        await bus.notify("c", "1")
        assert [await each.recv() for each in (first, second, dynamic)] == ["1"] * 3
        first.close()
        dynamic.close()
        await bus.notify("c", "2")
        assert await second.recv() == "2"
        assert len(second) == 0


async def test_statistics_and_health(database18: str) -> None:
    bus = PgNotifyBus(database18, ["c"], capacity=7)
    assert (bus.health().state, bus.health().generation) == ("new", 0)
    async with bus:
        receiver = bus.subscribe("c")
        assert receiver is not None
        await bus.notify("c", "1")
        await receiver.recv()
        health, statistics = bus.health(), bus.statistics()
        assert (health.state, health.generation, health.cause) == ("live", 1, None)
        assert statistics.received == 1
        assert statistics.channels["c"].receivers == 1
        assert statistics.channels["c"].capacity == 7
    assert bus.health().state == "stopped"


# -- shutdown -------------------------------------------------------------------------------------

Stop = Callable[[asyncio.Event, watch.Sender[bool]], None]


@pytest.mark.parametrize("how", ["event", "watch", "closed", "dropped"])
async def test_every_kind_of_shutdown(database18: str, how: str) -> None:
    """Trap 20: also a handle that is dropped, on which the seed spins."""
    event = asyncio.Event()
    sender, fires = watch.channel(False)
    bus = PgNotifyBus(database18, ["c"])
    receiver = bus.subscribe("c")
    assert receiver is not None
    reconnects = bus.subscribe_reconnects()
    running = asyncio.create_task(bus.run(event if how == "event" else fires))
    await reconnects.wait_for(lambda generation: generation == 1)
    await execute(database18, "NOTIFY c, 'unread'")
    parked = asyncio.create_task(bus.listen("x"))
    (await parked).close()
    if how == "event":
        event.set()
    elif how == "watch":
        sender.send(True)
    elif how == "closed":
        sender.close()
    else:
        del sender
        gc.collect()
    async with asyncio.timeout(5):
        await running
    assert await receiver.recv() == "unread", "receivers drain"
    with pytest.raises(Closed):
        await receiver.recv()
    with pytest.raises(Closed):
        await reconnects.changed()


async def test_cancelling_run_ends_the_bus(database18: str) -> None:
    bus = PgNotifyBus(database18, ["c"])
    reconnects = bus.subscribe_reconnects()
    running = asyncio.create_task(bus.run(asyncio.Event()))
    await reconnects.changed()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bus.health().state == "stopped"


async def test_shutdown_that_has_fired_already() -> None:
    """Nothing is connected, and it returns at once."""
    fired = asyncio.Event()
    fired.set()
    async with asyncio.timeout(1):
        await PgNotifyBus("postgresql://127.0.0.1:1/x", ["c"]).run(fired)


async def test_run_refuses_what_cannot_fire() -> None:
    with pytest.raises(TypeError, match=r"asyncio\.Event"):
        await PgNotifyBus("postgresql://127.0.0.1:1/x", ["c"]).run(True)  # type: ignore[arg-type]


async def test_the_receiver_of_a_bus_that_ended_says_so(database18: str) -> None:
    async with PgNotifyBus(database18, ["c"]) as bus:
        pass
    late = bus.subscribe("c")
    assert late is not None
    with pytest.raises(Closed):
        await late.recv()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.listen("c"),
        lambda: bus.notify("c"),
    ]
    for call in calls:
        with pytest.raises(Closed):
            await call()


async def test_a_bus_that_was_not_started_says_so() -> None:
    bus = PgNotifyBus("postgresql://127.0.0.1:1/x", ["c"])
    with pytest.raises(RuntimeError, match="not running"):
        await bus.listen("c")
    with pytest.raises(RuntimeError, match="not running"):
        await bus.notify("c")


async def test_a_second_event_loop_is_refused(database18: str) -> None:
    """Trap 19."""
    async with PgNotifyBus(database18, ["c"]) as bus:

        async def elsewhere() -> None:
            await bus.listen("x")

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())


# -- costs ----------------------------------------------------------------------------------------


async def test_one_connection_whatever_the_number_of_subscribers(database18: str) -> None:
    async with PgNotifyBus(database18, ["c"]) as bus:
        receivers = [bus.subscribe("c") for _ in range(500)]
        dynamic = [await bus.listen(f"room:{i}") for i in range(50)]
        rows = await execute(
            database18,
            "SELECT application_name, state FROM pg_stat_activity"
            " WHERE application_name LIKE 'pgnotifybus%%' AND datname = current_database()",
        )
        assert rows == [("pgnotifybus listener", "idle")]
        assert len(receivers) + len(dynamic) == 550


async def test_probes_cost_no_transaction_id_and_no_wal(database18: str) -> None:
    """Trap 35: liveness without NOTIFY."""
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, ["c"], probe_interval=0.02, observer=recorder):
        await recorder.wait_for(observe.ProbeAnswered, 2)
        question = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
        before = await execute(database18, question)
        probes = len(recorder.of(observe.ProbeAnswered))
        await recorder.wait_for(observe.ProbeAnswered, probes + 20)
        assert await execute(database18, question) == before


async def test_without_probes_the_database_is_left_alone(database18: str) -> None:
    """Trap 12: a database that scales to zero may sleep."""
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, ["c"], probe_interval=None, observer=recorder) as bus:
        question = (
            "SELECT pid, state_change FROM pg_stat_activity"
            " WHERE application_name = 'pgnotifybus listener' AND datname = current_database()"
        )
        before = await execute(database18, question)
        await execute(database18, "SELECT pg_sleep(0.3)")
        assert await execute(database18, question) == before
        assert bus.health().last_probe_at is None
    assert not recorder.of(observe.ProbeAnswered)


async def test_an_observer_that_fails_does_no_harm(
    database18: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Trap 21."""

    def broken(event: observe.Event) -> None:
        raise RuntimeError("observer is broken")

    async with PgNotifyBus(database18, ["c"], observer=broken) as bus:
        receiver = bus.subscribe("c")
        assert receiver is not None
        await bus.notify("c", "1")
        assert await receiver.recv() == "1"
    assert "the observer failed" in caplog.text


async def test_the_listener_is_never_in_a_transaction(database18: str) -> None:
    """Trap 7: a listener inside a transaction receives nothing and pins the queue."""

    async def fresh() -> psycopg.AsyncConnection[tuple[object, ...]]:
        connection = await psycopg.AsyncConnection.connect(database18)
        await connection.execute("SELECT 1")  # begins a transaction, as autocommit is off
        return connection

    async with PgNotifyBus(fresh, ["c"]) as bus:
        receiver = bus.subscribe("c")
        assert receiver is not None
        await execute(database18, "NOTIFY c, '1'")
        assert await receiver.recv() == "1"
