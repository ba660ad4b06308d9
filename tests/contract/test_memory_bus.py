"""What users test against in memory is what they run: one suite for the real bus and for that one.

The real one is on PostgreSQL 18, over both drivers; transactions there are psycopg's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import psycopg
import pytest

from pgnotifybus import (
    Channel,
    Closed,
    Gap,
    InvalidChannel,
    Lagged,
    Notification,
    PayloadTooLarge,
    PgNotifyBus,
    notify,
    observe,
)
from pgnotifybus.core.names import MAX_PAYLOAD_BYTES
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import MemoryBus, MemoryServer, RecordingObserver, kill_link
from support.payloads import noise

Items = AsyncIterator[Any]


class Transaction(Protocol):
    """What both kinds of transaction can do."""

    async def notify(self, channel: Any, payload: Any = "", *, envelope: Any = None) -> None: ...
    def savepoint(self) -> AbstractAsyncContextManager[None]: ...


class Psycopg:
    """A transaction of psycopg, as users have one."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection

    async def notify(self, channel: Any, payload: Any = "", *, envelope: Any = None) -> None:
        await notify(self._connection, channel, payload, envelope=envelope)

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        async with self._connection.transaction():
            yield


class Real:
    """Buses on a server."""

    def __init__(self, dsn: str, driver: Driver) -> None:
        self._dsn, self._driver = dsn, driver

    def bus(self, *channels: str, capacity: int = 256, observer: Any = None) -> PgNotifyBus:
        return PgNotifyBus(
            self._dsn,
            channels,
            capacity=capacity,
            driver=self._driver,
            backoff_initial=0.01,
            observer=observer,
        )

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with (
            await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection,
            connection.transaction(),
        ):
            yield Psycopg(connection)


class InMemory:
    """Buses in memory."""

    def __init__(self) -> None:
        self._server = MemoryServer()

    def bus(self, *channels: str, capacity: int = 256, observer: Any = None) -> PgNotifyBus:
        return MemoryBus(channels, server=self._server, capacity=capacity, observer=observer)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self._server.transaction()


World = Real | InMemory


@pytest.fixture(params=["memory", "psycopg", "asyncpg"])
def world(request: pytest.FixtureRequest, pg18: EmbeddedServer) -> World:
    return InMemory() if request.param == "memory" else Real(pg18.dsn, request.param)


def items_of(bus: PgNotifyBus, channel: str) -> Items:
    receiver = bus.subscribe(channel)
    assert receiver is not None
    return receiver.events()


async def take(items: Items, count: int) -> list[Any]:
    """The next items, by their payloads where they are notifications."""
    async with asyncio.timeout(10):
        taken = [await anext(items) for _ in range(count)]
    return [each.payload if isinstance(each, Notification) else each for each in taken]


# -- what is sent ---------------------------------------------------------------------------------


async def test_everything_arrives_in_the_order_of_commits(world: World) -> None:
    async with world.bus("a", "b") as bus:
        a, b = items_of(bus, "a"), items_of(bus, "b")
        async with world.transaction() as early:
            await early.notify("a", "committed last")
            async with world.transaction() as late:
                await late.notify("a", "1")
                await late.notify("b", "2")
                await late.notify("a", "3")
            await bus.notify("a", "4")
        assert await take(a, 4) == ["1", "3", "4", "committed last"]
        assert await take(b, 1) == ["2"]
        await bus.notify("c", "nobody listens")
        assert bus.statistics().received == 5


async def test_the_same_twice_in_a_transaction_arrives_once(world: World) -> None:
    """In the place of the first; other channels, payloads and transactions are not the same."""
    async with world.bus("a", "b") as bus:
        a, b = items_of(bus, "a"), items_of(bus, "b")
        for _ in range(2):
            async with world.transaction() as transaction:
                for payload in ("1", "2", "1", "3", "2"):
                    await transaction.notify("a", payload)
                await transaction.notify("b", "1")
        assert await take(a, 6) == ["1", "2", "3"] * 2
        assert await take(b, 2) == ["1", "1"]


async def test_what_is_rolled_back_is_not_sent(world: World) -> None:
    async with world.bus("a") as bus:
        a = items_of(bus, "a")
        with contextlib.suppress(ZeroDivisionError):
            async with world.transaction() as transaction:
                await transaction.notify("a", "never")
                raise ZeroDivisionError
        async with world.transaction() as transaction:
            await transaction.notify("a", "1")
            with contextlib.suppress(ZeroDivisionError):
                async with transaction.savepoint():
                    await transaction.notify("a", "undone")
                    async with transaction.savepoint():
                        await transaction.notify("a", "undone with it")
                    raise ZeroDivisionError
            await transaction.notify("a", "undone")  # which was not sent before
            await transaction.notify("a", "2")
        assert await take(a, 3) == ["1", "undone", "2"]


async def test_duplicates_collapse_across_savepoints(world: World) -> None:
    async with world.bus("a") as bus:
        a = items_of(bus, "a")
        async with world.transaction() as transaction:
            await transaction.notify("a", "1")
            async with transaction.savepoint():
                await transaction.notify("a", "2")
                async with transaction.savepoint():
                    await transaction.notify("a", "3")
                    await transaction.notify("a", "1")
                await transaction.notify("a", "3")
            await transaction.notify("a", "2")
            await transaction.notify("a", "4")
        assert await take(a, 4) == ["1", "2", "3", "4"]
        await bus.notify("a", "end")
        assert await take(a, 1) == ["end"]


@pytest.mark.parametrize("through", ["bus", "transaction"])
async def test_what_postgresql_cannot_carry_is_refused(world: World, through: str) -> None:
    """A refusal leaves the transaction as it was."""
    fits = noise(MAX_PAYLOAD_BYTES)
    async with world.bus("a") as bus:
        a = items_of(bus, "a")
        async with world.transaction() as transaction:
            send: Callable[..., Any] = bus.notify if through == "bus" else transaction.notify
            for channel in ("", "a\0b", "é" * 32, "a" * 64, 1):
                with pytest.raises(InvalidChannel):
                    await send(channel, "x")
            with pytest.raises(ValueError, match="NUL"):
                await send("a", "x\0")
            with pytest.raises(TypeError):
                await send("a", 1)
            with pytest.raises(PayloadTooLarge, match="Install the spill table") as caught:
                await send("a", noise(MAX_PAYLOAD_BYTES + 1))
            assert (caught.value.size, caught.value.limit) == (8_000, 7_999)
            await send("a", fits)
            await send("a", "x" * 100_000)  # compressed, it fits
        assert await take(a, 2) == [fits, "x" * 100_000]


async def test_a_publisher_sends_in_batches(world: World) -> None:
    odd = 'quote " back \\ brace {} comma , new\nline \\\n žluťoučký 🐎'
    async with world.bus("a", "b") as bus:
        a, b = items_of(bus, "a"), items_of(bus, "b")
        async with bus.publisher() as publisher:
            for payload in ("1", odd, "", "NULL", "1"):
                await publisher.publish("a", payload)
            await publisher.publish("b", "2")
            with pytest.raises(InvalidChannel):
                await publisher.publish("", "x")
        assert await take(a, 5) == ["1", odd, "", "NULL", "1"]
        assert await take(b, 1) == ["2"]


async def test_envelopes_and_types(world: World) -> None:
    numbers = Channel("numbers", int)
    async with world.bus("numbers") as bus, world.bus() as other:
        receiver = bus.subscribe(numbers)
        assert receiver is not None
        await bus.notify(numbers, 1, envelope=bus.envelope(timed=True))
        await other.notify(numbers, 2, envelope=other.envelope())
        async with world.transaction() as transaction:
            await transaction.notify("numbers", "many")
            await transaction.notify(numbers, 3)
        items = receiver.events()
        async with asyncio.timeout(10):
            mine, theirs, malformed, last = [await anext(items) for _ in range(4)]
        assert isinstance(mine, Notification)
        assert isinstance(theirs, Notification)
        assert isinstance(last, Notification)
        assert (mine.payload, mine.origin) == (1, bus.origin)
        assert mine.sent_at is not None
        assert (theirs.payload, theirs.origin, theirs.sent_at) == (2, other.origin, None)
        assert "not of the channel's type" in str(malformed)
        assert (last.payload, last.origin) == (3, None)
        assert len({mine.pid, theirs.pid, last.pid}) == 3


# -- who receives ---------------------------------------------------------------------------------


async def test_channels_at_run_time_are_left_with_their_last_receiver(world: World) -> None:
    recorder = RecordingObserver()
    async with world.bus("a", observer=recorder) as bus:
        assert bus.channels() == ["a"]
        a = items_of(bus, "a")
        assert bus.subscribe("b") is None
        with pytest.raises(InvalidChannel):
            await bus.listen("")
        await bus.notify("b", "too early")
        first, second = await bus.listen("b"), await bus.listen("b")
        await bus.notify("b", "1")
        assert [await first.recv(), await second.recv()] == ["1", "1"]
        first.close()
        await bus.notify("b", "2")
        assert await second.recv() == "2"
        second.close()
        await recorder.wait_for(observe.ChannelsChanged, where=lambda e: "b" in e.unlistened)
        assert set(bus.statistics().channels) == {"a"}
        await bus.notify("b", "nobody")
        await bus.notify("a", "behind it")
        assert await take(a, 1) == ["behind it"]
        assert (bus.statistics().received, bus.statistics().unrouted) == (3, 0)
        again = await bus.listen("b")
        await bus.notify("b", "3")
        assert await again.recv() == "3"


async def test_a_receiver_that_is_too_slow_is_told_how_much_it_lost(world: World) -> None:
    async with world.bus("a", capacity=4) as bus:
        slow, witness = bus.subscribe("a"), bus.subscribe("a")
        assert slow is not None
        assert witness is not None
        for number in range(10):
            await bus.notify("a", str(number))
            assert await witness.recv() == str(number)
        with pytest.raises(Lagged) as caught:
            await slow.recv()
        assert caught.value.skipped == 6
        assert await slow.recv_many() == ["6", "7", "8", "9"]
        assert bus.statistics().channels["a"].received == 10


# -- losing the link ------------------------------------------------------------------------------


async def test_a_lost_link_is_one_generation_and_one_gap_in_its_place(world: World) -> None:
    recorder = RecordingObserver()
    async with world.bus("a", "b", observer=recorder) as bus:
        generations = bus.subscribe_reconnects()
        assert generations.borrow() == bus.health().generation == 1
        receivers = {"a": bus.subscribe("a"), "b": bus.subscribe("b"), "c": await bus.listen("c")}
        for name in receivers:
            await bus.notify(name, "before")
        for receiver in receivers.values():
            assert receiver is not None
            await until_arrived(receiver)
        assert await kill_link(bus) == 2
        assert generations.borrow_and_update() == bus.health().generation == 2
        assert bus.health().state == "live"
        for name, receiver in receivers.items():
            assert receiver is not None
            await bus.notify(name, "after")
            gap = Gap("reconnected", name, 2, None)
            assert await take(receiver.events(), 3) == ["before", gap, "after"]
        assert recorder.count(observe.LinkUp) == 2
        assert recorder.count(observe.LinkDown) == 1
    told = [event.new for event in recorder.of(observe.StateChanged)]
    assert told == ["connecting", "live", "down", "live", "stopped"]


async def until_arrived(receiver: Subscription) -> None:
    """Wait until something is there to be read, without reading it."""
    async with asyncio.timeout(10):
        while not len(receiver):
            await receiver._shared.parking.park()


async def test_a_bus_that_has_ended_says_so(world: World) -> None:
    bus = world.bus("a")
    assert bus.health().state == "new"
    receiver = bus.subscribe("a")
    assert receiver is not None
    with pytest.raises(RuntimeError, match="not running"):
        await bus.notify("a", "x")
    with pytest.raises(RuntimeError, match="not running"):
        await kill_link(bus)
    async with bus:
        assert (await bus.wait_until("live", timeout=1)).state == "live"
        await bus.notify("a", "unread")
        await until_arrived(receiver)
    assert bus.health().state == "stopped"
    assert await receiver.recv() == "unread"
    with pytest.raises(Closed):
        await receiver.recv()
    for ended in (bus.notify("a", "x"), bus.listen("b"), kill_link(bus)):
        with pytest.raises(Closed):
            await ended
    with pytest.raises(RuntimeError, match="once"):
        await bus.run(asyncio.Event())


async def test_run_until_shutdown(world: World) -> None:
    bus, shutdown = world.bus("a"), asyncio.Event()
    running = asyncio.create_task(bus.run(shutdown))
    await bus.wait_until("live", timeout=10)
    shutdown.set()
    await running
    assert bus.health().state == "stopped"
