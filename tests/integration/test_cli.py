"""The command line, as processes against real PostgreSQL."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from pgnotifybus import __version__
from pgnotifybus.cli import app
from pgnotifybus.embedded import EmbeddedServer
from support.directories import open_directory
from support.program import clean_environment, command, run, running, wait_for
from support.servers import PASSWORD


def send(dsn: str, *messages: tuple[str, str]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for channel, payload in messages:
            connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))


def kill(dsn: str, pid: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


Invoke = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command in this process, which is quicker; for what ends by itself."""

    def invoke(
        *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["pgnotifybus", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(os, "environ", clean_environment(**(env or {})))
        with pytest.raises(SystemExit) as exited:
            app.main()
        said = capfd.readouterr()
        assert isinstance(exited.value.code, int)
        return subprocess.CompletedProcess(arguments, exited.value.code, said.out, said.err)

    return invoke


# -- listen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_each_message_is_a_line_and_count_ends_it(database18: str, driver: str) -> None:
    with running(
        "listen", "orders", "Jobs & more", "--count", "3", "--driver", driver, "--dsn", database18
    ) as program:
        program.listening()
        send(database18, ("orders", '{"id": 1}'), ("orders", ""), ("Jobs & more", "go"))
        assert program.end() == 0
    assert len(program.out) == 3
    orders = [line for line in program.out if line.startswith("orders")]  # in their order
    assert orders == ['orders\t{"id": 1}', "orders\t"]
    assert "Jobs & more\tgo" in program.out


def test_a_message_is_always_one_line_that_no_terminal_obeys(database18: str) -> None:
    with running("listen", "a", "--count", "1", "--dsn", database18) as program:
        program.listening()
        send(database18, ("a", "two\nlines\x1b[2J\u202e[red]\u2028\r\x07 ü"))
        assert program.end() == 0
    assert program.out == ["a\ttwo\\nlines\\x1b[2J\\u202e[red]\\u2028\\r\\x07 ü"]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_json_shows_a_reconnect_and_its_gap_in_place(database18: str, driver: str) -> None:
    with running(
        "listen", "a", "--json", "--count", "2", "--driver", driver, "--dsn", database18
    ) as program:
        up = json.loads(program.line())
        assert (up["type"], up["state"], up["generation"]) == ("link", "up", 1)
        send(database18, ("a", "before\n€"))
        program.until(lambda line: "before" in line)
        kill(database18, up["pid"])
        program.until(lambda line: '"generation":2' in line)
        send(database18, ("a", "after"))
        assert program.end() == 0
    items: list[dict[str, Any]] = [json.loads(line) for line in program.out]
    assert all(line.isascii() for line in program.out)
    assert [(each["type"], each.get("state")) for each in items] == [
        ("link", "up"),
        ("notification", None),
        ("link", "down"),
        ("link", "up"),
        ("gap", None),
        ("notification", None),
    ]
    assert items[1] | {"pid": 0} == {
        "type": "notification",
        "channel": "a",
        "payload": "before\n€",
        "pid": 0,
        "generation": 1,
    }
    assert items[4] == {
        "type": "gap",
        "reason": "reconnected",
        "channel": "a",
        "generation": 2,
        "skipped": None,
    }


def test_lines_for_people_show_the_gap_between_the_messages(database18: str) -> None:
    with running("listen", "a", "--count", "2", "--dsn", database18) as program:
        pid = int(program.until(lambda line: "PID" in line, "err").rpartition("PID ")[2])
        send(database18, ("a", "before"))
        program.line()
        kill(database18, pid)
        program.until(lambda line: "generation 2" in line, "err")
        send(database18, ("a", "after"))
        assert program.end() == 0
    before, gap, after = program.out
    assert (before, after) == ("a\tbefore", "a\tafter")
    assert gap.startswith("-- gap in a: the connection was lost")
    assert "\t" not in gap


def test_a_timeout_ends_it_and_says_whether_the_count_was_reached(
    invoke: Invoke, database18: str
) -> None:
    unmet = invoke("listen", "a", "--timeout", "0.2", "--count", "1", "--dsn", database18)
    assert (unmet.returncode, unmet.stdout) == (1, "")
    open_end = invoke("listen", "a", "--timeout", "0.2", "--dsn", database18)
    assert (open_end.returncode, open_end.stdout) == (0, "")


def test_it_ends_quietly_when_its_reader_does(database18: str) -> None:
    with running("listen", "a", "--dsn", database18, read_stdout=False) as program:
        program.listening()
        send(database18, ("a", "first"))
        assert program.process.stdout is not None
        assert program.process.stdout.readline() == b"a\tfirst\n"
        program.process.stdout.close()  # as `head -1` does; no further message comes
        assert program.end() == 0
    assert not any("Error" in line or "Traceback" in line for line in program.err)


def test_a_reader_that_stops_does_not_stop_the_listener(database18: str) -> None:
    """Trap 8: whoever stops reading the socket pins the server's notification queue."""
    messages = 3_000
    with running(
        "listen", "a", "--count", str(messages), "--dsn", database18, read_stdout=False
    ) as program:
        program.listening()
        with psycopg.connect(database18, autocommit=True) as connection:
            statement = (
                "SELECT pg_notify('a', n || repeat('.', 7000)) FROM generate_series(1, %s) n"
            )
            connection.execute(statement, (messages,))  # 21 MB, far beyond what buffers hold

            def usage() -> float:
                # Only an advance of the queue by another commit moves its tail.
                connection.execute("NOTIFY other")
                row = connection.execute("SELECT pg_notification_queue_usage()").fetchone()
                assert row is not None
                return float(row[0])

            wait_for(lambda: usage() < 0.0001)
        assert program.process.poll() is None
        program.read_stdout()
        assert program.end() == 0
    numbers = [line.partition("\t")[2].rstrip(".") for line in program.out]
    assert numbers == [str(n) for n in range(1, messages + 1)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_without_a_traceback(
    database18: str, number: signal.Signals, code: int
) -> None:
    with running("listen", "a", "--dsn", database18) as program:
        program.listening()
        program.signal(number)
        assert program.end() == code
    assert len(program.err) == 1


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_signal_ends_it_while_the_server_does_not_answer(driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        with running("listen", "a", "--driver", driver, "--dsn", dsn) as program:
            silent.settimeout(10)
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                program.signal(signal.SIGINT)
                assert program.end() == 130
    assert program.err == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_signal_ends_it_while_the_server_is_away(
    private_server: Callable[..., EmbeddedServer], driver: str
) -> None:
    server = private_server()
    with running("listen", "a", "--driver", driver, "--dsn", server.dsn) as program:
        program.listening()
        server.stop()
        program.until(lambda line: "attempt" in line, "err")
        program.signal(signal.SIGTERM)
        assert program.end() == 143


def test_a_signal_ends_it_while_its_reader_has_stopped(database18: str) -> None:
    with running("listen", "a", "--dsn", database18, read_stdout=False) as program:
        program.listening()
        with psycopg.connect(database18, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_notify('a', n || repeat('.', 7000)) FROM generate_series(1, 100) n"
            )
        assert program.process.stdout is not None
        program.process.stdout.read(1)  # so it is writing, and 700 kB do not fit into the pipe
        program.signal(signal.SIGINT)
        assert program.process.wait(10) == 130


# -- notify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_notify_sends_exactly_what_it_was_given(
    invoke: Invoke, database18: str, driver: str
) -> None:
    server = ("--driver", driver, "--dsn", database18)
    with running("listen", "a b", "--json", "--count", "4", "--dsn", database18) as program:
        program.line()
        assert invoke("notify", "a b", "--json", *server, "--", "-1 € [red]").stdout == (
            '{"channel": "a b", "bytes": 12}\n'
        )
        quiet = invoke("notify", "a b", *server)
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
        assert invoke("notify", "a b", "-", "--whole", *server, stdin=b"x\n\n").returncode == 0
        assert invoke("notify", "a b", "x" * 7_999, *server).returncode == 0
        assert program.end() == 0
    payloads = [json.loads(line)["payload"] for line in program.out[1:]]
    assert payloads == ["-1 € [red]", "", "x\n", "x" * 7_999]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("notify", ""), b"", "must not be empty"),
        (("notify", "x" * 64), b"", "64 bytes"),
        (("notify", "a", "\udcff"), b"", "lone surrogate"),
        (("notify", "a", "-", "--whole"), b"\xff", "not UTF-8"),
        (("notify", "a", "-", "--whole"), b"a\0b", "NUL"),
        (("notify", "a", "-", "--whole"), b"x" * (16 * 1024 * 1024 + 1), "over 16777216 bytes"),
        (("notify", "a", "b", "--whole"), b"", "write - as PAYLOAD"),
        (("notify", "a", "b", "--key-field", "k"), b"", "write - as PAYLOAD"),
        (("notify", "a", "-", "--key", "k", "--key-field", "k"), b"", "exclude each other"),
        (("notify", "a", "-", "--batch", "0"), b"", "--batch"),
        (("notify", "a", "-", "--linger", "nan"), b"", "linger"),
        (("notify", "a", "--schema", ""), b"", "schema name"),
        (("schema", "install", "--schema", "pg_mine"), b"", "schema name"),
        (("schema", "install", "--schema", "\udcff"), b"", "schema name"),
        (("schema", "install", "--retention", "1w"), b"", "90s, 15m, 1h or 7d"),
        (("schema", "install", "--retention", "0s"), b"", "at least a second"),
        (("schema", "install", "--retention", "9" * 20 + "d"), b"", "too long"),
        (("schema", "install", "--lock-timeout", "inf"), b"", "lock_timeout"),
        (("schema", "remove", "--lock-timeout", "0"), b"", "--lock-timeout"),
        (("schema", "nonsense"), b"", "No such command"),
        (("listen", "ok", "ü" * 32), b"", "64 bytes"),
        (("listen",), b"", "Missing argument"),
        (("listen", "a", "--count", "0"), b"", "--count"),
        (("nonsense",), b"", "No such command"),
    ],
)
def test_bad_usage_is_one_line_and_code_2_before_any_io(
    invoke: Invoke, arguments: tuple[str, ...], stdin: bytes, said: str
) -> None:
    done = invoke(*arguments, stdin=stdin, env={"DATABASE_URL": "postgresql://127.0.0.1:1/x"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


# -- which server ---------------------------------------------------------------------------------


def test_the_dsn_comes_from_the_option_or_the_environment(invoke: Invoke, database18: str) -> None:
    parts = urlsplit(database18)
    nowhere = "postgresql://u@127.0.0.1:1/x"
    libpq = {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port),
        "PGDATABASE": parts.path[1:],
        "PGUSER": "postgres",
        "PGPASSWORD": PASSWORD,
    }
    alchemy = database18.replace("postgresql://", "postgresql+{}://")
    for arguments, environment in (
        (("--dsn", database18), {"DATABASE_URL": nowhere}),
        ((), {"DATABASE_URL": database18, "PGHOST": "127.0.0.1", "PGPORT": "1"}),
        ((), {"DATABASE_URL": alchemy.format("asyncpg")}),
        ((), {"DATABASE_URL": alchemy.format("psycopg2")}),
        ((), libpq),
        (("--driver", "asyncpg"), libpq),
    ):
        # libpq itself reads its variables, which needs a process of its own.
        call = run if environment is libpq else invoke
        done = call("notify", "a", *arguments, env=environment)
        assert (done.returncode, done.stderr) == (0, "")


def test_with_no_server_given_processes_share_an_embedded_one() -> None:
    with open_directory() as place:
        environment = {"PGNOTIFYBUS_DATA_DIR": str(place)}
        with running("listen", "a", "--count", "1", env=environment) as program:
            program.listening()
            assert run("notify", "a", "hello", env=environment).returncode == 0
            assert program.end() == 0
        assert program.out == ["a\thello"]
        assert f"using the embedded server in {place}" in program.err[0]
        assert list(place.glob("*/PG_VERSION"))
        assert not list(place.glob("*/postmaster.pid"))


def test_ctrl_c_stops_the_embedded_server_of_the_last_process() -> None:
    with open_directory() as place:
        environment = {"PGNOTIFYBUS_DATA_DIR": str(place)}
        with running("listen", "a", env=environment) as program:
            program.listening()
            assert list(place.glob("*/postmaster.pid"))
            program.signal(signal.SIGINT)
            assert program.end() == 130
        assert not list(place.glob("*/postmaster.pid"))


def test_a_data_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A service whose home does not exist, say."""
    taken = tmp_path / "file"
    taken.write_text("")
    done = run("notify", "a", env={"PGNOTIFYBUS_DATA_DIR": str(taken / "below")})
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: cannot keep an embedded server in {taken / 'below'}")
    assert "set PGNOTIFYBUS_DATA_DIR" in error
    assert "Traceback" not in done.stderr


# -- where the output goes ------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("schema", "sql"),
        ("schema", "prune"),
        ("trigger", "list", "--json"),
        ("notify", "a", "--json"),
        ("notify", "a", "-", "--json"),
        ("listen", "a", "--json", "--count", "1"),
    ],
    ids=" ".join,
)
def test_a_disk_that_is_full_is_one_line(database18: str, arguments: tuple[str, ...]) -> None:
    assert run("schema", "install", "--dsn", database18).returncode == 0
    with psycopg.connect(database18, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert run("trigger", "install", "t", "--channel", "t", "--dsn", database18).returncode == 0
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*arguments),
            env=clean_environment(DATABASE_URL=database18),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=15,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_a_closed_stdout_is_said_before_a_server_is_looked_for() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command("listen", "a")],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: stdout is closed: there is nowhere to write messages to\n"


# -- errors, and no password in them --------------------------------------------------------------


def with_password(dsn: str, password: str) -> str:
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"postgres:{password}@127.0.0.1:{parts.port}").geturl()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("command", ["listen", "notify"])
def test_a_wrong_password_is_said_and_not_shown(
    invoke: Invoke, database18: str, driver: str, command: str
) -> None:
    dsn = with_password(database18, "s3same-open")
    done = invoke(command, "a", "--driver", driver, "--dsn", dsn)
    assert done.returncode == 1
    assert "refused these credentials" in done.stderr
    assert "s3same" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize(
    ("dsn", "code"),
    [
        ("postgresql://u:s3same-open@127.0.0.1:1/x", 1),
        ("postgresql://u:s3same-open@no-such-host.invalid/x", 1),
        ("postgresql://u:s3same/open@127.0.0.1:1/x", 2),
        ("postgresql://u:123/s3same@127.0.0.1:1/x", 2),
        ("postgresql://u:s3same@open@127.0.0.1:1/x", 2),
        ("postgresql://u:s3same-open", 2),
        ("postgresql://u:s3same-open@127.0.0.1:open/x", 2),
        ("postgresql://u:open@127.0.0.1:1,127.0.0.1:s3same/x", 2),
        ("mysql://u:s3same-open@127.0.0.1/x", 2),
        ("u:s3same-open@127.0.0.1/x", 2),
        ("host=127.0.0.1 password=s3same open", 2),
        ("", 2),
    ],
)
def test_no_password_in_any_error(invoke: Invoke, dsn: str, code: int, driver: str) -> None:
    for arguments, environment in (
        (("--dsn", dsn), {}),
        ((), {"DATABASE_URL": dsn}),
    ):
        if not dsn and environment:
            continue  # an empty variable counts as none
        done = invoke("notify", "a", "--driver", driver, *arguments, env=environment)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        for part in ("s3same", "open"):
            assert part not in done.stdout + done.stderr


def test_a_dsn_in_the_wrong_place_is_not_repeated(invoke: Invoke) -> None:
    for arguments in (
        ("listen", "postgresql://u:s3same@h/x"),
        ("notify", "a", "b", "postgresql://u:s3same@h/x"),
        ("listen", "a", "--dns", "postgresql://u:s3same@h/x"),
        ("postgresql://u:s3same@h/x",),
    ):
        done = invoke(*arguments)
        assert done.returncode == 2
        assert "s3same" not in done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
@pytest.mark.parametrize("spelling", ["--dsn {}", "--dsn={}"])
def test_no_password_in_the_process_list(database18: str, spelling: str) -> None:
    assert urlsplit(database18).password
    option = spelling.format(database18).split(" ")
    with running("listen", *option, "a", "--json") as program:
        pid = json.loads(program.line())["pid"]
        process = Path(f"/proc/{program.pid}")
        arguments = (process / "cmdline").read_bytes().split(b"\0")[1:-1]
        assert arguments == [b"-m", b"pgnotifybus", b"listen", b"a", b"--json"]
        assert b"s3cret" not in (process / "environ").read_bytes()
        kill(database18, pid)
        program.until(lambda line: '"generation":2' in line)  # it still knows the DSN
        program.signal(signal.SIGTERM)
        assert program.end() == 143


# -- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_packages_it_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['listen', 'a']; "
        "from pgnotifybus.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "pip install 'pgnotifybus[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_the_driver_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['asyncpg'] = None; "
        "sys.argv[1:] = ['notify', 'a', '--driver', 'asyncpg', '--dsn', 'postgresql://h/x']; "
        "from pgnotifybus.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'pgnotifybus[asyncpg]'" in done.stderr


def test_version_and_help(invoke: Invoke) -> None:
    assert run("--version").stdout == f"pgnotifybus {__version__}\n"
    schema = [("schema", *each) for each in ((), ("install",), ("sql",), ("remove",), ("prune",))]
    trigger = [("trigger", *each) for each in ((), ("install",), ("sql",), ("list",), ("remove",))]
    for words in ((), ("listen",), ("notify",), ("demo",), *schema, *trigger):
        said = invoke(*words, "--help")
        assert said.returncode == 0
        assert "Exit codes" in said.stdout
        assert "\x1b" not in said.stdout
    assert "Usage" in invoke().stdout


def test_verbose_shows_the_log_and_nothing_is_told_twice_without_it(database18: str) -> None:
    for option, lines in (("--verbose", 5), ("--json", 0)):
        with running("listen", "a", option, "--dsn", database18) as program:
            if lines:
                program.listening()
            else:
                program.line()
            program.signal(signal.SIGTERM)
            assert program.end() == 143
        logged = [line for line in program.err if " INFO " in line or " DEBUG " in line]
        assert len(logged) == lines
        assert lines or not program.err


def test_nohup_is_respected_and_a_closed_terminal_ends_it(database18: str) -> None:
    with running("listen", "a", "--dsn", database18) as program:
        program.listening()
        program.signal(signal.SIGHUP)
        assert program.end() == 129
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, sys.argv[1:])"
    argv = [sys.executable, "-c", ignoring, sys.executable, "-m", "pgnotifybus"]
    with running(argv=[*argv, "listen", "a", "--count", "1", "--dsn", database18]) as program:
        program.listening()
        os.kill(program.pid, signal.SIGHUP)
        send(database18, ("a", "still here"))
        assert program.end() == 0
        assert program.out == ["a\tstill here"]


def test_a_server_that_goes_away_at_the_start_is_one_line(
    private_server: Any,
) -> None:
    server: EmbeddedServer = private_server()
    dsn = server.dsn
    server.stop()
    done = run("listen", "a", "--dsn", dsn)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot connect to ")
    assert done.stderr.count("\n") == 1
