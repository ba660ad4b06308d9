"""The designs that are measured: the bus, and what people write by hand on a bare driver.

Each one delivers the notifications of one channel to `receivers` tasks and tells, for every task,
when it has seen what.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import psycopg

from pgnotifybus import PgNotifyBus
from pgnotifybus.links.sources import Driver

CHANNEL = "bench"

Read = Callable[[int], Awaitable[None]]
"""One receiver's task: returns when it has seen so many messages."""

Design = Callable[[str, int], contextlib.AbstractAsyncContextManager[list[Read]]]
"""Given a DSN and a number of receivers: their tasks, ready to receive."""


def bus_recv_many(driver: Driver) -> Design:
    """The bus, read in batches."""

    @contextlib.asynccontextmanager
    async def design(dsn: str, receivers: int) -> AsyncIterator[list[Read]]:
        async with PgNotifyBus(dsn, [CHANNEL], capacity=65_536, driver=driver) as bus:

            def reader() -> Read:
                receiver = bus.subscribe(CHANNEL)
                assert receiver is not None

                async def read(count: int) -> None:
                    while count > 0:
                        count -= len(await receiver.recv_many())

                return read

            yield [reader() for _ in range(receivers)]

    return design


def bus_async_for(driver: Driver) -> Design:
    """The bus, read with plain `async for`."""

    @contextlib.asynccontextmanager
    async def design(dsn: str, receivers: int) -> AsyncIterator[list[Read]]:
        async with PgNotifyBus(dsn, [CHANNEL], capacity=65_536, driver=driver) as bus:

            def reader() -> Read:
                receiver = bus.subscribe(CHANNEL)
                assert receiver is not None

                async def read(count: int) -> None:
                    async for _ in receiver:
                        count -= 1
                        if not count:
                            return

                return read

            yield [reader() for _ in range(receivers)]

    return design


def _queue_readers(queues: list[asyncio.Queue[str]]) -> list[Read]:
    def reader(queue: asyncio.Queue[str]) -> Read:
        async def read(count: int) -> None:
            for _ in range(count):
                await queue.get()

        return read

    return [reader(queue) for queue in queues]


@contextlib.asynccontextmanager
async def asyncpg_queues(dsn: str, receivers: int) -> AsyncIterator[list[Read]]:
    """`asyncpg.add_listener`, and one `asyncio.Queue` a receiver."""
    queues: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in range(receivers)]

    def on_notification(_: object, pid: int, channel: str, payload: str) -> None:
        for queue in queues:
            queue.put_nowait(payload)

    connection = await asyncpg.connect(dsn)
    try:
        await connection.add_listener(CHANNEL, on_notification)
        yield _queue_readers(queues)
        await connection.remove_listener(CHANNEL, on_notification)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def psycopg_queues(dsn: str, receivers: int) -> AsyncIterator[list[Read]]:
    """psycopg's `notifies()`, and one `asyncio.Queue` a receiver."""
    queues: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in range(receivers)]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")

        async def pump() -> None:
            async for notify in connection.notifies():
                for queue in queues:
                    queue.put_nowait(notify.payload)

        pumping = asyncio.create_task(pump())
        try:
            yield _queue_readers(queues)
        finally:
            pumping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pumping


# -- the bare callbacks, for latency --------------------------------------------------------------

OnPayload = Callable[[str], None]


@contextlib.asynccontextmanager
async def asyncpg_callback(dsn: str, on_payload: OnPayload) -> AsyncIterator[None]:
    """asyncpg calls, nothing else."""

    def on_notification(_: object, pid: int, channel: str, payload: str) -> None:
        on_payload(payload)

    connection = await asyncpg.connect(dsn)
    try:
        await connection.add_listener(CHANNEL, on_notification)
        yield
        await connection.remove_listener(CHANNEL, on_notification)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def psycopg_callback(dsn: str, on_payload: OnPayload) -> AsyncIterator[None]:
    """psycopg's `notifies()` in a task, nothing else."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")

        async def pump() -> None:
            async for notify in connection.notifies():
                on_payload(notify.payload)

        pumping = asyncio.create_task(pump())
        try:
            yield
        finally:
            pumping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pumping


def bus_callback(
    driver: Driver,
) -> Callable[[str, OnPayload], contextlib.AbstractAsyncContextManager[None]]:
    """The bus, with a task that receives one message at a time."""

    @contextlib.asynccontextmanager
    async def design(dsn: str, on_payload: OnPayload) -> AsyncIterator[None]:
        async with PgNotifyBus(dsn, [CHANNEL], driver=driver) as bus:
            receiver = bus.subscribe(CHANNEL)
            assert receiver is not None

            async def read(source: Any) -> None:
                async for payload in source:
                    on_payload(payload)

            reading = asyncio.create_task(read(receiver))
            yield
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    return design


def now() -> float:
    """The clock of all measurements, in seconds; the same for all processes of a machine."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
