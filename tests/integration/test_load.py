"""Under load and faults together: every message is accounted for, for every receiver."""

from __future__ import annotations

import asyncio
import random
import time

import psycopg
import pytest

from pgnotifybus import Gap, Lagged, Notification, PgNotifyBus, observe
from pgnotifybus.links.sources import Driver
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import RecordingObserver
from support.sql import execute, kill_listener

CHANNELS = ("a", "b", "c")
RECEIVERS = 50
MESSAGES = 200_000
BURST = 1_000
KILLS = 20
END = "end"
SEED = 20_261_122


class Reader:
    """One receiver with a pace of its own, and its books."""

    def __init__(self, number: int, channel: str, receiver: Subscription, seed: int) -> None:
        self.channel = channel
        self.receiver = receiver
        self.random = random.Random(seed * 1_000 + number)
        self.pause = (0, 0, 1, 5, 50)[number % 5]
        """How many times it lets others run between two events: some are slow, some stuck."""
        self.delivered = 0
        self.skipped = 0
        self.missed = 0
        self.expected = 0
        """The number of the next message, if nothing is missing."""
        self.in_gap = False
        self.generations: list[int] = []

    async def run(self) -> None:
        async for event in self.receiver.events():
            if isinstance(event, Gap):
                self.on_gap(event)
            elif event.payload == END:
                return
            else:
                self.on_message(event)
            for _ in range(self.random.randint(0, self.pause)):
                await asyncio.sleep(0)

    def on_gap(self, gap: Gap) -> None:
        if gap.reason == "lagged":
            assert gap.skipped is not None
            self.skipped += gap.skipped
            self.expected += gap.skipped
        else:
            assert gap.skipped is None
            self.in_gap = True
            self.generations.append(gap.generation)

    def on_message(self, event: Notification) -> None:
        number = int(event.payload)
        if self.in_gap:
            # Only behind a gap may numbers be missing; which is what the gap says.
            assert number >= self.expected, "out of order, or counted as skipped and delivered"
            self.missed += number - self.expected
            self.in_gap = False
        else:
            assert number == self.expected, f"{number} instead of {self.expected}: lost silently"
        self.expected = number + 1
        self.delivered += 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_nothing_is_lost_silently(database18: str, driver: Driver) -> None:
    """50 receivers of different speeds, 200,000 messages, 20 killed connections.

    Invariants 1 to 4. A lag and a gap can fall together: skipped messages are counted exactly, so
    that what is missing beyond them lies behind a gap.
    """
    seed = SEED
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18,
        CHANNELS,
        driver=driver,
        capacity=4_096,
        observer=recorder,
        backoff_initial=0.02,
        backoff_maximum=0.05,
    ) as bus:
        readers = []
        for number in range(RECEIVERS):
            channel = CHANNELS[number % len(CHANNELS)]
            receiver = bus.subscribe(channel)
            assert receiver is not None
            readers.append(Reader(number, channel, receiver, seed))
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(reader.run())
            sent = await write(database18, recorder, random.Random(seed))
            assert len(recorder.of(observe.LinkUp)) == KILLS + 1
            for channel in CHANNELS:
                await execute(database18, "SELECT pg_notify(%s, %s)", channel, END)
        for reader in readers:
            total = sent[reader.channel]
            # What was sent during the last outage is missing at the end, in front of END.
            if reader.in_gap:
                reader.missed += total - reader.expected
            assert reader.delivered + reader.skipped + reader.missed == total
            # Gaps with nothing between them are one; the newest is always told.
            assert reader.generations == sorted(set(reader.generations))
            assert reader.generations[-1] == KILLS + 1
            account = reader.receiver.statistics()
            assert account.delivered == reader.delivered + 1
            assert account.skipped == reader.skipped
            assert account.unread == 0
        assert sum(reader.missed for reader in readers) > 0
        assert sum(reader.skipped for reader in readers) > 0
        assert sum(sent.values()) == MESSAGES


async def write(dsn: str, recorder: RecordingObserver, chance: random.Random) -> dict[str, int]:
    """Write bursts; kill the listener now and then, and write on while it is away."""
    sent = dict.fromkeys(CHANNELS, 0)
    kills_at = set(chance.sample(range(10, MESSAGES // BURST - 10), KILLS))
    kills, down_for = 0, -1
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for burst in range(MESSAGES // BURST):
            if burst in kills_at:
                await recorder.wait_for(observe.LinkUp, kills + 1)
                assert await kill_listener(dsn) == 1
                kills += 1
                await recorder.wait_for(observe.LinkDown, kills)
                down_for = chance.randint(0, 2)
            if down_for == 0:
                await recorder.wait_for(observe.LinkUp, kills + 1)
            down_for -= 1
            channel = chance.choice(CHANNELS)
            first = sent[channel]
            await connection.execute(
                "SELECT count(pg_notify(%s, i::text)) FROM generate_series(%s::int, %s) AS i",
                (channel, first, first + BURST - 1),
            )
            sent[channel] += BURST
    await recorder.wait_for(observe.LinkUp, KILLS + 1)
    return sent


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_blocked_event_loop(database18: str, driver: Driver) -> None:
    """Trap 8: the loop is blocked for 5 s under load; nothing is lost silently, and the server's
    queue drains.
    """
    async with PgNotifyBus(
        database18, ["c"], driver=driver, capacity=1_000, probe_interval=1, probe_timeout=1
    ) as bus:
        receiver = bus.subscribe("c")
        assert receiver is not None
        number = 200_000
        usage = "SELECT pg_notification_queue_usage()"

        def load_and_block() -> float:
            """What others do meanwhile, on the thread of the loop, which can do nothing else."""
            with psycopg.connect(database18, autocommit=True) as connection:
                until = time.monotonic() + 5
                for first in range(0, number, 20_000):
                    connection.execute(
                        "SELECT count(pg_notify('c', rpad(i::text, 100, '.')))"
                        " FROM generate_series(%s::int, %s) AS i",
                        (first, first + 19_999),
                    )
                row = connection.execute(usage.encode()).fetchone()
                connection.execute("SELECT pg_sleep(%s)", (max(0.0, until - time.monotonic()),))
                return float(row[0]) if row else 0.0

        pinned = load_and_block()
        assert pinned > 0, "the server had to keep what we did not read"
        delivered, skipped = 0, 0
        async with asyncio.timeout(30):
            while delivered + skipped < number:
                try:
                    delivered += len(await receiver.recv_many())
                except Lagged as lagged:
                    skipped += lagged.skipped
        assert delivered + skipped == number
        await bus.notify("c", "sentinel")
        assert await receiver.recv() == "sentinel"
        async with asyncio.timeout(10):
            while (await execute(database18, usage))[0][0] >= pinned:
                pass
        assert bus.health().generation == 1
