"""Channels at run time: acknowledged when returned, counted, and free of races."""

from __future__ import annotations

import asyncio
import gc

import pytest

from pgnotifybus import Closed, ListenRejected, Notification, PgNotifyBus, observe
from pgnotifybus.links.sources import Driver
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import FaultProxy, RecordingObserver, kill_link
from support.sql import execute, kill_listener


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


async def until_left(recorder: RecordingObserver, name: str, times: int = 1) -> None:
    """Wait until the server has acknowledged an UNLISTEN."""
    await recorder.wait_for(
        observe.ChannelsChanged, times, where=lambda event: name in event.unlistened
    )


async def test_returned_means_acknowledged(database18: str, driver: Driver) -> None:
    """Invariant 7, trap 4: what commits after `listen` has returned is delivered."""
    async with PgNotifyBus(database18, [], driver=driver) as bus:
        for number in range(50):
            receiver = await bus.listen(f"room:{number}")
            await execute(database18, "SELECT pg_notify(%s, 'hello')", f"room:{number}")
            async with asyncio.timeout(5):
                assert await receiver.recv() == "hello"


async def test_a_late_joiner_waits_for_the_first_listen(database18: str) -> None:
    """Trap 4 (pgdog's race): nobody returns before the first LISTEN is acknowledged."""
    async with PgNotifyBus(database18, []) as bus:
        joining = [asyncio.create_task(bus.listen("c")) for _ in range(100)]
        receivers = await asyncio.gather(*joining)
        await bus.notify("c", "for all")
        assert [await each.recv() for each in receivers] == ["for all"] * 100


async def test_the_last_to_leave_ends_the_listen(database18: str, driver: Driver) -> None:
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, ["kept"], driver=driver, observer=recorder) as bus:
        first, second = await bus.listen("c"), await bus.listen("c")
        kept = await bus.listen("kept")
        first.close()
        await bus.notify("c", "still listened to")
        assert await second.recv() == "still listened to"
        second.close()
        kept.close()
        await until_left(recorder, "c")
        assert "c" not in bus.statistics().channels
        with pytest.raises(Closed):
            await second.recv()
        # The channel named at construction stays, with no receiver at all.
        receiver = bus.subscribe("kept")
        assert receiver is not None
        await bus.notify("kept", "1")
        assert await receiver.recv() == "1"
        assert not any("kept" in e.unlistened for e in recorder.of(observe.ChannelsChanged))


async def test_a_collected_receiver_leaves(database18: str) -> None:
    """Trap 14."""
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, [], observer=recorder) as bus:
        receiver: Subscription | None = await bus.listen("c")
        assert receiver is not None
        receiver = None
        gc.collect()
        await until_left(recorder, "c")


async def test_a_message_in_flight_never_reaches_a_later_subscriber(
    database18: str, driver: Driver
) -> None:
    """Trap 16 (psycopg#1128), with the old subscription's messages still on their way."""
    for round_ in range(30):
        async with PgNotifyBus(database18, [], driver=driver) as bus:
            old = await bus.listen("c")
            # Committed before the UNLISTEN; nobody has read them when it is sent.
            flood = asyncio.create_task(
                execute(
                    database18,
                    "SELECT count(pg_notify('c', 'old ' || i)) FROM generate_series(1, 200) AS i",
                )
            )
            if round_ % 2:
                await flood
            old.close()
            for _ in range(round_ // 2):  # at another moment each time: before, while, after
                await asyncio.sleep(0)
            await flood
            new = await bus.listen("c")
            await bus.notify("c", "new")
            async with asyncio.timeout(5):
                assert await new.recv() == "new"


async def test_leaving_and_joining_in_a_race(database18: str, driver: Driver) -> None:
    """Trap 14: UNLISTEN must never land behind the LISTEN of a later subscriber."""
    async with PgNotifyBus(database18, [], driver=driver) as bus:

        async def visit(number: int) -> None:
            for turn in range(20):
                receiver = await bus.listen("c")
                if (number + turn) % 3 == 0:
                    payload = f"{number}.{turn}"
                    await bus.notify("c", payload)
                    async with asyncio.timeout(5):
                        while await receiver.recv() != payload:
                            pass
                receiver.close()

        await asyncio.gather(*(visit(number) for number in range(8)))


async def test_cancelling_at_any_moment_leaves_nothing(database18: str, driver: Driver) -> None:
    """Trap 14: after n steps of the loop, for every n until it is done."""
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, [], driver=driver, observer=recorder) as bus:
        steps = 0
        while True:
            task = asyncio.create_task(bus.listen("c"))
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                task.result().close()
                break
            steps += 1
            survivor = await bus.listen("c")
            await bus.notify("c", str(steps))
            assert await survivor.recv() == str(steps)
            survivor.close()
            del survivor
            assert steps < 10_000
        assert steps > 2
        while "c" in bus.statistics().channels:
            await recorder.wait_for(
                observe.ChannelsChanged, len(recorder.of(observe.ChannelsChanged)) + 1
            )
        rows = await execute(
            database18,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgnotifybus%%'"
            " AND datname = current_database()",
        )
        assert rows == [(2,)], "the listener and the publisher"


async def test_a_link_lost_in_between(database18: str, driver: Driver) -> None:
    """Trap 3: a drop and a new subscription leave no channel unlistened, old or new."""
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18, ["a"], driver=driver, observer=recorder, backoff_initial=0.05
    ) as bus:
        fixed = bus.subscribe("a")
        assert fixed is not None
        dynamic = await bus.listen("b")
        for generation in range(2, 7):
            joining = asyncio.create_task(bus.listen(f"new {generation}"))
            await kill_listener(database18)
            await recorder.wait_for(observe.LinkDown, generation - 1)
            joining_down = asyncio.create_task(bus.listen(f"late {generation}"))
            await recorder.wait_for(observe.LinkUp, generation)
            receivers = [fixed, dynamic, await joining, await joining_down]
            for name in ("a", "b", f"new {generation}", f"late {generation}"):
                await execute(database18, "SELECT pg_notify(%s, %s)", name, str(generation))
            async with asyncio.timeout(5):
                assert [await each.recv() for each in receivers] == [str(generation)] * 4


async def test_a_new_subscriber_hears_of_no_gap_before_its_time(database18: str) -> None:
    """Whoever joins during an outage has missed nothing."""
    recorder = RecordingObserver()
    async with PgNotifyBus(database18, [], observer=recorder, backoff_initial=0.05) as bus:
        first = await bus.listen("c")
        await kill_listener(database18)
        await recorder.wait_for(observe.LinkDown)
        late = await bus.listen("c")
        await bus.notify("c", "1")
        event = await anext(late.events())
        assert isinstance(event, Notification)
        assert (event.payload, event.generation) == ("1", 2)
        assert len(first) == 1


async def test_a_listen_that_fails_disturbs_nobody(database18: str, driver: Driver) -> None:
    """Trap 14: a refused LISTEN rolls its count back; those beside it are served."""
    ((name, *_),) = await execute(database18, "SELECT current_database()")
    latin = f"latin_{name}"
    await execute(
        database18, f"CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    dsn = database18.replace(name, latin)
    recorder = RecordingObserver()
    try:
        async with PgNotifyBus(dsn, ["a"], driver=driver, observer=recorder) as bus:
            # A channel that this server's encoding cannot write, asked for together with others.
            tasks = [asyncio.create_task(bus.listen(name)) for name in ("b", "日本", "č", "d")]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in results] == [
                Subscription,
                ListenRejected,
                ListenRejected,
                Subscription,
            ]
            assert "日本" in str(results[1])
            for name, receiver in (("b", results[0]), ("d", results[3])):
                assert isinstance(receiver, Subscription)
                await bus.notify(name, "fine")
                assert await receiver.recv() == "fine"
            assert bus.health().generation == 1
            assert set(bus.statistics().channels) == {"a", "b", "d"}
            with pytest.raises(ListenRejected):
                await bus.listen("日本")
        with pytest.raises(ListenRejected, match="日本"):
            async with PgNotifyBus(dsn, ["a", "日本"], driver=driver):
                pass
    finally:
        await execute(database18, f"DROP DATABASE {latin} WITH (FORCE)")


async def test_a_bus_that_ends_releases_those_who_wait(database18: str) -> None:
    """Trap 20: nobody is left waiting for a LISTEN that will never come."""
    async with FaultProxy.in_front_of(database18) as proxy:
        async with PgNotifyBus(proxy.dsn, []) as bus:
            await proxy.stall()
            waiting = asyncio.create_task(bus.listen("c"))
            await asyncio.sleep(0)
        with pytest.raises(Closed):
            await waiting


async def test_ten_thousand_channels(database18: str, driver: Driver) -> None:
    """Trap 36: at once, over a reconnect in one round trip, and away again."""
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18, ["a"], driver=driver, observer=recorder, backoff_initial=0.05
    ) as bus:
        receivers = await asyncio.gather(*(bus.listen(f"room:{i}") for i in range(10_000)))
        changes = recorder.of(observe.ChannelsChanged)
        assert len(changes) < 10, "many wishes are one statement"
        assert await kill_link(bus, timeout=60) == 2
        up = await recorder.wait_for(observe.LinkUp, 2)
        assert up.channels == 10_001
        for i in (0, 4_999, 9_999):
            await bus.notify(f"room:{i}", "found")
            assert await receivers[i].recv() == "found"
        receivers.clear()
        gc.collect()
        while len(bus.statistics().channels) > 1:
            await recorder.wait_for(
                observe.ChannelsChanged,
                len(recorder.of(observe.ChannelsChanged)) + 1,
                timeout=60,
            )
