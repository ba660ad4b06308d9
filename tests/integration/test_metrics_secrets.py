"""What is told of faults carries no password: events, metrics, health, and the log."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from pgnotifybus import EventLog, PgNotifyBus, observe, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.metrics import opentelemetry, prometheus
from pgnotifybus.testing import RecordingObserver
from support.servers import PASSWORD
from support.sql import kill_listener

WRONG = "hunter2/wrong pa:ss"


@pytest.fixture(params=["psycopg", "asyncpg"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


class Watched:
    """Everything that is told of some buses and logs, in one text."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "pgnotifybus")
        self.recorder = RecordingObserver()
        self._caplog = caplog
        self._registry = CollectorRegistry()
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self._subjects: list[PgNotifyBus | EventLog] = []

    def add(self, subject: PgNotifyBus | EventLog) -> None:
        name = f"number {len(self._subjects)}"
        self._subjects.append(subject)
        prometheus.instrument(subject, registry=self._registry, name=name)
        opentelemetry.instrument(subject, meter_provider=self._provider, name=name)

    def told(self) -> str:
        data = self._reader.get_metrics_data()
        said: list[Any] = [
            self._caplog.text,
            generate_latest(self._registry).decode(),
            data.to_json() if data is not None else "",
            *(str(each) + repr(each) + repr(each.health()) for each in self._subjects),
        ]
        for event in self.recorder.events:
            said += [str(event), repr(event)]
            error = getattr(event, "error", None)
            if error is not None:
                said += [str(error), repr(error), *traceback.format_exception(error, chain=False)]
        self._provider.shutdown()
        return "\n".join(said)


def no_secret_in(text: str, *secrets: str) -> None:
    for secret in secrets:
        for spelled in (secret, quote(secret, safe=""), repr(secret)[1:-1]):
            at = text.find(spelled)
            assert at < 0, f"it is told: ...{text[max(0, at - 300) : at + 40]}..."


async def test_while_a_server_is_away(
    private_server: Callable[..., EmbeddedServer],
    driver: Driver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = private_server()
    await schema.install(server.dsn)
    watched = Watched(caplog)
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
    database18: str, driver: Driver, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(database18)
    password = quote(WRONG if fault == "password" else PASSWORD, safe="")
    port = 1 if fault == "port" else parts.port
    path = "/no_such_database" if fault == "database" else parts.path
    netloc = f"{parts.username}:{password}@{parts.hostname}:{port}"
    dsn = urlunsplit(parts._replace(netloc=netloc, path=path))
    watched = Watched(caplog)
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
