"""What a fault is tried on: a server, a network, a bus with receivers, a writer without rest."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from chaos.account import Received, Sent
from pgnotifybus import PgNotifyBus, observe
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import FaultProxy, RecordingObserver

Connection = psycopg.AsyncConnection[Any]

CHANNELS: Final = ("a", "b", "at run time")
_PACE: Final = 0.005
_AGAIN: Final = 0.02

QUICK: Final[Mapping[str, Any]] = {
    "probe_interval": 0.3,
    "probe_timeout": 0.4,
    "connect_timeout": 2.0,
    "backoff_initial": 0.05,
    "backoff_maximum": 0.2,
}
"""So that a test need not wait; `make chaos` measures with what users get by default."""


class Timed(RecordingObserver):
    """Remembers also when; by no clock of a loop, as that of uvloop counts milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def __call__(self, event: observe.Event) -> None:
        self.at.append(time.monotonic())
        super().__call__(event)

    def when(self, kind: type[observe.Event], count: int = 1) -> float:
        """When the nth event of a kind came."""
        times = [
            at for event, at in zip(self.events, self.at, strict=True) if isinstance(event, kind)
        ]
        return times[count - 1]


@dataclass
class World:
    """Everything that a fault can do something to."""

    server: EmbeddedServer
    dsn: str
    """Of the database, past the proxy."""
    proxy: FaultProxy
    driver: Driver
    options: dict[str, Any]
    source: Any = None
    """What the bus is given; the way through the proxy, if None."""
    observer: Timed = field(default_factory=Timed)
    sent: Sent = field(default_factory=Sent)
    received: dict[str, Received] = field(default_factory=dict)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the writer may write."""
    refused: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the writer could not commit, as the notification queue was full."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What a fault has to remember for its end."""
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    bus: PgNotifyBus = None  # type: ignore[assignment]
    """Set by `running`."""

    async def sql(self, statement: str, dsn: str | None = None) -> list[tuple[Any, ...]]:
        """Run a statement in the server's own database, or another, as a superuser."""
        connection = await psycopg.AsyncConnection.connect(dsn or self.server.dsn, autocommit=True)
        async with connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []

    async def kill_listener(self) -> None:
        """Terminate the backend of the bus."""
        await self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pgnotifybus listener'"
        )

    async def settle(self) -> int:
        """Wait until what is being sent now has come to every receiver; the number of that."""
        number = len(self.sent.began)
        async with asyncio.timeout(30):
            for received in self.received.values():
                await received.until(number)
        return number


@contextlib.asynccontextmanager
async def running(world: World, prepare: Callable[[World], Any]) -> AsyncIterator[World]:
    """Start the bus, its receivers and the writer; end them all."""
    async with world.proxy, world.stack:
        await prepare(world)
        source = world.proxy.dsn if world.source is None else world.source
        driver = world.driver if isinstance(source, str) else None
        world.bus = PgNotifyBus(
            source,
            CHANNELS[:2],
            driver=driver,
            observer=world.observer,
            capacity=100_000,
            **world.options,
        )
        world.quiet.set()
        async with world.bus as bus:
            receivers = {name: bus.subscribe(name) for name in CHANNELS[:2]}
            receivers[CHANNELS[2]] = await bus.listen(CHANNELS[2])
            tasks = [asyncio.create_task(_write(world), name="chaos writer")]
            for name, receiver in receivers.items():
                assert receiver is not None
                book = world.received[name] = Received(name)
                tasks.append(asyncio.create_task(book.read(receiver.events()), name=f"read {name}"))
            try:
                async with asyncio.timeout(20):
                    for book in world.received.values():
                        await book.until(3)
                yield world
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
        for each in ended:
            if isinstance(each, Exception):
                raise each


async def _write(world: World) -> None:
    """Send a number to every channel, and the next, over whatever connection can be had."""
    notify = ", ".join(f"pg_notify('{name}', %(number)s)" for name in CHANNELS)

    async def work(connection: Connection) -> None:
        while True:
            await world.quiet.wait()
            number = len(world.sent.began) + 1
            world.sent.began[number] = time.monotonic()
            try:
                await connection.execute(f"SELECT {notify}".encode(), {"number": str(number)})
            except psycopg.errors.ProgramLimitExceeded:
                world.refused.set()
                raise
            world.sent.committed.add(number)
            await asyncio.sleep(_PACE)

    await persistently(world.dsn, work)


async def persistently(dsn: str, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Work over a connection, and over the next one when it is lost, until the work is done."""
    while True:
        with contextlib.suppress(psycopg.Error, OSError):
            connection = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, connect_timeout=2
            )
            async with connection:
                return await work(connection)
        await asyncio.sleep(_AGAIN)
