"""Typical calls, which are type-checked and never run: what a user's type checker will see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypedDict, assert_never, assert_type

import msgspec
import pydantic

from pgnotifybus import (
    Channel,
    ChannelStatistics,
    Cursor,
    Envelope,
    Event,
    EventLog,
    Gap,
    Health,
    Lagged,
    LogStatistics,
    Malformed,
    Notification,
    PayloadLost,
    PgNotifyBus,
    Publisher,
    PublisherStatistics,
    PublishFailed,
    Statistics,
    broadcast,
    notify,
    notify_sync,
    observe,
    schema,
    triggers,
    watch,
)
from pgnotifybus.metrics import opentelemetry, prometheus
from pgnotifybus.subscription import Subscription, TypedSubscription
from pgnotifybus.testing import (
    FaultProxy,
    MemoryBus,
    MemoryServer,
    MemoryTransaction,
    RecordingObserver,
    kill_link,
)


class Order(msgspec.Struct):
    id: int


class User(pydantic.BaseModel):
    id: int


@dataclass
class Paid:
    id: int


@dataclass
class Cancelled:
    id: int


class Row(TypedDict):
    id: int


orders = Channel("orders", Order)
users = Channel("users", User)
lists = Channel("lists", list[Order])
rows = Channel("rows", Row)
plain = Channel("plain")
payments: Channel[Paid | Cancelled] = Channel("payments", Paid | Cancelled)
counts: Channel[int] = Channel("counts", Annotated[int, msgspec.Meta(ge=0)])


async def subscribe(dsn: str) -> None:
    async with PgNotifyBus(dsn, ["orders", "jobs"], capacity=1_000) as bus:
        assert_type(bus, PgNotifyBus)
        assert_type(bus.channels(), list[str])
        receiver = bus.subscribe("orders")
        assert_type(receiver, Subscription | None)
        assert receiver is not None
        assert_type(await receiver.recv(), str)
        assert_type(receiver.try_recv(), str)
        assert_type(await receiver.recv_many(limit=100), list[str])
        assert_type(len(receiver), int)
        async for payload in receiver:
            assert_type(payload, str)


async def follow(bus: PgNotifyBus) -> None:
    receiver = await bus.listen("order:7")
    assert_type(receiver, Subscription)
    async for event in receiver.events():
        assert_type(event, Notification | Gap)
        match event:
            case Notification(channel, payload, pid, generation):
                assert_type((channel, payload, pid, generation), tuple[str, str, int, int])
                assert_type((event.origin, event.sent_at), tuple[str | None, float | None])
                assert_type(event.traceparent, str | None)
            case Gap(reason="lagged", skipped=skipped):
                assert_type(skipped, int | None)
            case Gap(reason="expired" | "unreadable"):
                pass
            case Gap():
                pass


def channels() -> None:
    assert_type(orders, Channel[Order])
    assert_type(users, Channel[User])
    assert_type(lists, Channel[list[Order]])
    assert_type(rows, Channel[Row])
    assert_type(plain, Channel[Any])
    assert_type(Channel("payments", Paid | Cancelled), Channel[Any])
    assert_type(orders.name, str)
    assert_type(orders.encode(Order(7)), str)
    assert_type(orders.decode("{}"), Order)
    assert_type(payments.decode("{}"), Paid | Cancelled)
    payments.encode(Paid(1))
    plain.encode({"anything": [1, None]})
    orders.encode(User(id=7))  # type: ignore[arg-type]
    orders.encode('{"id":7}')  # type: ignore[arg-type]
    payments.encode(Order(1))  # type: ignore[arg-type]
    lists.encode(Order(1))  # type: ignore[arg-type]
    orders.name = "other"  # type: ignore[misc]
    Channel(7, Order)  # type: ignore[call-overload]
    Channel()  # type: ignore[call-overload]


async def subscribe_typed(dsn: str) -> None:
    async with PgNotifyBus(dsn, [orders, users, "jobs"]) as bus:
        receiver = bus.subscribe(orders)
        assert_type(receiver, TypedSubscription[Order] | None)
        assert receiver is not None
        assert_type(await receiver.recv(), Order)
        assert_type(receiver.try_recv(), Order)
        assert_type(await receiver.recv_many(limit=100), list[Order])
        async for order in receiver:
            assert_type(order, Order)
        assert_type(receiver.resubscribe(), TypedSubscription[Order])
        assert_type(receiver.statistics(), broadcast.ReceiverStatistics)
        assert_type(bus.subscribe("jobs"), Subscription | None)
        bus.subscribe(Order)  # type: ignore[call-overload]
        PgNotifyBus(dsn, [orders, 7])  # type: ignore[list-item]


async def follow_typed(bus: PgNotifyBus) -> None:
    receiver = await bus.listen(payments)
    assert_type(receiver, TypedSubscription[Paid | Cancelled])
    assert_type(await bus.listen(plain), TypedSubscription[Any])
    async for event in receiver.events():
        assert_type(event, Notification[Paid | Cancelled] | Malformed | Gap)
        match event:
            case Notification(payload=Paid(number)):
                assert_type(number, int)
            case Notification():
                assert_type(event.payload, Paid | Cancelled)
            case Malformed():
                assert_type((event.channel, event.payload, event.reason), tuple[str, str, str])
            case Gap():
                assert_type(event.skipped, int | None)
            case _:
                assert_never(event)


async def missing(receiver: TypedSubscription[Order]) -> str:
    try:
        await receiver.recv()
    except Malformed as malformed:
        return assert_type(malformed.payload, str)
    except PayloadLost as lost:
        return assert_type(lost.reason, str)
    return ""


async def send(bus: PgNotifyBus) -> None:
    await bus.notify(orders, Order(7))
    await bus.notify(rows, Row(id=7))  # mypy takes a literal for any dict, though encode is fine
    rows.encode({"id": 7})
    await bus.notify(plain, [1, "two"])
    await bus.notify("orders", "42", envelope=bus.envelope(timed=True))
    await bus.notify(orders, Order(7), envelope=Envelope("me", traceparent=lambda: None))
    await bus.notify(orders, "42")  # type: ignore[misc]
    await bus.notify(orders)  # type: ignore[call-overload]
    await bus.notify("orders", Order(7))  # type: ignore[call-overload]
    await bus.notify("orders", "42", Envelope())  # type: ignore[call-overload]
    assert_type(bus.origin, str)


async def publish(bus: PgNotifyBus) -> None:
    async with bus.publisher(batch_size=100, delivery="at-most-once") as publisher:
        assert_type(publisher, Publisher)
        await publisher.publish("orders", "42")
        await publisher.publish("orders", "42", "key")
        await publisher.publish(orders, Order(7), key="7")
        publisher.try_publish(payments, Cancelled(1), envelope=Envelope("me"))
        publisher.try_publish("orders")
        await publisher.publish(orders, User(id=7))  # type: ignore[misc]
        await publisher.publish("orders", Order(7))  # type: ignore[call-overload]
        await publisher.publish(orders, Order(7), 7)  # type: ignore[call-overload]
        publisher.try_publish(orders, "42")  # type: ignore[misc]
        publisher.try_publish(orders)  # type: ignore[call-overload]
        assert_type(publisher.statistics(), PublisherStatistics)
        try:
            await publisher.flush()
        except PublishFailed as failed:
            assert_type(failed.unsent, list[tuple[str, str]])
            assert_type(failed.unknown, list[tuple[str, str]])
    bus.publisher(delivery="exactly-once")  # type: ignore[arg-type]


async def in_a_transaction(connection: Any) -> None:
    await notify(connection, "orders", "42")
    await notify(connection, "orders")
    await notify(connection, orders, Order(7), schema="events")
    await notify(connection, orders, "42")  # type: ignore[misc]
    await notify(connection, "orders", 42)  # type: ignore[call-overload]
    notify_sync(connection, orders, Order(7), envelope=Envelope(timed=True))
    notify_sync(connection, orders)  # type: ignore[call-overload]
    notify_sync(connection, "orders", Order(7))  # type: ignore[call-overload]


async def lag(receiver: broadcast.Receiver[str]) -> int:
    try:
        await receiver.recv()
    except Lagged as lagged:
        return assert_type(lagged.skipped, int)
    assert_type(receiver.statistics(), broadcast.ReceiverStatistics)
    assert_type(receiver.resubscribe(), broadcast.Receiver[str])
    return 0


async def run(dsn: str) -> None:
    bus = PgNotifyBus(dsn, ["orders"], driver="asyncpg", probe_interval=None)
    reconnects = bus.subscribe_reconnects()
    assert_type(reconnects, watch.Receiver[int])
    assert_type(reconnects.borrow(), int)
    assert_type(await reconnects.wait_for(lambda generation: generation > 1), int)
    await bus.run(asyncio.Event())
    sender, shutdown = watch.channel(False)
    assert_type(sender, watch.Sender[bool])
    await bus.run(shutdown)
    await bus.notify("orders", "42")
    await bus.notify("orders")


def look(bus: PgNotifyBus) -> None:
    assert_type(bus.health(), Health)
    assert_type(bus.statistics(), Statistics)
    assert_type(bus.statistics().channels, dict[str, ChannelStatistics])


def on_event(event: observe.Event) -> None:
    match event:
        case observe.LinkUp(generation=generation):
            assert_type(generation, int)
        case observe.LinkDown(retry_in=seconds):
            assert_type(seconds, float)
        case _:
            pass


def observed(dsn: str) -> PgNotifyBus:
    several: list[observe.Event] = []
    bus = PgNotifyBus(dsn, ("orders",), observer=[on_event, several.append])
    assert_type(bus.add_observer(lambda event: None), Callable[[], None])
    return PgNotifyBus(dsn, ("orders",), observer=on_event)


def exported(bus: PgNotifyBus, log: EventLog) -> None:
    assert_type(log.health(), Health)
    assert_type(prometheus.instrument(bus), prometheus.Instrumentation)
    with opentelemetry.instrument(log, name="log", channels=False) as instrumented:
        assert_type(instrumented, opentelemetry.Instrumentation)


async def primitives() -> None:
    sender: broadcast.Sender[int]
    receiver: broadcast.Receiver[int]
    sender, receiver = broadcast.channel(16)
    assert_type(sender.send(1), int)
    assert_type(sender.send_many([2, 3]), int)
    assert_type(await receiver.recv(), int)
    async for event in receiver.events():
        assert_type(event, int | Gap)
    settings, changes = watch.channel({"debug": False})
    assert_type(settings.borrow(), dict[str, bool])
    assert_type(settings.send_if_different({"debug": True}), bool)
    await changes.changed()
    assert_type(changes.borrow_and_update(), dict[str, bool])


async def sources(pool: Any, engine: Any) -> list[PgNotifyBus]:
    async def connect() -> object:
        return pool

    return [PgNotifyBus(source, []) for source in (pool, engine, connect, "postgresql://")]


async def installing() -> None:
    assert_type(await schema.install("postgresql://"), bool)
    assert_type(await schema.prune("postgresql://"), int)
    assert_type(await triggers.install("postgresql://", "orders", channel="orders"), bool)
    assert_type(await triggers.remove("postgresql://", "orders"), int)
    for each in await triggers.list("postgresql://"):
        assert_type(each, triggers.InstalledTrigger)
        assert_type(each.channel, str)
    await triggers.install("postgresql://", "orders")  # type: ignore[call-arg]


async def appending(connection: Any) -> None:
    log = EventLog("postgresql://")
    assert_type(await log.append(connection, "orders", {"id": 1}, key="1"), int)
    assert_type(await log.append(connection, orders, Order(1)), int)
    assert_type(await log.append_many(connection, "orders", ["1"], keys=[None]), list[int])
    assert_type(log.append_sync(connection, "orders", "1", headers={"trace": 1}), int)


async def following(log: EventLog, cursor: Cursor) -> None:
    async with log.follow("orders", "invoices", after=cursor) as follower:
        async for event in follower:
            assert_type(event, Event[str])
            assert_type(event.cursor, Cursor)
        assert_type(await follower.recv_many(), list[Event[str]])
    async for order in log.follow(orders, after=str(cursor), live=False):
        assert_type(order, Event[Order])
        assert_type(order.payload.id, int)
    async for item in log.follow(orders, after=datetime.now(UTC), gaps=True):
        assert_type(item, Event[Order] | Gap)
    assert_type(await log.cursor(), Cursor)
    assert_type(log.statistics(), LogStatistics)


async def consuming(log: EventLog) -> None:
    async with log.consumer("billing", "orders") as consumer:
        async with consumer.batch(limit=10) as batch:
            assert_type(batch.events, list[Event[str]])
        assert_type((await consumer.lag()).events, int)
        assert_type(await consumer.replay(1, 2), int)
        await consumer.seek("now")


async def testing(dsn: str) -> None:
    observer = RecordingObserver()
    async with MemoryBus(["orders", orders], server=MemoryServer(), observer=observer) as bus:
        async with bus.transaction() as transaction, transaction.savepoint():
            assert_type(transaction, MemoryTransaction)
            await transaction.notify(orders, Order(1))
            await transaction.notify(orders, "1")  # type: ignore[misc]
        await bus.server.notify("orders", "1")
        async with bus.gap():
            await bus.notify("orders", "missed")
        assert_type(await bus.reconnect(), int)
        await bus.down()
        assert_type(await bus.up(), int)
        assert_type(await kill_link(bus, timeout=1), int)
    assert_type(await observer.wait_for(observe.LinkUp, 2), observe.LinkUp)
    await observer.wait_for(observe.LinkUp, where=lambda event: event.generation > 1)
    assert_type(await observer.wait_for(lambda event: event != observe.Stopped(1)), observe.Event)
    assert_type(observer.of(observe.LinkDown), list[observe.LinkDown])
    async with FaultProxy.in_front_of(dsn) as proxy:
        await proxy.stall("up")
        await proxy.stall("sideways")  # type: ignore[arg-type]
        assert_type(proxy.dsn, str)
