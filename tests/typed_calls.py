"""Typical calls, which are type-checked and never run: what a user's type checker will see."""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

from pgnotifybus import (
    ChannelStatistics,
    Gap,
    Health,
    Lagged,
    Notification,
    PgNotifyBus,
    Statistics,
    broadcast,
    observe,
    watch,
)
from pgnotifybus.channels import Subscription


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
            case Gap(reason="lagged", skipped=skipped):
                assert_type(skipped, int | None)
            case Gap():
                pass


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
    return PgNotifyBus(dsn, ("orders",), observer=on_event)


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
