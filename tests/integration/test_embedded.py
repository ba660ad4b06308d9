"""The embedded server: what it promises about data, ports, signals and leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from pgnotifybus.embedded import EmbeddedServer, EmbeddedServerError, processes
from support.directories import open_directory

PrivateServer = Callable[..., EmbeddedServer]


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return None if row is None else row[0]


def do(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


# -- connecting -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def socket_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


async def every_driver_connects(dsn: str) -> None:
    assert ask(dsn, "SELECT current_user") == "postgres"
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT current_user") == "postgres"
    await connection.close()
    for driver in ("psycopg", "asyncpg"):
        engine = create_async_engine(dsn.replace("postgresql://", f"postgresql+{driver}://"))
        async with engine.connect() as session:
            assert await session.scalar(sqlalchemy.text("SELECT current_user")) == "postgres"
        await engine.dispose()


async def test_every_driver_understands_the_dsn_of_the_socket(
    socket_server: EmbeddedServer,
) -> None:
    await every_driver_connects(socket_server.dsn)


async def test_every_driver_understands_the_dsn_over_tcp(server: EmbeddedServer) -> None:
    await every_driver_connects(server.dsn)
    assert int(str(ask(server.dsn, "SHOW server_version_num"))) // 10_000 == server.server_version


def test_the_server_speaks_utf8_and_plain_english(socket_server: EmbeddedServer) -> None:
    assert ask(socket_server.dsn, "SHOW server_encoding") == "UTF8"
    assert ask(socket_server.dsn, "SHOW lc_messages") == "C"


def test_without_tcp_nothing_listens_on_the_network(socket_server: EmbeddedServer) -> None:
    assert ask(socket_server.dsn, "SHOW listen_addresses") == ""


def test_the_password_is_asked_for_over_tcp_and_shown_nowhere(pg18: EmbeddedServer) -> None:
    wrong = pg18.dsn_for(password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(wrong, "SELECT 1")
    assert "s3cret" not in repr(pg18)
    command = ["ps", "-ww", "-o", "args=", "-p", str(pg18.pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert str(pg18.port) in shown
    assert "s3cret" not in shown


def test_dsn_for_quotes_names(pg18: EmbeddedServer) -> None:
    do(pg18.dsn, 'CREATE DATABASE "a b/ü"')
    try:
        assert ask(pg18.dsn_for(database="a b/ü"), "SELECT current_database()") == "a b/ü"
    finally:
        do(pg18.dsn, 'DROP DATABASE "a b/ü"')


def test_settings_reach_the_server() -> None:
    with EmbeddedServer(settings={"max_connections": "17"}) as server:
        assert ask(server.dsn, "SHOW max_connections") == "17"


# -- up and down ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_a_restart_keeps_data_and_port(private_server: PrivateServer, mode: str) -> None:
    server = private_server()
    do(server.dsn, f"CREATE TABLE kept_{mode} ()")
    before = server.dsn, server.pid
    match mode:
        case "immediate":
            server.restart("immediate")
        case "smart":
            server.restart("smart")
        case _:
            server.restart()
    assert server.dsn == before[0]
    assert server.pid != before[1]
    assert ask(server.dsn, f"SELECT count(*) FROM kept_{mode}") == 0


def test_stop_and_start_are_harmless_twice_and_keep_a_private_servers_data(
    private_server: PrivateServer,
) -> None:
    server = private_server()
    do(server.dsn, "CREATE TABLE kept_by_stop ()")
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert not server.running
    with pytest.raises(psycopg.OperationalError):
        ask(server.dsn, "SELECT 1")
    server.start()
    assert ask(server.dsn, "SELECT count(*) FROM kept_by_stop") == 0


def test_kill_ends_every_process_and_start_recovers(private_server: PrivateServer) -> None:
    server = private_server()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE survives ()")
        family = [server.pid, *processes.children(server.pid)]
        assert connection.info.backend_pid in family
        server.kill()
        assert not any(processes.alive(pid) for pid in family)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.start()
    assert ask(server.dsn, "SELECT count(*) FROM survives") == 0
    assert "was not properly shut down" in server.log_path.read_text()


def test_a_paused_server_answers_after_resume(private_server: PrivateServer) -> None:
    server = private_server()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        server.pause()
        assert server.paused
        assert server.running
        connection.pgconn.send_query(b"SELECT 1")
        # A stopped process makes no progress: what it was sent stays unread and unanswered.
        assert all(processes.state(pid) == "T" for pid in processes.children(server.pid))
        server.resume()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"1"
        assert connection.pgconn.get_result() is None


def test_a_paused_server_can_be_stopped_and_killed(private_server: PrivateServer) -> None:
    server = private_server()
    server.pause()
    server.stop()
    server.start()
    server.pause()
    server.kill()
    assert not server.running
    assert not server.paused


def test_close_leaves_nothing_of_a_private_server() -> None:
    server = EmbeddedServer()
    server.start()
    pid, data_dir = server.pid, server.data_dir
    server.close()
    server.close()
    assert not processes.alive(pid)
    assert not data_dir.parent.exists()


def test_data_in_a_given_directory_stay(directory: Path) -> None:
    with EmbeddedServer(directory / "data") as server:
        do(server.dsn, "CREATE TABLE kept ()")
    with EmbeddedServer(directory / "data") as server:
        assert ask(server.dsn, "SELECT count(*) FROM kept") == 0


def test_a_long_path_does_not_lengthen_the_sockets(directory: Path) -> None:
    with EmbeddedServer(directory / ("long" * 30) / "data") as server:
        assert ask(server.dsn, "SELECT 1") == 1
        socket_dir = server.socket_dir
        assert len(str(socket_dir)) < 80
    assert not socket_dir.exists()


# -- errors that say what to do -------------------------------------------------------------------


def test_a_server_that_does_not_start_shows_the_end_of_its_log(directory: Path) -> None:
    server = EmbeddedServer(directory / "data", settings={"max_connections": "many"})
    with pytest.raises(EmbeddedServerError, match=r"(?s)did not start.*max_connections"):
        server.start()
    assert not server.running


def test_one_data_directory_takes_one_server(directory: Path) -> None:
    second = EmbeddedServer(directory / "data")
    with (
        EmbeddedServer(directory / "data"),
        pytest.raises(EmbeddedServerError, match="shared_server"),
    ):
        second.start()
    assert not second.running


def test_a_directory_of_something_else_is_not_touched(directory: Path) -> None:
    (directory / "data").mkdir()
    (directory / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbeddedServerError, match="choose another"):
        EmbeddedServer(directory / "data").start()
    assert [each.name for each in (directory / "data").iterdir()] == ["thesis.txt"]


def test_a_directory_keeps_its_version(directory: Path) -> None:
    with EmbeddedServer(directory / "data", version=16):
        pass
    assert EmbeddedServer(directory / "data").server_version == 16
    with pytest.raises(EmbeddedServerError, match="made by PostgreSQL 16, not 18"):
        EmbeddedServer(directory / "data", version=18).start()


def test_a_server_that_is_not_running_says_so() -> None:
    with pytest.raises(EmbeddedServerError, match="call start"):
        _ = EmbeddedServer().dsn


# -- the owning process ---------------------------------------------------------------------------

_OWNER = """
import sys, psycopg
from pgnotifybus.embedded import EmbeddedServer

server = EmbeddedServer()
server.start()
try:
    print(server.pid, server.data_dir, flush=True)
    sys.stdin.readline()
except KeyboardInterrupt:
    with psycopg.connect(server.dsn) as connection:
        print(connection.execute("SELECT 'still here'").fetchone()[0], flush=True)
"""


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process that never stops its server, in a group of its own as a terminal makes it."""
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        yield process
        process.kill()


def read_owner(owner: subprocess.Popen[str]) -> tuple[int, Path]:
    assert owner.stdout is not None
    pid, data_dir = owner.stdout.readline().split()
    return int(pid), Path(data_dir)


def test_the_end_of_the_process_ends_its_private_servers(owner: subprocess.Popen[str]) -> None:
    pid, data_dir = read_owner(owner)
    owner.communicate("\n")
    assert owner.returncode == 0
    assert not processes.alive(pid)
    assert not data_dir.parent.parent.exists()


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(owner: subprocess.Popen[str]) -> None:
    read_owner(owner)
    os.killpg(owner.pid, signal.SIGINT)
    assert owner.communicate()[0].strip() == "still here"


def test_what_a_killed_process_left_is_cleared_away_by_the_next(
    owner: subprocess.Popen[str],
) -> None:
    pid, data_dir = read_owner(owner)
    owner.kill()
    owner.wait()
    assert processes.alive(pid)
    next_run = "from pgnotifybus.embedded import EmbeddedServer as S\nwith S(): pass"
    subprocess.run([sys.executable, "-W", "error", "-c", next_run], check=True)
    assert not processes.alive(pid)
    assert not data_dir.parent.parent.exists()
