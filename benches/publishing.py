"""`make bench-publish`: what sending costs, and what it costs those who write beside it.

Two questions, each answered by ratios within one run:

1. How many messages a second get out, from 1, 8 and 32 tasks of one process: a `pg_notify` each, on
   a bare connection of its own for each task; and the publisher.
2. How many INSERT transactions a second 32 other connections commit meanwhile (`pgbench`): alone;
   with a `pg_notify` in each; and without, while a publisher sends as many messages as they insert
   rows.

The server waits for its disk (fsync), unlike that of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg

from pgnotifybus import PgNotifyBus
from pgnotifybus.embedded import EmbeddedServer, installations

CHANNEL = "bench"
PAYLOAD_BYTES = 100
TASKS = (1, 8, 32)
WRITERS = 32
HELD = 2_000
"""How many payloads a task sends in turn: more than a batch, which would not have one twice."""
SETTINGS = {"fsync": "on", "full_page_writes": "on", "max_connections": "200"}

_INSERT = "INSERT INTO bench (payload) VALUES (repeat('x', 100))"
_NOTIFYING = f"""\
WITH new AS ({_INSERT} RETURNING id)
SELECT pg_notify('bench', id::text) FROM new;
"""
_TPS = re.compile(r"^tps = ([0-9.]+) ", re.MULTILINE)


def payload(number: int) -> str:
    """One of a hundred bytes, unlike all others."""
    return f"{number}".ljust(PAYLOAD_BYTES, ".")


# -- messages a second ----------------------------------------------------------------------------


async def singles(dsn: str, tasks: int, seconds: float) -> tuple[float, float]:
    """Messages and commits a second of one `pg_notify` each, a bare connection a task."""
    until = time.perf_counter() + seconds

    async def work(task: int) -> int:
        connection = await asyncpg.connect(dsn)
        try:
            sent = 0
            while time.perf_counter() < until:
                await connection.execute(
                    "SELECT pg_notify($1, $2)", CHANNEL, payload(task * 10**7 + sent)
                )
                sent += 1
            return sent
        finally:
            await connection.close()

    began = time.perf_counter()
    rate = sum(await asyncio.gather(*map(work, range(tasks)))) / (time.perf_counter() - began)
    return rate, rate


def publisher(
    *, durable: bool
) -> Callable[[str, int, float], Coroutine[Any, Any, tuple[float, float]]]:
    """Messages and commits a second of a publisher that all tasks share."""

    async def measure(dsn: str, tasks: int, seconds: float) -> tuple[float, float]:
        payloads = [[payload(task * HELD + n) for n in range(HELD)] for task in range(tasks)]
        async with PgNotifyBus(dsn, []) as bus, bus.publisher(durable=durable) as publisher:
            began = time.perf_counter()
            until = began + seconds

            async def work(task: int) -> None:
                while time.perf_counter() < until:
                    for each in payloads[task]:
                        await publisher.publish(CHANNEL, each)

            await asyncio.gather(*map(work, range(tasks)))
            await publisher.flush()
            spent = time.perf_counter() - began
            found = publisher.statistics()
            assert found.sent == found.accepted
            return found.sent / spent, found.commits / spent

    return measure


SENDERS: dict[str, Callable[[str, int, float], Coroutine[Any, Any, tuple[float, float]]]] = {
    "one pg_notify each": singles,
    "publisher": publisher(durable=True),
    "publisher, ephemeral": publisher(durable=False),
}


def rates(dsn: str, seconds: float, rounds: int) -> None:
    """Print messages and commits a second, for every sender and number of tasks."""
    print(f"\nMessages (commits) a second, {PAYLOAD_BYTES} bytes each, median of {rounds}")
    print(f"{'tasks':>24}" + "".join(f"{tasks:>22}" for tasks in TASKS))
    found: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in SENDERS}
    for tasks in TASKS:
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in SENDERS}
        for _ in range(rounds):
            for name, sender in SENDERS.items():
                samples[name].append(asyncio.run(sender(dsn, tasks, seconds)))
        for name, pairs in samples.items():
            found[name][tasks] = (
                statistics.median(sent for sent, _ in pairs),
                statistics.median(commits for _, commits in pairs),
            )
    for name, row in found.items():
        cells = "".join(f"{f'{sent:,.0f} ({commits:,.0f})':>22}" for sent, commits in row.values())
        print(f"{name:>24}{cells}")
    base = found["one pg_notify each"]
    for name, row in found.items():
        if row is not base:
            cells = "".join(f"{row[tasks][0] / base[tasks][0]:>21.1f}x" for tasks in TASKS)
            print(f"{name + ' : each':>24}{cells}")


# -- what it costs others -------------------------------------------------------------------------


@contextlib.contextmanager
def beside(dsn: str, rate: float) -> Iterator[None]:
    """A process that publishes so many messages a second; none at a rate of 0."""
    if not rate:
        yield
        return
    argv = [sys.executable, "-m", "benches.publishing", "--publish", str(rate), "--dsn", dsn]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield
        process.stdin.close()
        print(f"{'':>10}meanwhile: {process.stdout.read().decode().strip()}")


async def publish_at(dsn: str, rate: float) -> None:
    """Publish at a rate until stdin ends, and say what it came to."""
    async with PgNotifyBus(dsn, []) as bus, bus.publisher() as publisher:
        payloads = [payload(number) for number in range(100_000)]
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(0, ended.set)
        print("ready", flush=True)
        began = time.perf_counter()
        number = 0
        while not ended.is_set():
            due = int((time.perf_counter() - began) * rate)
            while number < due:
                await publisher.publish(CHANNEL, payloads[number % len(payloads)])
                number += 1
            await asyncio.sleep(0.01)
        await publisher.flush()
        spent = time.perf_counter() - began
        found = publisher.statistics()
        print(
            f"{found.sent / spent:,.0f} messages in {found.commits / spent:,.0f} commits a second"
        )


def pgbench(
    program: Path,
    dsn: str,
    script: str,
    seconds: float,
    connections: int = WRITERS,
    *,
    rate: int | None = None,
) -> float:
    """Transactions a second of so many connections that run a script: as many as they can, or a
    rate.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "script.sql")
        file.write_text(script)
        options = [
            "-n",
            "-M",
            "prepared",
            "-c",
            str(connections),
            "-j",
            str(min(2, connections)),
            "-f",
            str(file),
        ]
        if rate is not None:
            options += ["-R", str(rate)]
        done = subprocess.run(
            [program, *options, "-T", str(round(seconds)), dsn],
            check=True,
            capture_output=True,
            text=True,
        )
    found = _TPS.search(done.stdout)
    assert found, done.stdout
    return float(found[1])


def inserts(program: Path, dsn: str, seconds: float, rounds: int) -> None:
    """Print what INSERT transactions lose."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS bench (id bigserial PRIMARY KEY, payload text)"
        )
    print(f"\nINSERT transactions a second of {WRITERS} connections, median of {rounds}")
    alone, notifying, published = [], [], []
    for _ in range(rounds):
        alone.append(pgbench(program, dsn, _INSERT, seconds))
        notifying.append(pgbench(program, dsn, _NOTIFYING, seconds))
        with beside(dsn, alone[-1]):
            published.append(pgbench(program, dsn, _INSERT, seconds))
    base = statistics.median(alone)
    for name, samples in (
        ("alone", alone),
        ("with a pg_notify in each", notifying),
        ("beside a publisher of as many messages", published),
    ):
        rate = statistics.median(samples)
        print(f"{name:>40}{rate:>10,.0f}{rate / base:>8.0%}")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(prog="make bench-publish", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="for each figure of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dsn", help=argparse.SUPPRESS)
    parser.add_argument("--publish", type=float, metavar="RATE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        asyncio.run(publish_at(options.dsn, options.publish))
        return
    with EmbeddedServer(settings=SETTINGS) as server:
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
        rates(server.dsn, options.seconds, options.rounds)
        program = installations.find().bin_dir / "pgbench"
        inserts(program, server.dsn, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
