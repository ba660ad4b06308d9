"""A loop that was blocked must not blame the server: on every loop and driver.

uvloop fires its timers before it looks at sockets, asyncio does it the other way round: where the
answer to a probe lies unread in the socket, the deadline comes first on one of them.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from pgnotifybus import PgNotifyBus, observe
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import RecordingObserver


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_blocked_loop_is_not_a_dead_server(database18: str, driver: Driver) -> None:
    """Trap 8, for longer than the interval and the deadline of a probe together."""
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18,
        ["a"],
        driver=driver,
        observer=recorder,
        probe_interval=0.1,
        probe_timeout=0.3,
    ) as bus:
        await recorder.wait_for(observe.ProbeAnswered)
        time.sleep(1.2)  # noqa: ASYNC251  # blocks the loop on purpose
        await recorder.wait_for(observe.ProbeAnswered, 3)
        assert bus.health().generation == 1


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_blocked_just_after_a_probe_was_sent(database18: str, driver: Driver) -> None:
    """The answer is in the socket when the timer of its deadline fires."""
    recorder = RecordingObserver()
    async with PgNotifyBus(
        database18,
        ["a"],
        driver=driver,
        observer=recorder,
        probe_interval=0.05,
        probe_timeout=0.2,
    ) as bus:
        for _ in range(5):
            answered = len(recorder.of(observe.ProbeAnswered))
            link_is_asked = asyncio.Event()
            # Looks once a turn of the loop whether a statement is under way, and blocks at once.
            blocking = asyncio.create_task(block_when_asked(link_is_asked))
            await link_is_asked.wait()
            await blocking
            await recorder.wait_for(observe.ProbeAnswered, answered + 1)
        assert bus.health().generation == 1
        assert not recorder.of(observe.LinkDown)


async def block_when_asked(asked: asyncio.Event) -> None:
    """Block the loop for longer than the deadline, once a probe is on its way."""
    while not any("inspect" in repr(t.get_coro()) for t in asyncio.all_tasks()):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # the statement's task runs, and sends it
    asked.set()
    time.sleep(0.9)  # noqa: ASYNC251  # blocks the loop on purpose
