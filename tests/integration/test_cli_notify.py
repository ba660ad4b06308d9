"""`pgnotifybus notify`, of one payload and of lines, as a process against real PostgreSQL."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgnotifybus import schema
from pgnotifybus.embedded import EmbeddedServer
from support.notifications import hearing
from support.payloads import noise
from support.program import Program, clean_environment, command, run, running, wait_for

PIPE = subprocess.PIPE
NOWHERE = "postgresql://u:s3same@127.0.0.1:1/x"
# So that lines wait, until something else has them sent.
PATIENT = ("--linger", "600", "--batch", "1000000")


def lines(numbers: range) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


def texts(numbers: range) -> list[str]:
    return [str(number) for number in numbers]


def execute(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def install(dsn: str, name: str = "pgnotifybus") -> None:
    execute(dsn, schema.sql(schema=name))


def account(text: str) -> dict[str, Any]:
    """The one JSON object on stdout, without what differs from run to run."""
    fields = json.loads(text)
    assert list(fields) == [
        "channel",
        "accepted",
        "sent",
        "replaced",
        "unsent",
        "unknown",
        "commits",
        "bytes",
        "seconds",
    ]
    settled = sum(fields[name] for name in ("sent", "replaced", "unsent", "unknown"))
    assert fields["accepted"] == settled
    assert fields["seconds"] >= 0
    return {name: value for name, value in fields.items() if value and name != "seconds"}


def unread(program: Program) -> int:
    """How many bytes of what was written to its stdin it has not read yet."""
    assert program.process.stdin is not None
    count = array.array("i", [0])
    fcntl.ioctl(program.process.stdin.fileno(), termios.FIONREAD, count)
    return count[0]


def take_all(program: Program, data: bytes) -> None:
    """Write to a pipe, and wait until it is read."""
    program.write(data)
    wait_for(lambda: unread(program) == 0)


# -- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_lines_of_a_file_are_sent_in_order_and_many_in_a_commit(
    database18: str, driver: str, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(lines(range(10_000)))
    server = ("--driver", driver, "--dsn", database18)
    with hearing(database18, "a b") as heard, path.open("rb") as file:
        with running("notify", "a b", "-", "--json", *server, stdin=file) as program:
            assert program.end() == 0
        assert heard.rest() == texts(range(10_000))
    assert program.err == []
    [line] = program.out
    told = account(line)
    assert told.pop("commits") <= 20
    assert told == {"channel": "a b", "accepted": 10_000, "sent": 10_000, "bytes": 38_890}


def test_the_lines_of_a_pipe_are_sent_in_order(database18: str) -> None:
    with hearing(database18, "a") as heard:
        done = run("notify", "a", "-", "--dsn", database18, stdin=lines(range(10_000)))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert heard.rest() == texts(range(10_000))


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_each_line_is_sent_when_it_comes(database18: str, kind: str) -> None:
    """Of `tail -f` there is no end to wait for."""
    if kind == "pipe":
        theirs, ours = os.pipe()
    elif kind == "socket":
        theirs, ours = (each.detach() for each in socket.socketpair())
    else:
        ours, theirs = os.openpty()
    with os.fdopen(ours, "wb", buffering=0) as writer:
        with hearing(database18, "a") as heard, os.fdopen(theirs, "rb") as stdin:
            with running("notify", "a", "-", "--json", "--dsn", database18, stdin=stdin) as program:
                for number in range(5):
                    writer.write(b"%d\n" % number)
                    assert heard.take(1) == [str(number)]
                if kind == "terminal":
                    writer.write(b"\x04")  # Ctrl-D
                else:
                    writer.close()
                assert program.end() == 0
            assert heard.rest() == []
    told = account(program.out[-1])
    assert (told["accepted"], told["sent"], told["commits"]) == (5, 5, 5)


def test_a_line_ends_with_lf_or_crlf_and_may_be_empty(database18: str) -> None:
    data = "eins\r\n\n zwei \r\r\n\r\nü\x1b\t€\nsame\nsame\nlast\r".encode()
    with hearing(database18, "a") as heard:
        done = run("notify", "a", "-", "--json", "--dsn", database18, stdin=data)
        assert done.returncode == 0, done.stderr
        assert heard.rest() == [
            "eins",
            "",
            " zwei \r",
            "",
            "ü\x1b\t€",
            "same",
            "same",  # in a commit of its own: twice in one arrives once
            "last\r",
        ]
    assert account(done.stdout)["accepted"] == 8


def test_no_line_at_all_is_no_message(database18: str) -> None:
    with hearing(database18, "a") as heard:
        done = run("notify", "a", "-", "--json", "--dsn", database18)
        assert (done.returncode, done.stderr) == (0, "")
        assert account(done.stdout) == {"channel": "a"}
        assert heard.rest() == []


def test_whole_sends_all_of_stdin_less_one_line_end(database18: str) -> None:
    with hearing(database18, "a") as heard:
        for data in (b"a\nb\n\n", b"c\r\n", b"d\r", b""):
            done = run("notify", "a", "-", "--whole", "--json", "--dsn", database18, stdin=data)
            assert done.returncode == 0, done.stderr
            assert set(json.loads(done.stdout)) == {"channel", "bytes"}
        assert heard.rest() == ["a\nb\n", "c", "d\r", ""]


def test_lingering_lines_leave_together_at_the_end_of_the_input(database18: str) -> None:
    with hearing(database18, "a") as heard:
        done = run(
            *("notify", "a", "-", "--json", *PATIENT, "--dsn", database18), stdin=lines(range(2500))
        )
        assert account(done.stdout)["commits"] == 1
        assert heard.rest() == texts(range(2500))
        small = ("--batch", "10", "--dsn", database18)
        done = run("notify", "a", "-", "--json", *small, stdin=lines(range(100)))
        assert account(done.stdout)["commits"] == 10


# -- keys -----------------------------------------------------------------------------------------


def test_of_waiting_lines_of_one_key_the_newest_is_sent(database18: str) -> None:
    with hearing(database18, "a") as heard:
        done = run(
            *("notify", "a", "-", "--key", "k", "--json", *PATIENT, "--dsn", database18),
            stdin=lines(range(1, 101)),
        )
        assert heard.rest() == ["100"]
    told = account(done.stdout)
    assert (told["accepted"], told["sent"], told["replaced"]) == (100, 1, 99)


def test_the_key_may_be_a_field_of_each_line(database18: str) -> None:
    sent = [
        {"id": 1, "v": "a"},
        {"id": "1", "v": "b"},  # another key
        {"id": 2, "v": "c"},
        {"id": 1, "v": "d"},
        {"id": True, "v": "e"},  # another again
        {"id": 2, "v": "f"},
    ]
    data = "".join(f"{json.dumps(each)}\n" for each in sent).encode()
    with hearing(database18, "a") as heard:
        done = run(
            *("notify", "a", "-", "--key-field", "id", "-v", *PATIENT, "--dsn", database18),
            stdin=data,
        )
        assert done.returncode == 0
        assert [json.loads(each)["v"] for each in heard.rest()] == ["b", "d", "e", "f"]
    assert "2 replaced by newer ones of the same key" in done.stderr


# -- lines that cannot be sent --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "options", "said"),
    [
        (b"ab\xff", (), "line 3 of stdin is not UTF-8: its byte 2 is 0xff"),
        (b"s3same\0", (), "line 3 of stdin cannot be sent: the payload has a NUL"),
        (b"x" * (16 * 2**20 + 1), (), "line 3 of stdin has over 16777216 bytes"),
        (b"s3same", ("--key-field", "id"), "line 3 of stdin is not a JSON object"),
        (b"[1]", ("--key-field", "id"), "line 3 of stdin is not a JSON object"),
        (b"[" * 100_000, ("--key-field", "id"), "line 3 of stdin is not a JSON object"),
        (b'{"ID": "s3same"}', ("--key-field", "id"), "line 3 of stdin has no field 'id'"),
        (b'{"id": null}', ("--key-field", "id"), "no string, number or boolean as field 'id'"),
        (b'{"id": {}}', ("--key-field", "id"), "no string, number or boolean as field 'id'"),
    ],
)
def test_a_bad_line_ends_it_and_those_before_it_are_sent(
    database18: str, bad: bytes, options: tuple[str, ...], said: str
) -> None:
    good = [b'{"id": 1}', b'{"id": 2}']
    with hearing(database18, "a") as heard:
        done = run(
            *("notify", "a", "-", "--json", *options, "--dsn", database18),
            stdin=b"\n".join([*good, bad, b'{"id": 4}']),
        )
        assert heard.rest() == [each.decode() for each in good]
    assert done.returncode == 2
    [error] = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert "neither it nor what follows it was sent" in error
    assert "s3same" not in error
    assert (account(done.stdout)["accepted"], account(done.stdout)["sent"]) == (2, 2)


def test_for_people_a_bad_line_also_says_how_many_were_sent(database18: str) -> None:
    done = run("notify", "a", "-", "--dsn", database18, stdin=b"a\nb\n\xff\n")
    assert (done.returncode, done.stdout) == (2, "")
    summary, error = done.stderr.splitlines()
    assert summary.startswith("sent 2 lines to a in 1 commit, ")
    assert error.startswith("error: line 3 of stdin ")


def test_a_closed_stdin_is_said_before_a_server_is_looked_for() -> None:
    shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
    for option in ([], ["--whole"]):
        done = subprocess.run(
            [*shell, *command("notify", "a", "-", *option)],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: stdin is closed")
        assert done.stderr.count("\n") == 1


# -- large payloads -------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_large_lines_go_through_the_table_in_their_place(database18: str, driver: str) -> None:
    install(database18)
    payloads = ["first", noise(300_000), "x" * 50_000, noise(3_000_000, seed=1), "last"]
    data = "\n".join(payloads).encode()
    server = ("--driver", driver, "--dsn", database18)
    with running("listen", "a", "--json", "--count", "10", "--dsn", database18) as program:
        program.line()
        assert run("notify", "a", "-", *server, stdin=data).returncode == 0
        for each in payloads:
            sent = run("notify", "a", "-", "--whole", "--json", *server, stdin=each.encode())
            assert json.loads(sent.stdout) == {"channel": "a", "bytes": len(each)}
        assert program.end() == 0
    assert [json.loads(line)["payload"] for line in program.out[1:]] == 2 * payloads


def test_the_table_may_lie_in_another_schema(database18: str) -> None:
    install(database18, 'my "own"')
    server = ("--schema", 'my "own"', "--dsn", database18)
    large = noise(200_000).encode()
    assert run("notify", "a", "-", *server, stdin=large).returncode == 0
    assert run("notify", "a", "-", "--whole", *server, stdin=large).returncode == 0
    lengths = execute(database18, 'SELECT length(payload) FROM "my ""own""".payloads')
    assert lengths == [(200_000,), (200_000,)]


def test_without_the_table_the_others_are_sent_and_it_is_told(database18: str) -> None:
    """What is missing is in the database, so it is code 1: the command was right."""
    large = noise(200_000)
    with hearing(database18, "a") as heard:
        done = run(
            "notify", "a", "-", "--json", "--dsn", database18, stdin=f"1\n{large}\n2\n".encode()
        )
        assert heard.rest() == ["1", "2"]
    assert done.returncode == 1
    assert account(done.stdout) | {"commits": 0} == {
        "channel": "a",
        "accepted": 3,
        "sent": 2,
        "unsent": 1,
        "commits": 0,
        "bytes": 200_002,
    }
    refused, error = done.stderr.splitlines()
    assert refused.startswith("-- refused: the payload has 200000 bytes")
    assert error.startswith("error: 1 line not sent (of 200,000 bytes): the payload has ")
    assert "pgnotifybus schema install" in error
    assert large[:50] not in done.stderr

    one = run("notify", "a", "-", "--whole", "--dsn", database18, stdin=large.encode())
    assert (one.returncode, one.stdout) == (1, "")
    assert one.stderr.startswith("error: the payload has 200000 bytes")
    assert "pgnotifybus schema install" in one.stderr
    assert one.stderr.count("\n") == 1


def test_what_is_ephemeral_does_not_wait_for_the_disk(database18: str) -> None:
    install(database18)
    execute(
        database18,
        "CREATE TABLE seen (setting text);"
        " CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
        " CREATE TRIGGER see AFTER INSERT ON pgnotifybus.payloads EXECUTE FUNCTION see()",
    )
    large = noise(100_000).encode()
    for option in ([], ["--ephemeral"]):
        for whole in ([], ["--whole"]):
            done = run("notify", "a", "-", *option, *whole, "--dsn", database18, stdin=large)
            assert done.returncode == 0
    settings = [row[0] for row in execute(database18, "SELECT setting FROM seen")]
    assert settings == ["on", "on", "off", "off"]


# -- signals --------------------------------------------------------------------------------------

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_stream_once_what_was_taken_is_sent(
    database18: str, number: signal.Signals, code: int
) -> None:
    with hearing(database18, "a") as heard:
        arguments = ("notify", "a", "-", "--json", *PATIENT, "--dsn", database18)
        with running(*arguments, stdin=PIPE) as program:
            take_all(program, lines(range(100)) + b"half a line")
            program.signal(number)
            assert program.end() == code
        assert heard.rest() == texts(range(100))
    assert program.err == [f"stopped by {number.name}: nothing behind line 100 was taken"]
    told = account(program.out[0])
    assert (told["accepted"], told["sent"], told["commits"]) == (100, 100, 1)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_the_server_is_silent_says_what_was_not_sent(
    private_server: Callable[..., EmbeddedServer], number: signal.Signals, code: int
) -> None:
    server = private_server()
    with running("notify", "a", "-", "--dsn", server.dsn, stdin=PIPE) as program:
        with hearing(server.dsn, "a") as heard:
            program.write(b"before\n")
            assert heard.take(1) == ["before"]
            server.pause()
            take_all(program, lines(range(10)))
            program.signal(number)
            assert program.end() == code
            server.resume()
            assert heard.rest() == []
    summary, stopped, error = program.err
    assert summary.startswith("sent 1 line to a in 1 commit, ")
    assert summary.endswith("; 10 not sent")
    assert stopped == f"stopped by {number.name}: nothing behind line 11 was taken"
    assert error.startswith("error: 10 lines not sent (of 1, 1, 1, ... bytes): ")
    assert program.out == []


def test_a_second_signal_gives_up_at_once_and_still_gives_the_account(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    server = private_server()
    with running("notify", "a", "-", "--json", "--dsn", server.dsn, stdin=PIPE) as program:
        with hearing(server.dsn, "a") as heard:
            program.write(b"before\n")
            assert heard.take(1) == ["before"]
        server.stop()
        program.write(b"1\n2\n")
        program.until(lambda line: line.startswith("-- cannot send"), "err")
        program.signal(signal.SIGINT)
        program.signal(signal.SIGINT)
        assert program.end() == 130
    told = account(program.out[0])
    assert (told["accepted"], told["sent"], told["unsent"]) == (3, 1, 2)
    assert "Traceback" not in "".join(program.err)


def test_a_signal_while_it_connects_ends_it_and_nothing_was_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        with running("notify", "a", "-", "--dsn", dsn, stdin=PIPE) as program:
            program.write(b"a\n")
            silent.settimeout(10)
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                program.signal(signal.SIGINT)
                assert program.end() == 130
            assert unread(program) == 2
    assert (program.out, program.err) == ([], [])


# -- the server goes away -------------------------------------------------------------------------


def kill_publisher(dsn: str) -> None:
    """Terminate the publisher's backend, as soon as it has one."""
    statement = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'pgnotifybus publisher' AND datname = current_database()"
    )
    wait_for(lambda: execute(dsn, statement) == [(True,)])


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_lines_are_sent_in_order_over_a_connection_that_is_killed(
    database18: str, driver: str
) -> None:
    """Also in the midst of a commit: then the server is asked what has become of it."""
    server = ("--driver", driver, "--dsn", database18)
    with hearing(database18, "a") as heard:
        arguments = ("notify", "a", "-", "--json", "--batch", "100", *server)
        with running(*arguments, stdin=PIPE) as program:
            came: list[str] = []
            for start in range(0, 50_000, 10_000):
                program.write(lines(range(start, start + 10_000)))
                came += heard.take(1_000)  # so it is at work
                kill_publisher(database18)
            program.close_stdin()
            assert program.end() == 0
            came += heard.rest()
    assert came == texts(range(50_000))
    told = account(program.out[0])
    assert (told["accepted"], told["sent"]) == (50_000, 50_000)


def test_a_server_that_restarts_is_waited_for_and_it_is_said_once(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    server = private_server()
    with running("notify", "a", "-", "--json", "--dsn", server.dsn, stdin=PIPE) as program:
        with hearing(server.dsn, "a") as heard:
            program.write(b"before\n")
            assert heard.take(1) == ["before"]
        for _ in range(2):
            server.stop()
            program.write(lines(range(10)))
            program.until(lambda line: "waiting, trying again" in line, "err")
            server.start()
            with hearing(server.dsn, "a") as heard:
                program.write(b"after\n")
                while heard.take(1) != ["after"]:
                    pass
        program.close_stdin()
        assert program.end() == 0
    assert len(program.err) == 2
    assert all(line.startswith("-- cannot send: ") for line in program.err)
    told = account(program.out[0])
    assert (told["accepted"], told["sent"]) == (23, 23)


@pytest.mark.parametrize(("size", "most"), [(10, 10_000), (1_000_000, 34)])
def test_while_the_server_is_silent_it_reads_no_more_than_it_may_hold(
    private_server: Callable[..., EmbeddedServer], size: int, most: int
) -> None:
    server = private_server()
    with running("notify", "a", "-", "--json", "--dsn", server.dsn, stdin=PIPE) as program:
        with hearing(server.dsn, "a") as heard:
            program.write(b"before\n")
            assert heard.take(1) == ["before"]
        server.pause()
        writing = threading.Thread(target=write_until_refused, args=[program, size])
        writing.start()
        full = 0

        def is_full() -> bool:
            nonlocal full
            full = full + 1 if unread(program) > 60_000 else 0
            return full > 50

        wait_for(is_full)
        program.signal(signal.SIGTERM)
        assert program.end() == 143
        writing.join()
        server.resume()
    assert account(program.out[0])["accepted"] <= 1 + most


def write_until_refused(program: Program, size: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        for number in range(1_000_000):
            program.write(b"%0*d\n" % (size, number))


def test_a_wrong_dsn_is_one_line_and_nothing_was_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(lines(range(100)))
    with path.open("rb") as file:
        with running("notify", "a", "-", "--json", "--dsn", NOWHERE, stdin=file) as program:
            assert program.end() == 1
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
    assert program.out == []
    [error] = program.err
    assert error.startswith("error: cannot connect to 127.0.0.1:1")
    assert "s3same" not in error


# -- what people see ------------------------------------------------------------------------------


def on_terminal(dsn: str, *options: str) -> str:
    """What is shown on a terminal while lines are piped in."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            command("notify", "a", "-", *options, "--dsn", dsn),
            stdin=PIPE,
            stdout=PIPE,
            stderr=theirs,
            env=clean_environment(TERM="xterm"),
        )
        os.close(theirs)
        shown = b""
        with process:
            assert process.stdin is not None
            process.stdin.write(lines(range(20_000)))
            process.stdin.close()
            try:
                while piece := screen.read(65_536):
                    shown += piece
            except OSError:  # Linux says so when the other side is closed
                pass
        assert process.returncode == 0
    return shown.decode()


def test_a_terminal_shows_how_far_it_is_and_the_summary(database18: str) -> None:
    shown = on_terminal(database18)
    assert re.search(r"[0-9,]+ lines? sent to a, [0-9,]+ waiting", shown)
    assert "\x1b[?25h" in shown  # the cursor is back
    last = shown.rstrip().rpartition("\x1b[2K")[2]
    assert re.fullmatch(r"sent 20,000 lines to a in 2\d commits, .* lines/s", last)


def test_for_programs_and_with_a_log_there_is_no_progress(database18: str) -> None:
    assert on_terminal(database18, "--json") == ""
    assert "\x1b" not in on_terminal(database18, "--verbose")
    summary = run("notify", "a", "-", "--verbose", "--dsn", database18, stdin=b"1\n2\n").stderr
    assert re.search(
        r"^sent 2 lines to a in 1 commit, \d+\.\d\d s, [\d,]+ lines/s$", summary, re.MULTILINE
    )


def test_help_names_the_options_and_no_limit_that_is_gone() -> None:
    said = run("notify", "--help").stdout
    options = ("--whole", "--key", "--key-field", "--ephemeral", "--batch", "--linger", "--schema")
    assert set(options) <= set(said.split())
    assert "16 MiB" in said
    assert "each line of stdin" in said
    assert sys.executable not in said
