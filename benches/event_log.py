"""`make bench-log`: what the event log costs those who write, and how fast it is read.

Five questions, each answered by figures of one run:

1. Commits a second of 1, 8 and 32 connections (`pgbench`): a bare INSERT into a table with a
   primary key; with a `pg_notify` in each; a bare INSERT into the table of events; and `append`,
   while another process has the log open, and so is the pacemaker; while it also follows, and reads
   all of it on the same cores; and while nobody has.
2. Events a second that a follower replays, against the drivers' own cursors over the same rows.
3. Milliseconds from commit to follower, of one event at a time: against plain NOTIFY.
4. The same under load: of 32 writers that commit 5,000 times a second, and as often as they can.
5. Queries a second with 1, 100 and 1000 followers, at the same load.

The server waits for its disk (fsync), unlike that of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import psycopg

from benches.publishing import SETTINGS, WRITERS, pgbench
from pgnotifybus import EventLog, PgNotifyBus, schema
from pgnotifybus.embedded import EmbeddedServer, installations

CONNECTIONS = (1, 8, 32)
FOLLOWERS = (1, 100, 1000)
RATES = (5000, None)
_TABLE = """\
CREATE TABLE IF NOT EXISTS bare (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, channel text NOT NULL, key text,
  payload text NOT NULL, headers jsonb, created_at timestamptz DEFAULT clock_timestamp()
)"""
_INSERT = "INSERT INTO bare (channel, payload) VALUES ('orders', repeat('x', 100))"
_NOTIFYING = f"WITH new AS ({_INSERT} RETURNING id) SELECT pg_notify('bench', id::text) FROM new"
_INSERT_EVENT = (
    "INSERT INTO pgnotifybus.events (channel, payload) VALUES ('orders', repeat('x', 100))"
)
_APPEND = "SELECT pgnotifybus.append('orders', repeat('x', 100))"
_TIMED = "SELECT pgnotifybus.append('orders', extract(epoch FROM clock_timestamp())::text)"
_COLUMNS = "id, channel, key, payload, headers, created_at"
_ROWS = f"SELECT {_COLUMNS} FROM pgnotifybus.events WHERE channel = 'orders' ORDER BY id"


class Beside:
    """A process that follows, and says what it saw."""

    def __init__(self, dsn: str, followers: int = 1) -> None:
        argv = [sys.executable, "-m", "benches.event_log", "--follow", str(followers)]
        self._process = subprocess.Popen(
            [*argv, "--dsn", dsn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def end(self) -> str:
        """Stop it; what it saw."""
        said, _ = self._process.communicate()
        return said.strip()


async def follow(dsn: str, count: int) -> None:
    """Follow until stdin ends, and say how long events took, and how often was asked."""
    async with EventLog(dsn, prune=False) as log:
        followers = [log.follow("orders") for _ in range(count)]
        for follower in followers:
            await follower.__aenter__()
        times: list[float] = []

        async def read(number: int) -> None:
            while True:
                events = await followers[number].recv_many()
                if number == 0 and events[0].payload[0].isdigit():
                    now = time.time()
                    times.extend(now - float(event.payload) for event in events)

        tasks = [asyncio.create_task(read(number)) for number in range(count)]
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)
        print("ready", flush=True)
        began, before = time.perf_counter(), log.statistics()
        await ended.wait()
        spent, after = time.perf_counter() - began, log.statistics()
        for task in tasks:
            task.cancel()
        reads = after.reads + after.catch_up_reads - before.reads - before.catch_up_reads
        polls = after.pacemaker_polls - before.pacemaker_polls
        latency = "p50 {:.1f} ms, p99 {:.1f} ms, ".format(*_percentiles(times)) if times else ""
        print(f"{latency}{reads / spent:,.0f} reads and {polls / spent:,.0f} polls a second")


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2] * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3


def commits(program: Path, dsn: str, seconds: float, rounds: int) -> None:
    """Print commits a second."""
    print(f"\nCommits a second, median of {rounds}")
    print(f"{'connections':>34}" + "".join(f"{count:>16}" for count in CONNECTIONS))
    kinds: dict[str, tuple[str, int | None]] = {  # what is run, and how many follow
        "bare INSERT": (_INSERT, None),
        "INSERT + NOTIFY": (_NOTIFYING, None),
        "INSERT into the events": (_INSERT_EVENT, None),
        "append, log open elsewhere": (_APPEND, 0),
        "append, one follows": (_APPEND, 1),
        "append, log open nowhere": (_APPEND, None),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for connections in CONNECTIONS:
        samples: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, (script, followers) in kinds.items():
                beside = None if followers is None else Beside(dsn, followers)
                samples[name].append(pgbench(program, dsn, script, seconds, connections))
                if beside is not None:
                    beside.end()
        for name, figures in samples.items():
            found[name].append(statistics.median(figures))
    for name, row in found.items():
        cells = [
            f"{rate:>9,.0f} {rate / base:>6.0%}"
            for rate, base in zip(row, found["bare INSERT"], strict=True)
        ]
        print(f"{name:>34}" + "".join(cells))


async def replay(dsn: str, count: int, rounds: int) -> None:
    """Print how fast so many events are read."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("TRUNCATE pgnotifybus.events")
        await connection.execute(
            "INSERT INTO pgnotifybus.events (channel, payload, key)"
            " SELECT 'orders', repeat('x', 100), n::text FROM generate_series(1, %s) AS n",
            (count,),
        )
        await connection.execute("VACUUM ANALYZE pgnotifybus.events")

    async def ours() -> int:
        async with EventLog(dsn, prune=False) as log:
            follower = log.follow("orders", after="beginning")
            got = 0
            while got < count:
                got += len(await follower.recv_many())
            return got

    async def of_psycopg() -> int:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            async with connection.cursor("bench") as cursor:
                cursor.itersize = 1000
                await cursor.execute(_ROWS)
                return len([row async for row in cursor])

    async def of_asyncpg() -> int:
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction():
                return len([row async for row in connection.cursor(_ROWS, prefetch=1000)])
        finally:
            await connection.close()

    readers: dict[str, Callable[[], Awaitable[int]]] = {
        "cursor of psycopg": of_psycopg,
        "cursor of asyncpg": of_asyncpg,
        "follow": ours,
    }
    samples: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, reader in readers.items():
            began = time.perf_counter()
            got = await reader()
            assert got == count
            samples[name].append(count / (time.perf_counter() - began))
    rates = {name: statistics.median(figures) for name, figures in samples.items()}
    print(f"\nReplay of {count:,} events, events a second, median of {rounds}")
    for name, rate in rates.items():
        print(f"{name:>34}{rate:>12,.0f}{rate / rates['cursor of psycopg']:>8.0%}")


async def idle(dsn: str, count: int) -> None:
    """Print how long single events take."""
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        EventLog(dsn, prune=False) as log,
        log.follow("orders") as follower,
        PgNotifyBus(dsn, ["bench"]) as bus,
    ):
        receiver = bus.subscribe("bench")
        assert receiver is not None
        notified, appended = [], []
        for _ in range(count):
            began = time.perf_counter()
            await connection.execute(_NOTIFYING)
            await receiver.recv()
            notified.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)  # below what wakes a pacemaker
            began = time.perf_counter()
            await connection.execute(_APPEND)
            await anext(follower)
            appended.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)
    print(f"\nMilliseconds from before the statement to the receiver, {count} single events")
    for name, figures in (("INSERT + NOTIFY, bus", notified), ("append, follow", appended)):
        print("{:>34}  p50 {:.2f}  p99 {:.2f}".format(name, *_percentiles(figures)))


def loaded(program: Path, dsn: str, seconds: float) -> None:
    """Print how long events take under load, and what followers cost."""
    print(f"\nFrom append to follower, {WRITERS} writers")
    for rate in RATES:
        for count in FOLLOWERS:
            beside = Beside(dsn, count)
            reached = pgbench(program, dsn, _TIMED, seconds, WRITERS, rate=rate)
            print(f"{count:>18} followers, {reached:>6,.0f} commits a second:  {beside.end()}")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(prog="make bench-log", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="for each figure of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=1_000_000, help="to replay")
    parser.add_argument("--dsn", help=argparse.SUPPRESS)
    parser.add_argument("--follow", type=int, metavar="COUNT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow is not None:
        asyncio.run(follow(options.dsn, options.follow))
        return
    with EmbeddedServer(settings=SETTINGS) as server:
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
        asyncio.run(schema.install(server.dsn))
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(_TABLE)
        program = installations.find().bin_dir / "pgbench"
        commits(program, server.dsn, options.seconds, options.rounds)
        asyncio.run(idle(server.dsn, 200))
        loaded(program, server.dsn, options.seconds)
        asyncio.run(replay(server.dsn, options.events, options.rounds))


if __name__ == "__main__":
    main()
