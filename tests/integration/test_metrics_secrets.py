"""What is told of faults carries no password: events, metrics, health, and the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from urllib.parse import quote, urlsplit, urlunsplit

import pytest

from pgnotifybus import EventLog, PgNotifyBus, observe, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from support.servers import PASSWORD
from support.sql import kill_listener
from support.watched import Watched, no_secret_in

WRONG = "hunter2/wrong pa:ss"


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched() as all_of_it:
        yield all_of_it


async def test_while_a_server_is_away(
    private_server: Callable[..., EmbeddedServer],
    driver: Driver,
    watched: Watched,
) -> None:
    server = private_server()
    await schema.install(server.dsn)
    quick = {"backoff_initial": 0.02, "backoff_maximum": 0.1, "probe_interval": 0.1}
    bus = PgNotifyBus(server.dsn, ["a"], driver=driver, observer=watched.recorder, **quick)  # type: ignore[arg-type]
    log = EventLog(server.dsn, driver=driver, observer=watched.recorder)
    async with bus, log, bus.publisher(linger=0, drain_timeout=20) as publisher:
        watched.add(bus)
        watched.add(log)
        await watched.recorder.wait_for(observe.ProbeAnswered)
        async with log.follow("a") as follower:
            await kill_listener(server.dsn)
            await watched.recorder.wait_for(observe.LinkDown)
            await asyncio.to_thread(server.stop)
            await publisher.publish("a", "1")
            await watched.recorder.wait_for(observe.PublishDelayed)
            await watched.recorder.wait_for(observe.ConnectFailed)
            await asyncio.to_thread(server.start)
            await bus.wait_until("live", timeout=20)
            assert follower is not None
    told = watched.told()
    assert "ConnectFailed(" in told
    assert "PublishDelayed(" in told
    no_secret_in(told, PASSWORD)


@pytest.mark.parametrize("fault", ["password", "port", "database"])
async def test_while_a_bus_cannot_connect(
    database18: str, driver: Driver, fault: str, watched: Watched
) -> None:
    parts = urlsplit(database18)
    password = quote(WRONG if fault == "password" else PASSWORD, safe="")
    port = 1 if fault == "port" else parts.port
    path = "/no_such_database" if fault == "database" else parts.path
    netloc = f"{parts.username}:{password}@{parts.hostname}:{port}"
    dsn = urlunsplit(parts._replace(netloc=netloc, path=path))
    bus = PgNotifyBus(dsn, ["a"], driver=driver, observer=watched.recorder, backoff_initial=0.01)
    watched.add(bus)
    shutdown = asyncio.Event()
    running = asyncio.create_task(bus.run(shutdown))
    await watched.recorder.wait_for(observe.ConnectFailed, 2)
    shutdown.set()
    await running
    told = watched.told()
    assert "ConnectFailed(" in told
    assert "pgnotifybus_connect_failures_total" in told
    no_secret_in(told, PASSWORD, WRONG)
