"""SIGTERM ends an application's bus at once, whatever the bus is at."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgnotifybus.core.health import STATES
from pgnotifybus.embedded import EmbeddedServer
from support import pgbouncer
from support.copies import standby_beside
from support.program import Program, running
from support.servers import PASSWORD
from support.waiting import until

PrivateServer = Callable[..., EmbeddedServer]

LISTENER = "application_name = 'pgnotifybus listener'"

# As an application would have it: its signal sets the event that ends `run`.
APPLICATION = """
import asyncio, signal, sys
from pgnotifybus import PgNotifyBus, observe

def tell(event):
    if isinstance(event, observe.StateChanged):
        print(event.new, flush=True)

async def main(dsn, driver):
    shutdown = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, shutdown.set)
    bus = PgNotifyBus(
        dsn, ["a"], driver=driver, capacity=2, observer=tell, probe_interval=0.2,
        probe_timeout=0.5, backoff_initial=30,
    )
    unread = bus.subscribe("a")
    await bus.run(shutdown)
    assert unread is not None and len(asyncio.all_tasks()) == 1

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.contextmanager
def application(dsn: str, driver: str) -> Iterator[Program]:
    with running(argv=[sys.executable, "-c", APPLICATION, dsn, driver]) as program:
        yield program


@contextlib.contextmanager
def connecting(server: EmbeddedServer, driver: str) -> Iterator[Program]:
    """To something that says nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        application(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x", driver) as program,
    ):
        silent.settimeout(10)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            yield program


@contextlib.contextmanager
def lagging(server: EmbeddedServer, driver: str) -> Iterator[Program]:
    with application(server.dsn, driver) as program:
        program.until(lambda line: line == "live")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_notify('a', n::text) FROM generate_series(1, 100) AS n")
        yield program


@contextlib.contextmanager
def standby(server: EmbeddedServer, driver: str) -> Iterator[Program]:
    with standby_beside(server, PASSWORD) as copy, application(copy.dsn, driver) as program:
        yield program


@contextlib.contextmanager
def behind_a_pooler(server: EmbeddedServer, driver: str) -> Iterator[Program]:
    if pgbouncer.PROGRAM is None:
        pytest.skip("PgBouncer is not installed (package pgbouncer)")
    with (
        pgbouncer.bouncer(server, server.dsn, "transaction") as bouncer,
        application(bouncer.dsn, driver) as program,
    ):
        yield program


@contextlib.contextmanager
def down(server: EmbeddedServer, driver: str) -> Iterator[Program]:
    """Waiting for the next attempt, for up to half a minute."""
    with application(server.dsn, driver) as program:
        program.until(lambda line: line == "live")
        server.stop()
        yield program


SITUATIONS = {
    "connecting": connecting,
    "live": lambda server, driver: application(server.dsn, driver),
    "lagging": lagging,
    "standby": standby,
    "behind a pooler": behind_a_pooler,
    "down": down,
}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("state", SITUATIONS)
def test_sigterm_ends_it_at_once(private_server: PrivateServer, state: str, driver: str) -> None:
    server = private_server(18, {"wal_level": "replica", "max_prepared_transactions": "4"})
    with SITUATIONS[state](server, driver) as program:
        program.until(lambda line: line == state)
        program.signal(signal.SIGTERM)
        assert program.process.wait(3) == 0  # and not after `backoff_initial`, or a timeout
        assert program.end() == 0
    assert program.out[-1] == "stopped"
    assert not [line for line in program.err if "Traceback" in line or "was never" in line]
    server.start()
    asyncio.run(until(server.dsn, f"SELECT count(*) = 0 FROM pg_stat_activity WHERE {LISTENER}"))


def test_every_state_is_tried() -> None:
    assert set(SITUATIONS) == set(STATES) - {"new", "stopped"}
