"""Writers of every kind, for a log that is read meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable

import psycopg

from pgnotifybus import Event, EventLog
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.log.event_log import After
from support.sql import execute

_LOST = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.DatabaseError)


class Writers:
    """Many that append: shortly, for long, in savepoints, prepared, and rolled back."""

    def __init__(self, dsn: str, count: int, seed: int, *, channels: Iterable[str]) -> None:
        self._dsn = dsn
        self._count = count
        self._seed = seed
        self._channels = list(channels)
        self._stop = asyncio.Event()
        self.commits = 0
        self.quiet = 0
        """Transactions that have not notified."""

    async def run(self, seconds: float) -> None:
        """Write for so long, whatever happens to the connections."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._write(number))
            await asyncio.sleep(seconds)
            self._stop.set()

    async def _write(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        while not self._stop.is_set():
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, application_name="writer", connect_timeout=5
                ) as connection:
                    while not self._stop.is_set():
                        await self._one(connection, chance)
            except _LOST:
                await asyncio.sleep(0.02)

    async def _one(
        self, connection: psycopg.AsyncConnection[object], chance: random.Random
    ) -> None:
        kind = chance.random()
        prepared = f"p-{uuid.uuid4().hex}" if kind < 0.06 else None
        if prepared is not None:
            await connection.execute("SET LOCAL pgnotifybus.wake = off")
        if chance.random() < 0.05:
            await connection.execute("SET LOCAL synchronous_commit = off")
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            if chance.random() < 0.2:
                with contextlib.suppress(_RolledBack):
                    async with connection.transaction():
                        await self._append(connection, chance)
                        if chance.random() < 0.5:
                            raise _RolledBack
            else:
                await self._append(connection, chance)
            if kind > 0.9:  # a long one
                await asyncio.sleep(chance.random() * 0.1)
        back = chance.random() < 0.2
        if prepared is None:
            await (connection.rollback() if back else connection.commit())
        else:
            await connection.execute(f"PREPARE TRANSACTION '{prepared}'".encode())
            await connection.set_autocommit(True)
            await asyncio.sleep(chance.random() * 0.05)
            end = f"{'ROLLBACK' if back else 'COMMIT'} PREPARED '{prepared}'"
            await connection.execute(end.encode())
            await connection.execute("SELECT pgnotifybus.wake()")
            await connection.set_autocommit(False)
        self.commits += not back
        if chance.random() < 0.02:  # so that at times there is little to do
            await asyncio.sleep(chance.random())

    async def _append(
        self, connection: psycopg.AsyncConnection[object], chance: random.Random
    ) -> None:
        channel = chance.choice(self._channels)
        if chance.random() < 0.1:
            await connection.execute(
                "SELECT pgnotifybus.append_many(%s, %s, %s, %s)",
                ([channel] * 3, ["a", "b", "c"], [None] * 3, [None] * 3),
            )
        else:
            await connection.execute("SELECT pgnotifybus.append(%s, %s)", (channel, "x"))


class _RolledBack(Exception):
    """To leave a savepoint."""


class Account:
    """What a follower has got, in its order."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._changed = asyncio.Event()

    def add(self, event: Event[str]) -> None:
        """Note an event."""
        self.ids.append(event.id)
        self._changed.set()

    async def follow(self, log: EventLog, *channels: str, after: After) -> None:
        """Follow until cancelled."""
        async for event in log.follow(*channels, after=after):
            self.add(event)

    async def until(self, count: int, seconds: float) -> None:
        """Wait until there are so many, or none has come for so long."""
        with contextlib.suppress(TimeoutError):
            while len(self.ids) < count:
                self._changed.clear()
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    def differences(self, truth: Iterable[int]) -> str:
        """How it differs from what it should be; empty if it does not."""
        expected = set(truth)
        counts = Counter(self.ids)
        missing = sorted(expected - counts.keys())
        phantoms = sorted(counts.keys() - expected)
        twice = sorted(each for each, count in counts.items() if count > 1)
        if not (missing or phantoms or twice):
            return ""
        return f"missing {missing[:20]}, not committed {phantoms[:20]}, twice {twice[:20]}"


async def committed(dsn: str, *channels: str) -> list[int]:
    """The ids of all events of these channels that are there."""
    rows = await execute(
        dsn,
        "SELECT id FROM pgnotifybus.events WHERE channel = ANY (%s) ORDER BY id",
        list(channels),
    )
    return [row[0] for row in rows]


async def killer(
    dsn: Callable[[], str], chance: random.Random, pattern: str = "pgnotifybus%"
) -> None:
    """Terminate backends at random, until cancelled."""
    while True:
        await asyncio.sleep(0.2 + chance.random())
        with contextlib.suppress(psycopg.Error):
            await execute(
                dsn(),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE %s AND random() < 0.5 AND pid <> pg_backend_pid()",
                pattern,
            )


async def crasher(server: EmbeddedServer, chance: random.Random) -> None:
    """Crash the server at random and start it again, until cancelled; it runs then."""

    def crash() -> None:
        server.kill()
        server.start()

    while True:
        await asyncio.sleep(0.7 + 1.5 * chance.random())
        crashed = asyncio.create_task(asyncio.to_thread(crash))
        try:
            await asyncio.shield(crashed)
        finally:
            await crashed  # a thread cannot be cancelled, and two must not start the server
