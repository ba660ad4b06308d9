"""Servers, databases and the check that nothing is left behind, for every test."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator

import pytest

from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.testing.databases import fresh_database
from support.leaks import Snapshot, leftover_tasks, lingering_connections
from support.servers import PACKAGES, Servers, why_absent

_USES_A_SERVER = {"server", "pg15", "pg16", "pg18", "private_server"}


# -- servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_servers() -> Iterator[Servers]:
    """The servers that live as long as the test run; nobody stops or pauses them."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def pg18(session_servers: Servers) -> EmbeddedServer:
    """PostgreSQL 18, from a wheel."""
    return session_servers.get(18)


@pytest.fixture(scope="session")
def pg16(session_servers: Servers) -> EmbeddedServer:
    """PostgreSQL 16, from a wheel."""
    return session_servers.get(16)


@pytest.fixture(scope="session")
def pg15(session_servers: Servers) -> EmbeddedServer:
    """PostgreSQL 15, where the machine has one."""
    reason = why_absent(15)
    if reason is not None:
        pytest.skip(reason)
    return session_servers.get(15)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("pg16", id="pg16"),
        pytest.param("pg18", id="pg18"),
        pytest.param("pg15", id="pg15"),
    ],
)
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Each PostgreSQL in turn."""
    found: EmbeddedServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def module_servers() -> Iterator[Servers]:
    """The servers that the tests of one module may do to what they like."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture
def private_server(module_servers: Servers) -> Callable[..., EmbeddedServer]:
    """Give out servers to restart, kill and pause: `private_server(version=18, settings=None)`.

    The tests of a module get the same one for the same arguments, running again whatever the test
    before did to it.
    """

    def get(version: int = 18, settings: dict[str, str] | None = None) -> EmbeddedServer:
        return module_servers.get(version, settings)

    return get


# -- databases ------------------------------------------------------------------------------------


@pytest.fixture
def database(server: EmbeddedServer) -> Iterator[str]:
    """The DSN of a fresh database, on each PostgreSQL in turn."""
    with fresh_database(server.dsn) as dsn:
        yield dsn
        lingering = lingering_connections(server.dsn)  # before dropping it would hide them
    _fail_if(lingering, "server connections")


@pytest.fixture(scope="session")
def pgnotifybus_server(pg18: EmbeddedServer) -> EmbeddedServer:
    """In the place of the plugin's own: the servers of a run are all in one account."""
    return pg18


@pytest.fixture
def database18(pgnotifybus_dsn: str, pg18: EmbeddedServer) -> Iterator[str]:
    """The DSN of a fresh database on PostgreSQL 18 only."""
    yield pgnotifybus_dsn
    _fail_if(lingering_connections(pg18.dsn), "server connections")


# -- nothing is left behind -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_resources_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which threads, sockets or connections to a server are left."""
    before = Snapshot.take()
    yield
    _fail_if(before.leftovers(), "threads and sockets")
    if _USES_A_SERVER & set(request.fixturenames):
        for name in ("session_servers", "module_servers"):
            if name in request.fixturenames:
                servers: Servers = request.getfixturevalue(name)
                for dsn in servers.dsns():
                    _fail_if(lingering_connections(dsn), "server connections")


@pytest.fixture(autouse=True)
def no_tasks_left(request: pytest.FixtureRequest, no_resources_left: None) -> None:
    """Fail an async test after which tasks are left, once its other fixtures have ended."""
    if _is_async(request):
        request.getfixturevalue("task_check")


@pytest.fixture
async def task_check(no_resources_left: None) -> AsyncIterator[None]:
    """The part of `no_tasks_left` that runs in the test's own loop."""
    yield
    _fail_if(await leftover_tasks(), "tasks")


def _is_async(request: pytest.FixtureRequest) -> bool:
    test = getattr(request, "function", None)
    # Hypothesis wraps a coroutine function into a plain one and keeps it here.
    test = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    return inspect.iscoroutinefunction(test)


def _fail_if(leftovers: list[str], kind: str) -> None:
    if leftovers:
        pytest.fail(f"left behind: {kind}\n  " + "\n  ".join(leftovers), pytrace=False)


# -- no silent skips in CI ------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one in CI, where everything it needs has to be."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a module that skips itself into a failure in CI."""
    report = yield
    if report.skipped:
        _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    excused = any(f"(package {package})" in reason for package in PACKAGES.values())
    if os.environ.get("CI") == "true" and not excused:
        report.outcome = "failed"
        report.longrepr = f"in CI nothing may be skipped, but this was: {reason}"
