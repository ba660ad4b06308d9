"""Who sent it, when, and as part of which trace: only where it was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus import Envelope, Notification, PgNotifyBus, notify, schema
from pgnotifybus.subscription import Subscription
from support.callers import opened, sqlalchemy_url
from support.notifying import foreign, listening, subscribed, take
from support.payloads import noise

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
SIZES = {"inline": "x", "compressed": "x" * 9_000, "spilled": noise(12_000)}


async def events_of(receiver: Subscription, count: int) -> list[Notification]:
    """The next notifications; a gap among them fails the test."""
    events = receiver.events()
    async with asyncio.timeout(20):
        seen = [await anext(events) for _ in range(count)]
    assert all(isinstance(event, Notification) for event in seen), seen
    return [event for event in seen if isinstance(event, Notification)]


@contextlib.asynccontextmanager
async def pooled(kind: str, dsn: str) -> AsyncIterator[Any]:
    """A source that several buses share."""
    match kind:
        case "asyncpg-pool":
            # Two for the listeners, and one from which both of them borrow to send.
            async with asyncpg.create_pool(dsn, min_size=1, max_size=3) as pool:
                yield pool
        case "psycopg-pool":
            async with psycopg_pool.AsyncConnectionPool(
                dsn, min_size=1, max_size=2, open=False
            ) as pool:
                yield pool
        case _:
            engine = create_async_engine(sqlalchemy_url(dsn, "asyncpg"))
            yield engine
            await engine.dispose()


@pytest.mark.parametrize("kind", ["asyncpg-pool", "psycopg-pool", "engine"])
async def test_a_bus_tells_its_own_messages_from_those_of_another(database: str, kind: str) -> None:
    """Trap 24: behind a pool the PID says nothing, as both send over the same connection."""
    async with (
        pooled(kind, database) as source,
        PgNotifyBus(source, ["c"]) as one,
        PgNotifyBus(source, ["c"]) as two,
    ):
        assert one.origin != two.origin
        receivers = {bus: subscribed(bus, "c") for bus in (one, two)}
        for number in range(3):
            for name, bus in (("one", one), ("two", two)):
                await bus.notify("c", f"{name} {number}", envelope=bus.envelope())
        await foreign(database, "c", "from somebody else")
        seen = {bus: await events_of(receiver, 7) for bus, receiver in receivers.items()}
        for bus, theirs in ((one, "two"), (two, "one")):
            others = [event.payload for event in seen[bus] if event.origin != bus.origin]
            assert others == [f"{theirs} {number}" for number in range(3)] + ["from somebody else"]
        assert seen[one][-1].origin is None
        if kind == "asyncpg-pool":
            assert len({event.pid for event in seen[one][:-1]}) == 1


@pytest.mark.parametrize("size", [*SIZES])
async def test_all_of_it_arrives_with_a_payload_of_any_size(database: str, size: str) -> None:
    await schema.install(database)
    async with (
        PgNotifyBus(database, ["c"]) as bus,
        opened("asyncpg", database) as caller,
    ):
        receiver = subscribed(bus, "c")
        envelope = bus.envelope(timed=True, traceparent=TRACE)
        began = time.time()
        async with caller.transaction():
            await caller.notify("c", SIZES[size], envelope=envelope)
        await bus.notify("c", SIZES[size], envelope=envelope)
        async with bus.publisher(envelope=envelope) as publisher:
            await publisher.publish("c", SIZES[size])
            await publisher.flush()
        ended = time.time()
        events = await events_of(receiver, 3)
        for event in events:
            assert event.payload == SIZES[size]
            assert (event.origin, event.traceparent) == (bus.origin, TRACE)
            assert event.sent_at is not None
            # To the microsecond, which is rounded.
            assert began - 0.001 <= event.sent_at <= ended + 0.001
        times = [event.sent_at or 0.0 for event in events]
        assert times == sorted(times)


async def test_the_trace_is_asked_for_at_each_message(database18: str) -> None:
    """A function may also say that there is none, and what it raises reaches the sender."""
    numbers = itertools.count(1)

    def current() -> str | None:
        number = next(numbers)
        if number == 3:
            raise LookupError("no tracer")
        return None if number == 2 else f"00-{number:032x}-{number:016x}-01"

    async with PgNotifyBus(database18, ["c"]) as bus:
        receiver = subscribed(bus, "c")
        envelope = Envelope(traceparent=current)
        await bus.notify("c", "1", envelope=envelope)
        await bus.notify("c", "2", envelope=envelope)
        with pytest.raises(LookupError, match="no tracer"):
            await bus.notify("c", "3", envelope=envelope)
        await bus.notify("c", "4", envelope=envelope)
        assert [(event.payload, event.traceparent) for event in await events_of(receiver, 3)] == [
            ("1", f"00-{1:032x}-{1:016x}-01"),
            ("2", None),
            ("4", f"00-{4:032x}-{4:016x}-01"),
        ]


async def test_what_cannot_be_carried_is_refused_before_anything_is_sent(database18: str) -> None:
    for origin in ("", "a" * 65, "two words", "semi;colon", "\x02", "é", 42):
        with pytest.raises(ValueError, match="an origin must be"):
            Envelope(origin=origin)  # type: ignore[arg-type]
    for trace in ("", "00-1-2-3", TRACE.upper(), TRACE + ";o=x", f"00-{'0' * 32}-{'b' * 16}-01"):
        with pytest.raises(ValueError, match="a traceparent must"):
            Envelope(traceparent=trace)
    async with listening(database18, "c") as receiver, opened("psycopg", database18) as caller:
        async with caller.transaction():
            with pytest.raises(ValueError, match="a traceparent must"):
                await caller.notify("c", "1", envelope=Envelope(traceparent=lambda: "wrong"))
            for wrong in (True, "me", {"origin": "me"}):
                with pytest.raises(TypeError, match=r"envelope must be an Envelope.*bus\.envelope"):
                    await caller.notify("c", "1", envelope=wrong)
            await caller.notify("c", "2")
        assert await take(receiver, 1) == ["2"]


async def test_an_envelope_is_used_only_where_it_is_asked_for(database: str) -> None:
    """A listener that does not know this library reads what was sent, and so do recv and events."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as raw:
        await raw.execute("LISTEN c")
        async with PgNotifyBus(database, ["c"]) as bus, opened("asyncpg", database) as caller:
            receiver = subscribed(bus, "c")
            await bus.notify("c", "plain")
            await notify(caller.connection, "c", "plain too")
            await notify(caller.connection, "c", "empty", envelope=Envelope())
            await bus.notify("c", "enveloped", envelope=bus.envelope())
            first, *others = await events_of(receiver, 4)
            assert (first.origin, first.sent_at, first.traceparent) == (None, None, None)
            assert first == Notification("c", "plain", first.pid, 1)
            assert [event.payload for event in others] == ["plain too", "empty", "enveloped"]
            assert [event.origin for event in others] == [None, None, bus.origin]
            origin = bus.origin
        wires = [n.payload async for n in raw.notifies(stop_after=4, timeout=20)]
    assert wires[:3] == ["plain", "plain too", "empty"]
    assert wires[3] == f"\x01pgnb1;o={origin}\x02enveloped"


def test_every_bus_has_an_origin_of_its_own_that_stays() -> None:
    buses = [PgNotifyBus("postgresql://127.0.0.1:1/x", []) for _ in range(100)]
    assert len({bus.origin for bus in buses}) == 100
    assert all(bus.origin == bus.origin == bus.envelope().origin for bus in buses)
