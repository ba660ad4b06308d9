"""`make bench`: deliveries a second and latency, the bus against bare drivers, in one run.

Every figure is the median of several rounds; designs take turns within each round, so that what
else the machine does hits all of them alike. Ratios count, not absolute figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

from benches import designs
from benches.designs import Design, OnPayload, Read, now
from pgnotifybus import PgNotifyBus
from pgnotifybus.embedded import EmbeddedServer

THROUGHPUT: dict[str, Design] = {
    "bus psycopg recv_many": designs.bus_recv_many("psycopg"),
    "bus asyncpg recv_many": designs.bus_recv_many("asyncpg"),
    "bus psycopg async for": designs.bus_async_for("psycopg"),
    "bus asyncpg async for": designs.bus_async_for("asyncpg"),
    "asyncpg + queues": designs.asyncpg_queues,
    "psycopg + queues": designs.psycopg_queues,
}
BURST = 1_000
BARE = ("asyncpg + queues", "psycopg + queues")

LATENCY: dict[str, Callable[[str, OnPayload], AbstractAsyncContextManager[None]]] = {
    "bus psycopg": designs.bus_callback("psycopg"),
    "bus asyncpg": designs.bus_callback("asyncpg"),
    "asyncpg callback": designs.asyncpg_callback,
    "psycopg notifies()": designs.psycopg_callback,
}


class Writer:
    """The writing process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self) -> None:
        """Have it write once."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def join(self) -> None:
        """Block, the event loop too, until it has written."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the writer has ended")


@contextmanager
def writer(dsn: str, *arguments: object) -> Iterator[Writer]:
    """Start a writer, which waits to be told."""
    with subprocess.Popen(
        [sys.executable, "-m", "benches.writer", dsn, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Writer(process)
        assert process.stdin is not None
        process.stdin.close()


async def _receive_all(reads: list[Read], count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for read in reads:
            group.create_task(_receive(read, count))


async def _receive(read: Read, count: int) -> None:
    await read(count)


async def drain(dsn: str, design: Design, receivers: int, count: int) -> float:
    """Deliveries a second, when bursts of 1000 a transaction are waiting to be read.

    The writer commits while this process does nothing; then the time until every receiver has
    everything is that of server, socket, driver and fan-out together, and not the writer's.
    """
    with writer(dsn, "bursts", count, BURST) as load:
        async with design(dsn, receivers) as reads:
            load.start()
            load.join()
            began = now()
            await _receive_all(reads, count)
            return receivers * count / (now() - began)


async def single_commits(dsn: str, design: Design, receivers: int, count: int) -> float:
    """CPU microseconds of this process for a delivery, at one message a commit as they come.

    Deliveries a second would be those that the writer commits, for every design.
    """
    with writer(dsn, "singles", count) as load:
        async with design(dsn, receivers) as reads:
            before = time.process_time()
            load.start()
            await _receive_all(reads, count)
            spent = time.process_time() - before
            load.join()
            return spent * 1e6 / (receivers * count)


async def latencies(
    dsn: str,
    design: Callable[[str, OnPayload], AbstractAsyncContextManager[None]],
    count: int,
) -> list[float]:
    """Seconds from before a commit is sent to its payload in the hands of user code."""
    seen: list[float] = []
    arrived = asyncio.Event()

    def on_payload(payload: str) -> None:
        seen.append(now() - float(payload))
        arrived.set()

    with writer(dsn, "times", 0) as load:
        async with design(dsn, on_payload):
            for _ in range(count + 20):
                arrived.clear()
                load.start()
                await arrived.wait()
                load.join()
    return seen[20:]


async def idle_cost(dsn: str, seconds: float) -> dict[str, float]:
    """The CPU time and the voluntary context switches of an idle bus."""
    costs = {}
    for name, interval in (("probes every 5 s", 5.0), ("no probes", None)):
        async with PgNotifyBus(dsn, ["bench"], probe_interval=interval) as bus:
            before = resource.getrusage(resource.RUSAGE_SELF)
            await asyncio.sleep(seconds)
            after = resource.getrusage(resource.RUSAGE_SELF)
            assert bus.health().generation == 1
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        costs[f"{name}: CPU ms a minute"] = cpu * 1_000 * 60 / seconds
        costs[f"{name}: wake-ups a minute"] = (after.ru_nvcsw - before.ru_nvcsw) * 60 / seconds
    return costs


def table(
    title: str,
    measure: Callable[[str, Design, int, int], Coroutine[Any, Any, float]],
    dsn: str,
    counts: dict[int, int],
    rounds: int,
    *,
    digits: int,
    more_is_better: bool,
) -> dict[str, dict[str, float]]:
    """Print and return a figure for every design and number of receivers."""
    print(f"\n{title} (payload 100 bytes, median of {rounds})")
    print(f"{'receivers':>32}" + "".join(f"{receivers:>13,}" for receivers in counts))
    found: dict[str, dict[str, float]] = {name: {} for name in THROUGHPUT}
    for receivers, count in counts.items():
        samples: dict[str, list[float]] = {name: [] for name in THROUGHPUT}
        for _ in range(rounds):
            for name, design in THROUGHPUT.items():
                samples[name].append(asyncio.run(measure(dsn, design, receivers, count)))
        for name in THROUGHPUT:
            found[name][str(receivers)] = statistics.median(samples[name])
    for name, row in found.items():
        print(f"{name:>32}" + "".join(f"{figure:>13,.{digits}f}" for figure in row.values()))
    for name, row in found.items():
        if name in BARE:
            continue
        cells = ""
        for key, figure in row.items():
            bare = [found[other][key] for other in BARE]
            ratio = figure / max(bare) if more_is_better else min(bare) / figure
            cells += f"{ratio:>12.2f}x"
        print(f"{name + ' : bare':>32}{cells}")
    return found


def latency_table(dsn: str, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Print and return p50 and p99 of a single commit, in milliseconds."""
    print(f"\nLatency of a single commit in ms ({rounds} rounds of {count}, taking turns)")
    samples: dict[str, list[float]] = {name: [] for name in LATENCY}
    for _ in range(rounds):
        for name, design in LATENCY.items():
            samples[name] += asyncio.run(latencies(dsn, design, count))
    found = {}
    for name, seconds in samples.items():
        cuts = statistics.quantiles(seconds, n=100)
        found[name] = {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3}
        print(f"{name:>26}  p50 {cuts[49] * 1e3:6.3f}  p99 {cuts[98] * 1e3:6.3f}")
    return found


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of the messages")
    parser.add_argument("--dsn", default=None, help="a server to use, instead of an embedded one")
    parser.add_argument("--idle", type=float, default=60, help="seconds of idling; 0 for none")
    parser.add_argument("--json", default=None, metavar="FILE", help="write all figures there too")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    rounds = 1 if options.quick else 3
    bursts = {
        1: 200_000 // share,
        10: 100_000 // share,
        100: 50_000 // share,
        1000: 20_000 // share,
    }
    singles = {1: 5_000 // share, 10: 5_000 // share, 100: 3_000 // share, 1000: 1_000 // share}
    with EmbeddedServer() as server:
        dsn = options.dsn or server.dsn
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
        found: dict[str, Any] = {
            "bursts": table(
                f"Deliveries a second, bursts of {BURST} a transaction",
                drain,
                dsn,
                bursts,
                rounds,
                digits=0,
                more_is_better=True,
            ),
            "singles": table(
                "CPU microseconds for a delivery, single commits",
                single_commits,
                dsn,
                singles,
                rounds,
                digits=2,
                more_is_better=False,
            ),
            "latency": latency_table(dsn, 1_000 // share, rounds),
        }
        if options.idle:
            print(f"\nAn idle bus, over {options.idle:g} s")
            found["idle"] = asyncio.run(idle_cost(dsn, options.idle))
            for name, figure in found["idle"].items():
                print(f"{name:>40} {figure:8.1f}")
    if options.json:
        with open(options.json, "w") as file:  # noqa: PTH123
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
