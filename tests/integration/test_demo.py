"""The demo, as a process: its numbers add up, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from pgnotifybus import __version__
from pgnotifybus.embedded import EmbeddedServer
from support.directories import open_directory
from support.program import clean_environment, command, run, running


def schemas(dsn: str) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgnotifybus%'"
        )
        return [row[0] for row in rows]


def check(summary: dict[str, Any]) -> None:
    """The numbers of a summary add up."""
    assert summary["ok"] is True
    assert [each["name"] for each in summary["receivers"]] == ["cache", "jobs", "report"]
    for each in summary["receivers"]:
        assert each["sent"] == summary["sent"] > 0
        assert each["sent"] == each["delivered"] + each["skipped"] + each["missed"]
        assert (each["lost"], each["unread"]) == (0, 0)
    assert len({each["missed"] for each in summary["receivers"]}) == 1


def test_it_runs_on_a_server_of_its_own_and_leaves_nothing() -> None:
    with open_directory() as place:
        # That DATABASE_URL leads nowhere shows that it is not looked at.
        environment = {"TMPDIR": str(place), "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
        done = run("demo", "--seconds", "4", "--json", env=environment)
        assert done.returncode == 0, done.stderr
        assert list(place.iterdir()) == []
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    summary = json.loads(lines[-1])
    check(summary)
    cache, jobs, report = summary["receivers"]
    assert (summary["kills"], summary["generations"]) == (1, 2)
    assert summary["version"] == __version__
    assert summary["server_version"].startswith("18")
    assert 4 <= summary["seconds"] < 10
    # All of them lose what was sent in the outage, and only the slow one lags.
    assert cache["missed"] > 0
    assert (cache["gaps"], cache["skipped"]) == (1, 0)
    assert (jobs["gaps"], jobs["skipped"]) == (1, 0)
    assert report["gaps"] >= 2
    assert report["skipped"] > 0
    for said in ("pg_terminate_backend", "lost; connecting", "generation 2", "→ re-read"):
        assert said in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_on_a_real_server_ctrl_c_ends_it_and_its_schema_is_dropped(
    database18: str, driver: str
) -> None:
    with running("demo", "--json", "--driver", driver, "--dsn", database18) as program:
        program.until(lambda line: "generation 2" in line, "err")
        assert len(schemas(database18)) == 1
        program.signal(signal.SIGINT)
        assert program.end() == 0
    summary = json.loads(program.out[-1])
    check(summary)
    assert (summary["driver"], summary["kills"]) == (driver, 1)
    assert schemas(database18) == []


def test_the_summary_for_people(database: str) -> None:
    done = run("demo", "--seconds", "1", "--dsn", database)
    assert done.returncode == 0
    assert "Nothing was lost silently" in done.stdout
    assert done.stdout.count("adds up") == 3


def test_sigterm_ends_it_orderly_and_says_so(database18: str) -> None:
    with running("demo", "--dsn", database18) as program:
        program.until(lambda line: "generation 1" in line, "err")
        program.signal(signal.SIGTERM)
        assert program.end() == 143
    assert schemas(database18) == []


def test_a_signal_while_the_server_starts_leaves_nothing() -> None:
    with open_directory() as place:
        with running("demo", env={"TMPDIR": str(place)}) as program:
            program.until(lambda line: "starting PostgreSQL" in line, "err")
            program.signal(signal.SIGINT)
            assert program.end() == 130
        assert list(place.iterdir()) == []
    assert len(program.err) == 1


def test_who_may_not_make_a_schema_is_told_so(database18: str) -> None:
    role = urlsplit(database18).path[1:] + "_role"
    with psycopg.connect(database18, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")
    try:
        parts = urlsplit(database18)
        dsn = parts._replace(netloc=f"{role}:pw@127.0.0.1:{parts.port}").geturl()
        done = run("demo", "--seconds", "1", "--dsn", dsn)
    finally:
        with psycopg.connect(database18, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: the user {role} may not make a schema")
    assert done.stderr.count("\n") == 1


def test_a_server_that_dies_ends_it_with_one_error(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    server = private_server()
    with running("demo", "--dsn", server.dsn) as program:
        program.until(lambda line: "generation 1" in line, "err")
        server.kill()
        assert program.end() == 1
    errors = [line for line in program.err if line.startswith("error: ")]
    assert len(errors) == 1
    assert "own connection failed" in errors[0]
    assert any("DROP SCHEMA pgnotifybus_demo_" in line for line in program.err)
    assert not any("Traceback" in line for line in program.err)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_the_live_view_and_then_the_summary(database18: str) -> None:
    leader, follower = pty.openpty()
    environment = clean_environment(TERM="xterm-256color", COLUMNS="80", LINES="24")
    with subprocess.Popen(
        command("demo", "--seconds", "3", "--dsn", database18),
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(leader, 65_536):
                shown += chunk
        os.close(leader)
        assert process.wait(10) == 0
    view, _, rest = shown.decode().rpartition("\x1b[?1049l")  # back from the other screen
    for said in ("the link", "subscribers", "what happens", "generation ", "+ missed", "Gap"):
        assert said in view
    assert "Nothing was lost silently" in rest


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_no_password_in_the_process_list(database18: str) -> None:
    with running("demo", "--dsn", database18) as program:
        program.until(lambda line: "generation 1" in line, "err")
        arguments = Path(f"/proc/{program.pid}/cmdline").read_bytes()
        assert b"s3cret" not in arguments
        program.signal(signal.SIGINT)
        assert program.end() == 0
