"""What is particular about some ways to lose a link; `test_chaos.py` goes through all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import psycopg
import pytest

from pgnotifybus import (
    ConnectError,
    Gap,
    LinkLost,
    Notification,
    PgNotifyBus,
    ProbeTimeout,
    observe,
)
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links import base
from pgnotifybus.links.sources import Driver
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import FaultProxy, RecordingObserver, kill_link
from support.sql import execute, kill_listener

PrivateServer = Callable[..., EmbeddedServer]

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


@dataclass
class Subject:
    """A bus under test, with a receiver on two configured channels and one of run time."""

    bus: PgNotifyBus
    recorder: RecordingObserver
    publish: str
    """The DSN to publish on, which bypasses the fault."""
    receivers: dict[str, Subscription] = field(default_factory=dict)

    async def subscribe(self) -> None:
        for name in ("a", "b"):
            receiver = self.bus.subscribe(name)
            assert receiver is not None
            self.receivers[name] = receiver
        self.receivers["dynamic"] = await self.bus.listen("dynamic")

    async def send(self, payload: str) -> None:
        for name in self.receivers:
            await execute(self.publish, "SELECT pg_notify(%s, %s)", name, payload)

    async def until_read(self, payload: str) -> None:
        """Wait until every receiver could read the payload, without reading it."""
        async with asyncio.timeout(10):
            for receiver in self.receivers.values():
                while not len(receiver):
                    await receiver._shared.parking.park()

    async def up_again(self, generation: int = 2) -> float:
        """Wait for the next link; the seconds from the loss to it."""
        down = await self.recorder.wait_for(observe.LinkDown, generation - 1, timeout=40)
        up = await self.recorder.wait_for(observe.LinkUp, generation, timeout=40)
        assert up.generation == generation == self.bus.health().generation
        assert isinstance(down.error, LinkLost)
        return down.seconds

    async def check(self) -> None:
        """One gap, of generation 2, between what was sent before and after; nothing more."""
        await self.send("after")
        for name, receiver in self.receivers.items():
            events = receiver.events()
            async with asyncio.timeout(10):
                seen = [await anext(events) for _ in range(3)]
            before, gap, after = seen
            assert isinstance(before, Notification), seen
            assert isinstance(after, Notification), seen
            assert (before.payload, before.generation) == ("before", 1)
            assert gap == Gap("reconnected", name, 2, None)
            assert (after.payload, after.generation) == ("after", 2)
        assert len(self.recorder.of(observe.LinkUp)) == 2
        assert len(self.recorder.of(observe.LinkDown)) == 1


@contextlib.asynccontextmanager
async def running(
    source: object, driver: Driver | None, publish: str | None = None, **options: float
) -> AsyncIterator[Subject]:
    recorder = RecordingObserver()
    bus = PgNotifyBus(
        source,
        ["a", "b"],
        driver=driver,
        observer=recorder,
        backoff_initial=0.1,
        **options,  # type: ignore[arg-type]
    )
    async with bus:
        subject = Subject(bus, recorder, publish or str(source))
        await subject.subscribe()
        await subject.send("before")
        await subject.until_read("before")
        yield subject


# -- the server ends it ---------------------------------------------------------------------------


async def test_the_backend_is_terminated(database: str, driver: Driver) -> None:
    """Trap 1, on every PostgreSQL."""
    async with running(database, driver) as subject:
        assert await kill_link(subject.bus) == 2
        await subject.up_again()
        await subject.check()


async def test_a_failed_listen_is_no_generation(database18: str, driver: Driver) -> None:
    """Trap 1: the session ends between connecting and the answer to LISTEN."""
    made = 0

    async def fresh() -> object:
        nonlocal made
        made += 1
        connection: Any
        if driver == "psycopg":
            connection = await psycopg.AsyncConnection.connect(database18, autocommit=True)
            pid = connection.info.backend_pid
        else:
            connection = await asyncpg.connect(database18)
            pid = connection.get_server_pid()
        if made in (2, 3):
            await execute(database18, "SELECT pg_terminate_backend(%s, 5000)", pid)
        return connection

    async with running(fresh, None, publish=database18) as subject:
        assert await kill_listener(database18) == 1
        await subject.up_again()
        assert len(subject.recorder.of(observe.ConnectFailed)) == 2
        assert made == 4
        await subject.check()


async def test_a_refused_connection_is_no_generation(database18: str, driver: Driver) -> None:
    """Trap 9: attempts go on, each later than the one before."""
    async with FaultProxy.in_front_of(database18) as proxy:
        async with running(proxy.dsn, driver, publish=database18) as subject:
            await proxy.refuse()
            await proxy.reset()
            await subject.recorder.wait_for(observe.ConnectFailed, 3)
            await proxy.heal()
            await subject.up_again()
            delays = [event.retry_in for event in subject.recorder.of(observe.ConnectFailed)]
            assert all(a < b for a, b in itertools.pairwise(delays))
            await subject.check()


# -- the network ends it --------------------------------------------------------------------------


async def test_a_link_that_drips_is_as_good_as_silent(database18: str, driver: Driver) -> None:
    """A byte now and then says nothing: whole messages and answers do."""
    async with FaultProxy.in_front_of(database18) as proxy:
        async with running(
            proxy.dsn, driver, publish=database18, probe_interval=0.3, probe_timeout=0.4
        ) as subject:
            await proxy.drip(20)
            await execute(database18, "SELECT pg_notify('a', repeat('x', 7000))")
            down = await subject.recorder.wait_for(observe.LinkDown, timeout=10)
            assert isinstance(down.error, ProbeTimeout)


async def test_a_black_hole_is_noticed_within_ten_seconds_by_default(database18: str) -> None:
    """Trap 5, with the defaults that users get."""
    async with FaultProxy.in_front_of(database18) as proxy:
        async with running(proxy.dsn, "psycopg", publish=database18) as subject:
            await proxy.stall()
            began = time.monotonic()
            await subject.recorder.wait_for(observe.LinkDown)
            assert time.monotonic() - began < 10
            await proxy.reset()
            await proxy.heal()
            await subject.up_again()
            await subject.check()


async def test_a_session_that_no_longer_listens_is_noticed(database18: str) -> None:
    """Trap 11's mild form: something between us and the server has emptied the session."""
    made: list[psycopg.AsyncConnection[tuple[object, ...]]] = []

    async def fresh() -> psycopg.AsyncConnection[tuple[object, ...]]:
        made.append(await psycopg.AsyncConnection.connect(database18, autocommit=True))
        return made[-1]

    recorder = RecordingObserver()
    async with PgNotifyBus(
        fresh, ["a"], observer=recorder, probe_interval=0.05, backoff_initial=0.05
    ):
        await recorder.wait_for(observe.ProbeAnswered)
        made[0].pgconn.exec_(b"UNLISTEN *")  # synchronously, between two probes
        down = await recorder.wait_for(observe.LinkDown)
        assert "no longer listens" in str(down.error)
        await recorder.wait_for(observe.LinkUp, 2)


async def test_an_idle_session_timeout_ends_it(
    database18: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 6, for one that we could not turn off: a loss like any other."""
    spoiled = base.PREPARE_SESSION.replace("set_config(name, '0'", "set_config(name, '200ms'")
    monkeypatch.setattr(base, "PREPARE_SESSION", spoiled.replace("AND setting <> '0'", ""))
    async with running(database18, driver, probe_interval=60) as subject:
        await subject.recorder.wait_for(observe.LinkDown)
        monkeypatch.undo()
        await subject.recorder.wait_for(observe.LinkUp, 2)
        await subject.up_again(subject.bus.health().generation)
        assert len(subject.recorder.of(observe.LinkUp)) == 2
        await subject.check()


async def test_a_primary_that_becomes_a_standby_and_is_promoted(
    private_server: PrivateServer, driver: Driver
) -> None:
    """Trap 10: a standby takes no LISTEN; the bus waits for it, and `async with` says why."""
    server = private_server(settings={"hot_standby": "on"})
    signal_file = server.data_dir / "standby.signal"
    async with running(server.dsn, driver) as subject:
        await asyncio.to_thread(server.stop)
        signal_file.touch()
        os.chown(signal_file, *owner(server))
        await asyncio.to_thread(server.start)
        failed = await subject.recorder.wait_for(
            observe.ConnectFailed, where=lambda event: "standby" in str(event.error)
        )
        assert isinstance(failed.error, ConnectError)
        assert failed.error.waiting_helps
        for channels in (["a"], []):
            with pytest.raises(ConnectError, match="standby"):
                async with PgNotifyBus(server.dsn, channels, driver=driver, start_timeout=0.01):
                    pass
        await execute(server.dsn, "SELECT pg_promote()")
        await subject.up_again()
        await subject.check()


def owner(server: EmbeddedServer) -> tuple[int, int]:
    """Whose the server's files are."""
    stat = server.data_dir.stat()
    return stat.st_uid, stat.st_gid


async def test_wishes_taken_back_during_an_outage_leave_nothing(
    database18: str, driver: Driver
) -> None:
    """Invariant 6, while there is no link that could be asked."""
    async with FaultProxy.in_front_of(database18) as proxy:
        async with running(proxy.dsn, driver, publish=database18) as subject:
            await proxy.refuse()
            await proxy.reset()
            await subject.recorder.wait_for(observe.LinkDown)
            for number in range(100):
                wish = asyncio.create_task(subject.bus.listen(f"room:{number}"))
                await asyncio.sleep(0)
                wish.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await wish
            failures = len(subject.recorder.of(observe.ConnectFailed))
            await subject.recorder.wait_for(observe.ConnectFailed, failures + 2)
            assert len(subject.bus.statistics().channels) == 3
            await proxy.heal()
            await subject.up_again()
            await subject.check()
