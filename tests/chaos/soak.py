"""Faults at random against a bus with many receivers and a follower of the event log, for minutes.

At the end every message is accounted for, by every receiver; the follower has exactly what is in
the table; and the library holds no more memory than at the beginning.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pgnotifybus
from chaos.case import Case
from chaos.cases import CASES
from chaos.world import QUICK, Connection, World, persistently
from pgnotifybus import EventLog, Gap, LinkError, Notification, PgNotifyBus, observe, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import FaultProxy

CHANNELS: Final = ("a", "b", "c")
RECEIVERS: Final = 150
CAPACITY: Final = 50
_PACE: Final = 0.004
_SOURCE: Final = str(Path(pgnotifybus.__file__).parent / "*")
_GROWTH: Final = 1_000_000
"""The bytes by which the memory of the library may differ: a ring more or less full, say."""

# Those that need nothing prepared, take a few seconds at most, and are noticed under traffic: while
# messages still come, nobody asks whether anything goes the other way. Of the server one at a
# time: one that is stopped can terminate nobody.
_SERVER: Final = ("terminated", "restarted", "restarted at once", "crashed", "stopped")
_NETWORK: Final = (
    "black hole",
    "black hole, connecting",
    "reset",
    "closed",
    "half-closed, down",
    "half-closed, up",
    "kept open",
    "drips",
    "refused",
)

_Held = Counter[str]


class Reader:
    """One receiver with a pace of its own, and books that do not grow."""

    def __init__(self, channel: str, receiver: Subscription, rng: random.Random) -> None:
        self.channel = channel
        self.receiver = receiver
        self.pause = rng.choice((0, 0, 1, 20, 400))
        self.expected: int | None = None
        self.generation = 1
        self.delivered = 0
        self.skipped = 0
        self.missed = 0
        self._in_gap = False

    async def run(self, until: Callable[[int], bool]) -> None:
        """Read until the last message, and see that nothing is missing but where a gap says so."""
        async for event in self.receiver.events():
            if isinstance(event, Gap):
                self._gap(event)
            elif self._message(event) and until(int(event.payload)):
                return
            for _ in range(self.pause):
                await asyncio.sleep(0)

    def _gap(self, gap: Gap) -> None:
        if gap.reason == "lagged":
            assert gap.skipped
            self.skipped += gap.skipped
            if self.expected is not None:
                self.expected += gap.skipped
            # What was overwritten may have lain on both sides of a lost link.
            return
        assert gap.generation > self.generation, "a gap twice, or out of order"
        self.generation = gap.generation
        self._in_gap = True

    def _message(self, event: Notification) -> bool:
        number = int(event.payload)
        if self.expected is not None:
            if self._in_gap or event.generation > self.generation:
                assert number >= self.expected, f"{number} again, or out of order"
                self.missed += number - self.expected
            else:
                assert number == self.expected, f"{number}, not {self.expected}: lost silently"
        self.generation = max(self.generation, event.generation)
        self._in_gap = False
        self.expected = number + 1
        self.delivered += 1
        return True


@dataclass
class Report:
    """What a soak has seen."""

    seed: int
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    generations: int = 0
    sent: int = 0
    delivered: int = 0
    skipped: int = 0
    events: int = 0
    growth: int = 0
    """Bytes of the library, from after a third of the time to the end."""
    grown: dict[str, int] = field(default_factory=dict)
    """The lines of which most of them are."""


async def soak(
    server: EmbeddedServer,
    driver: Driver,
    seconds: float,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run it.

    Raises:
        AssertionError: If a message is not accounted for, or memory grows.
    """
    rng = random.Random(seed)
    name = f"soak_{seed}_{os.getpid()}"
    dsn = server.dsn_for(database=name)
    world = World(server, dsn, FaultProxy.in_front_of(dsn), driver, dict(QUICK))
    await world.sql(f"CREATE DATABASE {name}")
    report = Report(seed, seconds)
    tracemalloc.start(1)
    try:
        await schema.install(dsn)
        async with world.proxy:
            await _run(world, report, rng, tell)
    finally:
        tracemalloc.stop()
        await world.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    return report


async def _run(
    world: World, report: Report, rng: random.Random, tell: Callable[[str], None]
) -> None:
    numbers = _Numbers()
    async with (
        PgNotifyBus(
            world.proxy.dsn,
            CHANNELS,
            driver=world.driver,
            capacity=CAPACITY,
            observer=numbers.observe,
            **world.options,
        ) as bus,
        EventLog(
            world.proxy.dsn, driver=world.driver, probe_interval=0.5, connect_timeout=2.0
        ) as log,
        log.follow(*CHANNELS) as follower,
        asyncio.TaskGroup() as tasks,
    ):
        world.bus = bus
        readers = [
            Reader(name, receiver, rng)
            for name in CHANNELS
            for _ in range(RECEIVERS // len(CHANNELS))
            if (receiver := bus.subscribe(name)) is not None
        ]
        reading = [tasks.create_task(each.run(numbers.is_last)) for each in readers]
        followed = array("q")  # of no memory that the library has allocated
        following = tasks.create_task(_follow(follower, followed, numbers))
        writing = tasks.create_task(_write(world, numbers))
        await _strike(world, report, rng, numbers, tell)
        numbers.stop.set()
        await writing
        async with asyncio.timeout(60):
            await asyncio.gather(*reading, following)
        stored = await world.sql("SELECT id FROM pgnotifybus.events ORDER BY id", world.dsn)
        assert sorted(followed) == [number for (number,) in stored], "the follower's events"
        statistics = bus.statistics()
        for reader in readers:
            received = statistics.channels[reader.channel].received
            assert reader.delivered + reader.skipped == received, "delivered + skipped = received"
        report.generations = bus.health().generation
        report.sent, report.events = numbers.last, len(followed)
        report.delivered = sum(each.delivered for each in readers)
        report.skipped = sum(each.skipped for each in readers)
        assert report.growth < _GROWTH, f"memory grows: {report.growth:,} bytes, {report.grown}"


class _Numbers:
    """What the writer has come to."""

    def __init__(self) -> None:
        self.begun = 0
        self.last = 0
        """The number of the last message, once it is known to be sent; 0 before."""
        self.stop = asyncio.Event()
        self.down = asyncio.Event()

    def is_last(self, number: int) -> bool:
        """Whether a message is the last one."""
        return self.last != 0 and number >= self.last

    def observe(self, event: observe.Event) -> None:
        if isinstance(event, observe.LinkDown):
            self.down.set()


async def _follow(follower: Any, followed: array[int], numbers: _Numbers) -> None:
    """Follow to the last event of every channel, whatever fails meanwhile."""
    left = len(CHANNELS)
    while True:
        try:
            async for event in follower:
                followed.append(event.id)
                left -= numbers.is_last(int(event.payload))
                if not left:
                    return
            return
        except LinkError:
            continue


async def _write(world: World, numbers: _Numbers) -> None:
    """Notify, and append, a number on every channel; the next; and a last one that is certain."""
    notify = ", ".join(f"pg_notify('{name}', %(number)s)" for name in CHANNELS)
    append = ", ".join(f"pgnotifybus.append('{name}', %(number)s)" for name in CHANNELS)
    statement = f"SELECT {notify}, {append}".encode()

    async def work(connection: Connection) -> None:
        while True:
            last = numbers.stop.is_set()
            if last:  # behind the last link, so that everybody hears it
                await world.bus.wait_until("live", "lagging", timeout=60)
            numbers.begun += 1
            if last:
                numbers.last = numbers.begun
            await connection.execute(statement, {"number": str(numbers.begun)})
            if last:
                return
            await asyncio.sleep(_PACE)

    await persistently(world.dsn, work)


async def _strike(
    world: World,
    report: Report,
    rng: random.Random,
    numbers: _Numbers,
    tell: Callable[[str], None],
) -> None:
    """One fault after the other, and sometimes two at once, until the time is over."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    base: _Held | None = None
    while (passed := loop.time() - began) < report.seconds:
        if base is None and passed > report.seconds / 3:
            base = _held()
        names = [rng.choice((*_SERVER, *_NETWORK)), *rng.sample(_NETWORK, rng.choice((0, 0, 0, 1)))]
        chosen = [CASES[name] for name in dict.fromkeys(names)]
        tell(f"{passed:6.1f} s  {' and '.join(case.title for case in chosen)}")
        await _combined(world, chosen, rng, numbers)
        report.faults.update(case.title for case in chosen)
        await world.bus.wait_until("live", "lagging", timeout=60)
        await asyncio.sleep(rng.random())
    now = _held()
    report.growth = sum(now.values()) - sum((base or now).values())
    grown = {line: size - (base or now)[line] for line, size in now.items()}
    report.grown = dict(sorted(grown.items(), key=lambda item: -item[1])[:5])


async def _combined(
    world: World, chosen: list[Case], rng: random.Random, numbers: _Numbers
) -> None:
    # Struck between two links, there is none to lose.
    if world.bus.health().state in ("live", "lagging"):
        numbers.down.clear()
    for case in chosen:
        await case.strike(world)
    async with asyncio.timeout(60):
        await numbers.down.wait()
    await asyncio.sleep(rng.random())
    await _mend(world)


async def _mend(world: World) -> None:
    """Whatever it was."""
    await asyncio.to_thread(world.server.resume)
    await asyncio.to_thread(world.server.start)
    await world.proxy.reset()
    await world.proxy.heal()


def _held() -> _Held:
    """The bytes that the library holds, by the line that has asked for them."""
    gc.collect()
    own = tracemalloc.take_snapshot().filter_traces(
        [
            tracemalloc.Filter(True, _SOURCE),
            tracemalloc.Filter(False, str(Path(_SOURCE).parent / "testing" / "*")),
        ]
    )
    return Counter({str(each.traceback): each.size for each in own.statistics("lineno")})
