"""What only an in-memory bus can do: lose its server at will, and share it with others."""

from __future__ import annotations

import asyncio

import pytest

from pgnotifybus import (
    Closed,
    ConnectError,
    FatalLinkError,
    Gap,
    LinkLost,
    Notification,
    PgNotifyBus,
    observe,
)
from pgnotifybus.links.base import ServerError
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import MemoryBus, MemoryServer, RecordingObserver, kill_link


def subscribe(bus: PgNotifyBus, channel: str = "orders") -> Subscription:
    receiver = bus.subscribe(channel)
    assert receiver is not None
    return receiver


async def take(receiver: Subscription, count: int) -> list[object]:
    """The next items, by their payloads where they are notifications."""
    items = receiver.events()
    async with asyncio.timeout(5):
        taken = [await anext(items) for _ in range(count)]
    return [each.payload if isinstance(each, Notification) else each for each in taken]


async def test_what_commits_in_a_gap_is_missed_and_the_gap_is_told() -> None:
    async with MemoryBus(["orders", "other"]) as bus:
        orders, other = subscribe(bus), subscribe(bus, "other")
        await bus.notify("orders", "before")
        async with bus.gap():
            assert bus.health().state == "down"
            await bus.notify("orders", "missed")
            await bus.server.notify("orders", "missed too")
            async with bus.publisher() as publisher:
                await publisher.publish("orders", "missed as well")
        assert bus.health().state == "live"
        await bus.notify("orders", "after")
        gap = Gap("reconnected", "orders", 2, None)
        assert await take(orders, 3) == ["before", gap, "after"]
        assert await take(other, 1) == [Gap("reconnected", "other", 2, None)]


async def test_a_gap_ends_with_its_block_whatever_happens() -> None:
    async with MemoryBus(["orders"]) as bus:
        with pytest.raises(ZeroDivisionError):
            async with bus.gap():
                raise ZeroDivisionError
        assert (await bus.wait_until("live", timeout=5)).generation == 2


async def test_down_takes_everything_away_until_up() -> None:
    recorder = RecordingObserver()
    async with MemoryBus(["orders"], observer=recorder) as bus:
        orders = subscribe(bus)
        await bus.notify("orders", "before")
        publisher = bus.publisher()
        async with publisher:
            await publisher.publish("orders", "before, too")
            await publisher.flush()
            await bus.down()
            assert bus.health().state == "down"
            await bus.down()
            with pytest.raises(ConnectError, match="refuses"):
                await bus.notify("orders", "not sent")
            waiting = asyncio.create_task(bus.listen("later"))
            await publisher.publish("orders", "kept")
            await recorder.wait_for(observe.PublishDelayed)
            async with bus.transaction() as transaction:
                await transaction.notify("orders", "missed")
            await recorder.wait_for(observe.ConnectFailed, 3)
            assert not waiting.done()
            assert await bus.up() == 2
            await publisher.flush()
        assert bus.health().state == "live"
        await bus.notify("later", "heard")
        assert await (await waiting).recv() == "heard"
        gap = Gap("reconnected", "orders", 2, None)
        assert await take(orders, 4) == ["before", "before, too", gap, "kept"]
    assert recorder.count(observe.LinkDown) == 1


async def test_a_bus_that_is_down_cannot_be_entered() -> None:
    bus = MemoryBus(["orders"])
    await bus.down()
    with pytest.raises(ConnectError):
        async with bus:
            pass
    other = MemoryBus(["orders"])
    await other.down()
    assert await other.up() == 0
    async with other:
        assert other.health().generation == 1


async def test_a_server_connects_buses_and_each_loses_it_alone() -> None:
    server = MemoryServer()
    async with (
        MemoryBus(["orders"], server=server) as one,
        MemoryBus(["orders"], server=server) as two,
    ):
        ones, twos = subscribe(one), subscribe(two)
        assert one.server is two.server is server
        async with one.gap():
            await two.notify("orders", "missed by one")
            assert two.health().generation == 1
        await one.notify("orders", "heard by both")
        assert await take(ones, 2) == [Gap("reconnected", "orders", 2, None), "heard by both"]
        assert await take(twos, 2) == ["missed by one", "heard by both"]
        assert await two.reconnect() == 2
        assert one.health().generation == 2


async def test_nothing_is_left_on_the_server() -> None:
    server = MemoryServer()
    async with MemoryBus(["orders"], server=server) as bus:
        await bus.notify("orders")
        async with bus.publisher() as publisher:
            await publisher.publish("orders", "x")
        async with bus.transaction():
            assert repr(server) == "<MemoryServer sessions=3>"
            await bus.reconnect()
    assert repr(server) == "<MemoryServer sessions=0>"


async def test_a_cancelled_transaction_sends_nothing() -> None:
    async with MemoryBus(["orders"]) as bus:
        orders = subscribe(bus)

        async def work() -> None:
            async with bus.transaction() as transaction:
                await transaction.notify("orders", "never")
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        for _ in range(5):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait({working})
        await bus.notify("orders", "end")
        assert await take(orders, 1) == ["end"]


async def test_a_transaction_over_a_killed_session_fails() -> None:
    server = MemoryServer()
    session = server.session()
    await session.execute("BEGIN")
    assert server.kill(session.pid) == "true"
    assert server.kill(session.pid) == "false"
    with pytest.raises(LinkLost, match="administrator"):
        await session.execute("COMMIT")
    assert server.status(2) == "aborted"


async def test_it_says_that_there_is_no_database() -> None:
    session = MemoryServer().session()
    for statement in (session.execute("DELETE FROM orders"), session.fetch("SELECT 1")):
        with pytest.raises(ServerError, match="pgnotifybus_dsn"):
            await statement
    with pytest.raises(FatalLinkError, match="no database behind it"):
        await MemoryBus()._connector.borrow("consumer", 1.0)


async def test_killing_waits_for_a_link_and_not_for_ever() -> None:
    bus = MemoryBus(["orders"])
    async with bus:
        await bus.down()
        with pytest.raises(
            TimeoutError, match=r"the bus is down and has no new link after 0\.05 s"
        ):
            await kill_link(bus, timeout=0.05)
        killing = asyncio.create_task(kill_link(bus))
        await asyncio.sleep(0)
        await bus.up()
        assert await killing == 3
        await bus.down()
        waiting = asyncio.create_task(kill_link(bus))
        await asyncio.sleep(0)
    with pytest.raises(Closed):
        await waiting


async def test_a_probe_is_answered() -> None:
    recorder = RecordingObserver()
    async with MemoryBus(["orders"], probe_interval=0.01, observer=recorder) as bus:
        await recorder.wait_for(observe.ProbeAnswered, 2)
        assert bus.health().last_probe_at is not None
