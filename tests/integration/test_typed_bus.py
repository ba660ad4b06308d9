"""Typed channels over a real bus: values in, values out, and nothing stops at what is malformed."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, assert_type

import msgspec
import pydantic
import pytest

from pgnotifybus import (
    Channel,
    Gap,
    Lagged,
    Malformed,
    Notification,
    PgNotifyBus,
    notify,
    notify_sync,
    schema,
)
from pgnotifybus.subscription import TypedSubscription
from support.callers import opened
from support.notifying import foreign, subscribed
from support.payloads import noise

LARGE = noise(12_000)


class Struct(msgspec.Struct):
    id: int
    note: str = ""


@dataclasses.dataclass
class Data:
    id: int
    note: str = ""


class Model(pydantic.BaseModel):
    id: int
    note: str = ""


TYPES = [Struct, Data, Model]


@pytest.fixture(params=TYPES, ids=lambda cls: cls.__name__)
def order(request: pytest.FixtureRequest) -> Any:
    """A class of each package that makes types."""
    return request.param


async def values(receiver: TypedSubscription[Any], count: int) -> list[Any]:
    """The next values, waited for."""
    async with asyncio.timeout(20):
        return [await receiver.recv() for _ in range(count)]


async def test_values_arrive_as_they_were_sent(database: str, order: Any) -> None:
    """Whoever sends them and however large they are; by name or by typed channel."""
    await schema.install(database)
    orders = Channel("orders", order)
    async with PgNotifyBus(database, [orders], capacity=100) as bus:
        receiver = bus.subscribe(orders)
        assert receiver is not None
        dynamic = await bus.listen(Channel("more orders", order))
        await bus.notify(orders, order(id=1))
        async with opened("asyncpg", database) as caller, caller.transaction():
            await notify(caller.connection, orders, order(id=2, note="é"))
        async with opened("session-sync", database) as caller, caller.transaction():
            notify_sync(caller.connection, orders, order(id=3, note=LARGE))
        await foreign(database, "orders", '{"id": 4}')
        await bus.notify(Channel("more orders", order), order(id=5, note="x" * 9_000))
        assert await values(receiver, 4) == [
            order(id=1),
            order(id=2, note="é"),
            order(id=3, note=LARGE),
            order(id=4),
        ]
        assert await values(dynamic, 1) == [order(id=5, note="x" * 9_000)]


async def test_a_value_of_another_type_is_refused_before_it_is_sent(
    database18: str, order: Any
) -> None:
    orders: Channel[Any] = Channel("orders", order)
    async with PgNotifyBus(database18, [orders]) as bus, opened("psycopg", database18) as caller:
        receiver = bus.subscribe(orders)
        assert receiver is not None
        async with caller.transaction():
            for wrong in ({"id": 1}, '{"id":1}', 1, None):
                with pytest.raises(TypeError, match=f"takes {order.__name__}"):
                    await notify(caller.connection, orders, wrong)
                with pytest.raises(TypeError, match=f"takes {order.__name__}"):
                    await bus.notify(orders, wrong)
            with pytest.raises(ValueError, match="cannot be sent"):
                await notify(caller.connection, orders, order(id=1, note="\ud800"))
            await notify(caller.connection, orders, order(id=1, note="\0"))
        assert await values(receiver, 1) == [order(id=1, note="\0")], "JSON can tell a NUL"


BAD = ["not JSON", "", "[]", '{"id": "seven"}', "{}", '{"id": 7', "\x01pgnb1;z=1\x02", LARGE]


async def test_what_is_malformed_stops_nobody(database: str, order: Any) -> None:
    """`recv` raises with the raw payload; `events` yields it; typed and raw receivers go on."""
    await schema.install(database)
    orders = Channel("orders", order)
    async with PgNotifyBus(database, [orders], capacity=100) as bus:
        receivers = [bus.subscribe(orders) for _ in range(4)]
        receiver, watching, iterating, batches = (each for each in receivers if each is not None)
        raw, other = subscribed(bus, "orders"), bus.subscribe(Channel("orders"))
        assert other is not None
        payloads = ['{"id":1}']
        for number, bad in enumerate(BAD, 2):
            payloads += [bad, f'{{"id":{number}}}']
        async with opened("psycopg", database) as caller, caller.transaction():
            for payload in payloads:
                await caller.notify("orders", payload)
        good = [order(id=number) for number in range(1, len(BAD) + 2)]

        for value, bad in zip(good, BAD, strict=False):
            assert await values(receiver, 1) == [value]
            with pytest.raises(Malformed, match="channel 'orders'") as malformed:
                await values(receiver, 1)
            assert malformed.value.payload == bad
            assert malformed.value.reason in str(malformed.value)
            assert LARGE not in str(malformed.value)
        assert await values(receiver, 1) == good[-1:]

        events = watching.events()
        async with asyncio.timeout(20):
            seen = [await anext(events) for _ in payloads]
        assert [event.payload for event in seen if isinstance(event, Notification)] == good
        assert [event.payload for event in seen if isinstance(event, Malformed)] == BAD
        assert [isinstance(event, Malformed) for event in seen] == [False, True] * len(BAD) + [
            False
        ]

        looped: list[Any] = []
        async with asyncio.timeout(20):
            while len(looped) < len(good):
                try:
                    async for value in iterating:
                        looped.append(value)
                        if len(looped) == len(good):
                            break
                except Malformed:
                    continue
        assert looped == good

        batched: list[Any] = []
        refused = 0
        async with asyncio.timeout(20):
            while len(batched) < len(good):
                try:
                    batched += await batches.recv_many()
                except Malformed:
                    refused += 1
        assert (batched, refused) == (good, len(BAD))

        async with asyncio.timeout(20):
            assert await raw.recv_many(limit=100) == payloads
        account = receiver.statistics()
        assert (account.delivered, account.skipped, account.unread) == (len(payloads), 0, 0)
        assert await values(other, 1) == [{"id": 1}]


async def test_each_receiver_has_values_of_its_own(database18: str) -> None:
    """What one does to them, no other sees."""
    orders = Channel("orders", Data)
    async with PgNotifyBus(database18, [orders]) as bus:
        one, two = bus.subscribe(orders), bus.subscribe(orders)
        assert one is not None
        assert two is not None
        await bus.notify(orders, Data(1))
        (mine,) = await values(one, 1)
        mine.note = "changed"
        assert await values(two, 1) == [Data(1)]


async def test_gaps_are_told_to_typed_receivers_in_their_place(database18: str) -> None:
    """A lag, and a payload whose row is gone."""
    await schema.install(database18)
    orders = Channel("orders", Struct)
    async with PgNotifyBus(database18, [orders], capacity=3) as bus:
        receiver, watching = bus.subscribe(orders), bus.subscribe(orders)
        assert receiver is not None
        assert watching is not None
        async with opened("psycopg", database18) as caller, caller.transaction():
            for number in range(1, 6):
                await notify(caller.connection, orders, Struct(number))
            await notify(caller.connection, orders, Struct(6, LARGE))
            await caller.fetch("DELETE FROM pgnotifybus.payloads")
            await notify(caller.connection, orders, Struct(7))
        await foreign(database18, "orders", "{")
        async with asyncio.timeout(20):
            while bus.statistics().received < 8:
                await watching._shared.parking.park()
        with pytest.raises(Lagged) as lagged:
            await values(receiver, 1)
        assert lagged.value.skipped == 5
        events = watching.events()
        async with asyncio.timeout(20):
            seen = [await anext(events) for _ in range(4)]
        assert seen[:2] == [Gap("lagged", "orders", 1, 5), Gap("expired", "orders", 1, 1)]
        assert isinstance(seen[2], Notification)
        assert seen[2].payload == Struct(7)
        assert isinstance(seen[3], Malformed)


async def test_what_a_type_checker_sees(database18: str) -> None:
    orders = Channel("orders", Struct)
    async with PgNotifyBus(database18, [orders, "plain"]) as bus:
        receiver = bus.subscribe(orders)
        assert receiver is not None
        assert_type(receiver, TypedSubscription[Struct])
        assert_type(await bus.listen(orders), TypedSubscription[Struct])
        await bus.notify(orders, Struct(1))
        value = await receiver.recv()
        assert_type(value, Struct)
        await bus.notify(orders, Struct(2))
        async for event in receiver.events():
            assert_type(event, Notification[Struct] | Malformed | Gap)
            if isinstance(event, Notification):
                assert_type(event.payload, Struct)
            break
        assert bus.channels() == ["orders", "plain"]
        assert bus.subscribe(Channel("unregistered", Struct)) is None
