"""The shared server: several real processes, any of which may be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pgnotifybus.embedded import default_data_dir, processes, shared_server
from support.directories import open_directory

_USER = """
import sys
from pathlib import Path
from pgnotifybus.embedded import shared_server

with shared_server(Path(sys.argv[1])) as server:
    print(server.pid, server.dsn, flush=True)
    sys.stdin.readline()
"""


class User:
    """A process that uses the shared server until it is told to leave, or killed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_in(self) -> tuple[int, str]:
        """Wait until the process uses the server; return the postmaster's pid and the DSN."""
        assert self.process.stdout is not None
        pid, dsn = self.process.stdout.readline().split()
        return int(pid), dsn

    def leave(self) -> None:
        """Let the process leave in good order, and wait for its end."""
        self.process.communicate("\n")
        assert self.process.returncode == 0

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def place() -> Iterator[Path]:
    with open_directory() as path:
        yield path / "pgtest"


@pytest.fixture
def new_user(place: Path) -> Iterator[Callable[[], User]]:
    with ExitStack() as stack:

        def start() -> User:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", _USER, str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return User(process)

        yield start
        with shared_server(place):  # whoever comes last stops what killed ones left
            pass


def answers(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def test_processes_that_start_at_once_share_one_server(new_user: Callable[[], User]) -> None:
    users = [new_user() for _ in range(4)]
    assert len({user.wait_in() for user in users}) == 1
    for user in users:
        user.leave()


@pytest.mark.parametrize("starter_first", [True, False])
def test_the_last_to_leave_stops_it(new_user: Callable[[], User], starter_first: bool) -> None:
    first = new_user()
    pid, dsn = first.wait_in()
    second = new_user()
    assert second.wait_in() == (pid, dsn)
    goes, stays = (first, second) if starter_first else (second, first)
    goes.leave()
    assert answers(dsn)
    stays.leave()
    assert not processes.alive(pid)


def test_the_data_stay(new_user: Callable[[], User]) -> None:
    first = new_user()
    _, dsn = first.wait_in()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept ()")
    first.leave()
    second = new_user()
    _, dsn = second.wait_in()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    second.leave()


def test_a_server_left_by_a_killed_process_is_adopted_and_stopped(
    new_user: Callable[[], User],
) -> None:
    first = new_user()
    pid, dsn = first.wait_in()
    first.kill()
    second = new_user()
    assert second.wait_in() == (pid, dsn)
    assert answers(dsn)
    second.leave()
    assert not processes.alive(pid)


def test_a_killed_user_does_not_keep_the_others_server_up(new_user: Callable[[], User]) -> None:
    first, second = new_user(), new_user()
    pid, _ = first.wait_in()
    second.wait_in()
    first.kill()
    second.leave()
    assert not processes.alive(pid)


def test_it_comes_back_after_a_crash_of_the_server(new_user: Callable[[], User]) -> None:
    first = new_user()
    pid, _ = first.wait_in()
    family = [pid, *processes.children(pid)]
    for each in family:
        processes.send(each, signal.SIGKILL)
    assert processes.wait_gone(family, 10) == []
    second = new_user()
    other, dsn = second.wait_in()
    assert other != pid
    assert answers(dsn)
    second.leave()
    first.leave()


def test_one_process_may_use_it_twice(place: Path) -> None:
    with shared_server(place) as outer:
        with shared_server(place) as inner:
            assert inner.dsn == outer.dsn
        assert answers(outer.dsn)


def test_the_place_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("PGNOTIFYBUS_DATA_DIR", str(place))
    assert default_data_dir(18) == place / "pg18"
    monkeypatch.delenv("PGNOTIFYBUS_DATA_DIR")
    assert default_data_dir(16).parts[-2:] == ("pgnotifybus", "pg16")
