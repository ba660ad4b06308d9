"""The pytest plugin, in test runs of its own: with every plugin for async tests, and with none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pgnotifybus.embedded import EmbeddedServer
from support import program

BODY = """\
import sys

def test_nothing_is_imported_for_those_who_ask_for_nothing():
    assert "pgnotifybus.testing.plugin" in sys.modules
    for name in ("psycopg", "asyncpg", "pgnotifybus.embedded", "pgnotifybus.testing.memory"):
        assert name not in sys.modules, name

async def check(dsn, make_proxy, memory_bus, observer):
    from pgnotifybus import PgNotifyBus, observe
    from pgnotifybus.testing import kill_link
    assert "s3cret" in dsn or "postgres@127.0.0.1" in dsn
    async with make_proxy() as proxy:
        async with PgNotifyBus(proxy.dsn, ["a"], observer=observer, backoff_initial=0.01) as bus:
            receiver = bus.subscribe("a")
            await bus.notify("a", "x")
            assert await receiver.recv() == "x"
            assert await kill_link(bus) == 2
            assert observer.count(observe.LinkUp) == 2
    async with memory_bus(["a"]) as one, memory_bus(["a"]) as other:
        receiver = one.subscribe("a")
        await other.notify("a", "y")
        assert await receiver.recv() == "y"
"""

FIXTURES = "pgnotifybus_dsn, pgnotifybus_proxy, memory_bus, recording_observer"

ASYNCIO = f"""
import pytest

@pytest.mark.asyncio
async def test_asyncio({FIXTURES}):
    await check({FIXTURES})
"""
ANYIO = f"""
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_anyio({FIXTURES}):
    await check({FIXTURES})
"""
NEITHER = f"""
import asyncio

def test_neither({FIXTURES}):
    asyncio.run(check({FIXTURES}))
"""


@pytest.mark.parametrize(
    ("without", "tests"),
    [
        pytest.param(["anyio"], ASYNCIO, id="pytest-asyncio"),
        pytest.param(["asyncio"], ANYIO, id="anyio"),
        pytest.param(["anyio", "asyncio"], NEITHER, id="neither"),
    ],
)
def test_the_fixtures_work_with_every_plugin(
    pg18: EmbeddedServer, tmp_path: Path, without: list[str], tests: str
) -> None:
    assert "2 passed" in run(tmp_path, BODY + tests, without, server=pg18.dsn)


def test_a_server_is_started_for_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    """Once for all tests, each of which has a database of its own, with what the template has."""
    told = run(
        tmp_path,
        """\
import psycopg, pytest

@pytest.fixture(scope="session")
def pgnotifybus_template(pgnotifybus_server_dsn):
    with psycopg.connect(pgnotifybus_server_dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop")
    with psycopg.connect(pgnotifybus_server_dsn.rpartition("/")[0] + "/shop") as connection:
        connection.execute("CREATE TABLE orders ()")
    return "shop"

@pytest.mark.parametrize("number", [1, 2])
def test_a_database(pgnotifybus_dsn, pgnotifybus_server, number):
    with psycopg.connect(pgnotifybus_dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE orders")

def test_the_databases_are_gone(pgnotifybus_server):
    print("data in", pgnotifybus_server.data_dir, end=".")
    with psycopg.connect(pgnotifybus_server.dsn) as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'")
        assert found.fetchall() == []
""",
        ["anyio", "asyncio"],
    )
    place = told.partition("data in ")[2].partition(".")[0]
    assert place
    assert not Path(place).exists()


def run(directory: Path, tests: str, without: list[str], server: str = "") -> str:
    """Run tests in a process of its own, which must pass; what it says."""
    (directory / "test_users.py").write_text(tests)
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-W", "error", "-p", "no:cacheprovider"]
    for name in without:
        argv += ["-p", f"no:{name}"]
    if "asyncio" not in without:  # which warns of a default that will change, if it is not said
        argv += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        argv,
        cwd=directory,
        env=program.clean_environment(PGNOTIFYBUS_TEST_DSN=server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
