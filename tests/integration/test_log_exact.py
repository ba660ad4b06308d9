"""Every committed event exactly once, none of the rolled back, whatever is killed.

`EXACTNESS_SECONDS=300 make test ARGS="-k exactly_once"` runs it for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable

import psycopg
import pytest

from pgnotifybus import EventLog, observe, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.testing import RecordingObserver
from support.storying import Account, Writers, committed, crasher, killer

PrivateServer = Callable[..., EmbeddedServer]

SECONDS = float(os.environ.get("EXACTNESS_SECONDS", "8"))
SEED = int(os.environ.get("EXACTNESS_SEED", "4"))
SETTINGS = {"max_prepared_transactions": "64", "max_connections": "200", "wal_writer_delay": "1s"}


@pytest.mark.parametrize("version", [16, 18])
@pytest.mark.parametrize("crash", [False, True], ids=["backends", "server"])
async def test_every_event_reaches_every_follower_exactly_once(
    private_server: PrivateServer, version: int, crash: bool
) -> None:
    """Traps 26 to 28, 30 and 31, with one unrelated transaction open all the time."""
    server = private_server(version, SETTINGS)
    dsn = server.dsn
    await schema.remove(dsn)
    await schema.install(dsn)
    chance = random.Random(SEED)
    writers = Writers(dsn, 32, SEED, channels=["orders", "jobs"])
    one, two, both = Account(), Account(), Account()
    recorder = RecordingObserver()
    async with (
        EventLog(dsn, observer=recorder) as first,
        EventLog(dsn, observer=recorder, capacity=2) as second,  # is overrun all the time
        contextlib.AsyncExitStack() as stack,
    ):
        start = await first.cursor()
        if not crash:
            unrelated = await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))
            await unrelated.execute("CREATE TABLE IF NOT EXISTS unrelated (a int)")
            await unrelated.execute("INSERT INTO unrelated VALUES (1)")
        follows = [
            asyncio.create_task(one.follow(first, "orders", after=start)),
            asyncio.create_task(two.follow(second, "orders", after=str(start))),
            asyncio.create_task(both.follow(second, "orders", "jobs", after="beginning")),
        ]
        resumed = Account()
        follows.append(asyncio.create_task(_resuming(first, resumed, start, chance)))
        disturbances = [asyncio.create_task(killer(lambda: server.dsn, chance))]
        if crash:
            disturbances.append(asyncio.create_task(crasher(server, chance)))
        try:
            await writers.run(SECONDS)
        finally:
            for task in disturbances:
                task.cancel()
            await asyncio.wait(disturbances)
        await _end_prepared(dsn)
        orders, all_of_it = await committed(dsn, "orders"), await committed(dsn, "orders", "jobs")
        for account in (one, two, resumed):
            await account.until(len(orders), 20)
        await both.until(len(all_of_it), 20)
        for task in follows:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.wait(follows)
        problems = {
            "first": one.differences(orders),
            "overrun": two.differences(orders),
            "resumed": resumed.differences(orders),
            "both": both.differences(all_of_it),
        }
        problems = {name: problem for name, problem in problems.items() if problem}
        assert not problems, f"seed {SEED}: {problems}"
    assert len(all_of_it) > 100
    if not crash:  # it was worth something: somebody told for all
        states = [event.state for event in recorder.of(observe.PacemakerChanged)]
        assert "awake" in states


async def _resuming(log: EventLog, account: Account, start: object, chance: random.Random) -> None:
    """Follow for a moment, over and over, each time from the last cursor, as text."""
    cursor = str(start)
    while True:
        follower = log.follow("orders", after=cursor)
        for _ in range(chance.randint(1, 60)):
            event = await anext(follower)
            account.add(event)
            cursor = str(event.cursor)
        follower.close()


async def _end_prepared(dsn: str) -> None:
    """Writers that were killed may have left transactions prepared: they count if committed."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'writer'"
        )
        rows = await (await connection.execute("SELECT gid FROM pg_prepared_xacts")).fetchall()
        for (gid,) in rows:
            await connection.execute(f"COMMIT PREPARED '{gid}'".encode())
        await connection.execute("SELECT pgnotifybus.wake()")
