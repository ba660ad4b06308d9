"""Fixtures for users' tests; pytest finds this by itself (entry point `pytest11`). Layer: testing.

Nothing is started, imported or changed unless a test asks for one of these. All of them are
synchronous: they work with pytest-asyncio, with anyio, and with neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pgnotifybus.embedded import EmbeddedServer
    from pgnotifybus.testing.memory import MemoryBus
    from pgnotifybus.testing.proxy import FaultProxy
    from pgnotifybus.testing.recording import RecordingObserver

TEST_DSN: Final = "PGNOTIFYBUS_TEST_DSN"
"""The environment variable that names a server to use instead of an embedded one."""


@pytest.fixture(scope="session")
def pgnotifybus_server() -> Iterator[EmbeddedServer]:
    """A PostgreSQL server of the test run's own, from a wheel (`pgnotifybus[testing]`).

    Started when it is first asked for, on 127.0.0.1, and removed with its data at the end.
    """
    from pgnotifybus.embedded import EmbeddedServer

    with EmbeddedServer(tcp=True) as server:
        yield server


@pytest.fixture(scope="session")
def pgnotifybus_server_dsn(request: pytest.FixtureRequest) -> str:
    """The DSN of the server in which `pgnotifybus_dsn` makes its databases.

    That of `$PGNOTIFYBUS_TEST_DSN`, or else of `pgnotifybus_server`. Override it to use yours; its
    role must be allowed to create databases.
    """
    chosen = os.environ.get(TEST_DSN)
    if chosen:
        return chosen
    server: EmbeddedServer = request.getfixturevalue("pgnotifybus_server")
    return server.dsn


@pytest.fixture(scope="session")
def pgnotifybus_template() -> str | None:
    """The database that each test gets a copy of; None for an empty one.

    Override it: make a database with your tables, once, and return its name.
    """
    return None


@pytest.fixture
def pgnotifybus_dsn(pgnotifybus_server_dsn: str, pgnotifybus_template: str | None) -> Iterator[str]:
    """The DSN of a database of the test's own, dropped behind it."""
    from pgnotifybus.testing.databases import fresh_database

    with fresh_database(pgnotifybus_server_dsn, pgnotifybus_template) as dsn:
        yield dsn


@pytest.fixture
def pgnotifybus_proxy(pgnotifybus_dsn: str) -> Callable[[], FaultProxy]:
    """Makes proxies in front of `pgnotifybus_dsn`: `async with pgnotifybus_proxy() as proxy:`."""
    from pgnotifybus.testing.proxy import FaultProxy

    return lambda: FaultProxy.in_front_of(pgnotifybus_dsn)


@pytest.fixture
def memory_bus() -> Callable[..., MemoryBus]:
    """Makes in-memory buses: `async with memory_bus(["orders"]) as bus:`.

    It takes what `MemoryBus` takes. All those of a test are on one server: they hear each other.
    """
    from pgnotifybus.testing.memory import MemoryBus
    from pgnotifybus.testing.server import MemoryServer

    server = MemoryServer()

    def make(channels: Iterable[Any] = (), **options: Any) -> MemoryBus:
        return MemoryBus(channels, **{"server": server, **options})

    return make


@pytest.fixture
def recording_observer() -> RecordingObserver:
    """An observer that remembers every event, to pass as `observer=`."""
    from pgnotifybus.testing.recording import RecordingObserver

    return RecordingObserver()
