"""A burst that is larger than the ring must not overrun a receiver that is always ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pgnotifybus import Gap, PgNotifyBus
from pgnotifybus.links.sources import Driver
from pgnotifybus.subscription import Subscription
from support.sql import execute
from support.tls import tls_in_front_of


async def by_many(receiver: Subscription, count: int) -> list[str]:
    got: list[str] = []
    while len(got) < count:
        got += await receiver.recv_many()
    return got


async def by_one(receiver: Subscription, count: int) -> list[str]:
    return [await receiver.recv() for _ in range(count)]


async def by_iteration(receiver: Subscription, count: int) -> list[str]:
    got: list[str] = []
    async for payload in receiver:
        got.append(payload)
        if len(got) == count:
            break
    return got


@pytest.mark.parametrize("read", [by_many, by_one, by_iteration])
@pytest.mark.parametrize(("driver", "burst"), [("psycopg", 20_000), ("asyncpg", 2_000)])
async def test_a_ready_receiver_never_lags(
    database18: str,
    driver: Driver,
    burst: int,
    read: Callable[[Subscription, int], Coroutine[Any, Any, list[str]]],
) -> None:
    """With the default capacity of 256, and a loop that is busy when the burst arrives."""
    async with PgNotifyBus(database18, ["c", "d"], driver=driver) as bus:
        reading = []
        for name in ("c", "c", "d"):
            receiver = bus.subscribe(name)
            assert receiver is not None
            reading.append(asyncio.create_task(read(receiver, burst)))
        await execute(
            database18,
            "SELECT count(pg_notify(name, i::text))"
            " FROM generate_series(1, %s::int) AS i, unnest(ARRAY['c', 'd']) AS name",
            burst,
        )
        async with asyncio.timeout(20):
            for got in await asyncio.gather(*reading):
                assert got == [str(i) for i in range(1, burst + 1)]


@pytest.mark.parametrize(("driver", "capacity"), [("psycopg", 16), ("asyncpg", 256)])
async def test_a_stuck_receiver_delays_nobody(
    database18: str, driver: Driver, capacity: int
) -> None:
    """Invariant 4: batches wait for turns of the loop, never for a receiver."""
    async with PgNotifyBus(database18, ["c"], driver=driver, capacity=capacity) as bus:
        stuck, ready = bus.subscribe("c"), bus.subscribe("c")
        assert stuck is not None
        assert ready is not None
        reading = asyncio.create_task(by_many(ready, 1_000))
        await execute(
            database18, "SELECT count(pg_notify('c', i::text)) FROM generate_series(1, 1000) AS i"
        )
        async with asyncio.timeout(20):
            assert await reading == [str(i) for i in range(1, 1_001)]
        account = stuck.statistics()
        assert (account.delivered, account.skipped, account.unread) == (0, 0, 1_000)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_statement_meanwhile_overruns_nobody(database18: str, driver: Driver) -> None:
    """Its answer comes behind the burst; what is held for others is not flushed for it."""
    async with PgNotifyBus(database18, ["c"], driver=driver) as bus:
        receiver = bus.subscribe("c")
        assert receiver is not None
        reading = asyncio.create_task(by_many(receiver, 2_000))
        writing = asyncio.create_task(
            execute(
                database18,
                "SELECT count(pg_notify('c', i::text)) FROM generate_series(1, 2000) AS i",
            )
        )
        rooms: list[Subscription] = []
        while not reading.done():
            rooms.append(await bus.listen(f"room:{len(rooms)}"))
        await writing
        assert await reading == [str(i) for i in range(1, 2_001)]


async def test_over_tls_as_well(database18: str) -> None:
    """And what is held stays small."""
    async with tls_in_front_of(database18) as tls:
        async with PgNotifyBus(tls.dsn, ["c"]) as bus:
            receiver = bus.subscribe("c")
            assert receiver is not None
            reading = asyncio.create_task(by_many(receiver, 20_000))
            await execute(
                database18,
                "SELECT count(pg_notify('c', i::text)) FROM generate_series(1, 20000) AS i",
            )
            async with asyncio.timeout(20):
                assert await reading == [str(i) for i in range(1, 20_001)]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_receiver_that_keeps_the_loop_busy_holds_up_nobody(
    database18: str, driver: Driver
) -> None:
    """Trap 8: it lags and is told; other channels are served, and the server's queue drains."""
    async with PgNotifyBus(database18, ["bulk", "ping"], driver=driver) as bus:
        busy, pings = bus.subscribe("bulk"), bus.subscribe("ping")
        assert busy is not None
        assert pings is not None

        async def work() -> int:
            lagged = 0
            async for event in busy.events():
                if isinstance(event, Gap):
                    lagged += event.skipped or 0
                    continue
                if event.payload == "end":
                    break
                until = time.perf_counter() + 200e-6
                while time.perf_counter() < until:
                    pass
            return lagged

        working = asyncio.create_task(work())
        await execute(
            database18,
            "SELECT count(pg_notify('bulk', rpad(i::text, 200, '.')))"
            " FROM generate_series(1, 50000) AS i",
        )
        await execute(database18, "NOTIFY ping; NOTIFY bulk, 'end'")
        async with asyncio.timeout(5):  # 50,000 times 200 us would be 10 s
            await pings.recv()
            assert await working > 0
        usage = "SELECT pg_notification_queue_usage()"
        async with asyncio.timeout(5):
            while (await execute(database18, usage))[0][0] > 0.001:
                pass
