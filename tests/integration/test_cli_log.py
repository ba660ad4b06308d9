"""`pgnotifybus log`, as a process against real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgnotifybus import EventLog, schema
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.testing import FaultProxy
from support.program import Program, run, running, wait_for
from support.waiting import until

PIPE = subprocess.PIPE
NOWHERE = "postgresql://u:s3same@127.0.0.1:1/x"


@pytest.fixture
async def dsn(database18: str) -> str:
    """A database with a log."""
    await schema.install(database18)
    return database18


def execute(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def append(dsn: str, channel: str, *payloads: str) -> None:
    for payload in payloads:
        execute(dsn, "SELECT pgnotifybus.append(%s, %s)", channel, payload)


def stored(dsn: str, channel: str = "a") -> list[str]:
    """The payloads of a channel, in the order of their ids."""
    statement = "SELECT payload FROM pgnotifybus.events WHERE channel = %s ORDER BY id"
    return [payload for (payload,) in execute(dsn, statement, channel)]


def lines(numbers: range) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


def texts(numbers: range) -> list[str]:
    return [str(number) for number in numbers]


def done(dsn: str, *arguments: str, stdin: bytes = b"") -> str:
    """What a command that works has printed."""
    ran = run("log", *arguments, "--dsn", dsn, stdin=stdin)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def objects(dsn: str, *arguments: str) -> list[dict[str, Any]]:
    """The JSON objects that a command that works has printed."""
    return [json.loads(line) for line in done(dsn, *arguments, "--json").splitlines()]


def error_of(dsn: str, *arguments: str, code: int, stdin: bytes = b"") -> str:
    """The one line in which a command says why it does not work."""
    ran = run("log", *arguments, "--dsn", dsn, stdin=stdin)
    assert (ran.returncode, ran.stdout) == (code, "")
    [line] = ran.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def prune_all(dsn: str, *options: str) -> int:
    """Delete all events; how many."""
    [said] = objects(dsn, "prune", "--older-than", "0s", *options)
    return int(said["deleted"])


def following(program: Program) -> Program:
    program.until(lambda line: line.startswith("-- following "), "err")
    return program


# -- append ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_event_is_appended_and_its_id_said(dsn: str, driver: str) -> None:
    options = ("--key", "k", "--header", "a=1", "--header", "b=x=y", "--driver", driver)
    said = done(dsn, "append", "a b", 'pa"y\\ ü', *options)
    statement = "SELECT id, channel, key, payload, headers FROM pgnotifybus.events"
    [row] = execute(dsn, statement)
    assert row == (int(said), "a b", "k", 'pa"y\\ ü', {"a": "1", "b": "x=y"})
    [told] = objects(dsn, "append", "a", "ü", "--driver", driver)
    assert told == {"channel": "a", "id": int(said) + 1, "bytes": 2}


def test_without_a_payload_it_is_empty_and_whole_takes_all_of_stdin(dsn: str) -> None:
    done(dsn, "append", "a")
    for data in (b"a\nb\n\n", b"c\r\n"):
        done(dsn, "append", "a", "-", "--whole", stdin=data)
    assert stored(dsn) == ["", "a\nb\n", "c"]


def test_what_cannot_be_appended_is_said_before_a_server_is_looked_for() -> None:
    for arguments, said in (
        (("",), "channel"),
        (("a", "b", "--header", "s3same"), "--header must look like name=value"),
        (("a", "b", "--whole"), "write - as PAYLOAD"),
        (("postgresql://u:s3same@h/x",), "write --dsn in front of it"),
        (("a", "--schema", ""), "schema"),
    ):
        said_ = error_of(NOWHERE, "append", *arguments, code=2)
        assert said in said_
        assert "s3same" not in said_


def test_without_a_log_it_is_said_how_to_make_one(database18: str) -> None:
    for arguments in (
        ("append", "a"),
        ("append", "a", "-"),
        ("tail", "a"),
        ("tail", "a", "--no-follow"),
        ("stats",),
        ("consumers",),
        ("prune",),
        ("consumers", "drop", "a"),
    ):
        said = error_of(database18, *arguments, code=1)
        assert "pgnotifybus schema install" in said, arguments


def test_with_no_server_there_it_is_one_line() -> None:
    for arguments in (("append", "a"), ("append", "a", "-"), ("tail", "a"), ("stats",)):
        said = error_of(NOWHERE, *arguments, code=1)
        assert said.startswith("error: cannot connect to 127.0.0.1:1")
        assert "s3same" not in said


# -- append, lines --------------------------------------------------------------------------------


def account(text: str) -> dict[str, Any]:
    """The one JSON object on stdout, without what differs from run to run."""
    fields: dict[str, Any] = json.loads(text)
    settled = sum(fields[name] for name in ("appended", "unsent", "unknown"))
    assert fields["accepted"] == settled
    assert fields.pop("seconds") >= 0
    return {name: value for name, value in fields.items() if value}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_lines_of_a_file_are_appended_in_order_and_many_in_a_commit(
    dsn: str, driver: str, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(lines(range(5_000)))
    options = ("--key", "k", "--header", "a=1", "--json", "--driver", driver, "--dsn", dsn)
    with path.open("rb") as file, running("log", "append", "a", "-", *options, stdin=file) as it:
        assert it.end() == 0
    assert it.err == []
    told = account(it.out[0])
    assert told.pop("commits") <= 10
    assert told == {
        "channel": "a",
        "accepted": 5_000,
        "appended": 5_000,
        "bytes": 18_890,
        "last_id": 5_000,
    }
    assert stored(dsn) == texts(range(5_000))
    distinct = execute(dsn, "SELECT DISTINCT key, headers FROM pgnotifybus.events")
    assert distinct == [("k", {"a": "1"})]


def test_each_line_is_appended_when_it_comes(dsn: str) -> None:
    with running("log", "append", "a", "-", "--json", "--dsn", dsn, stdin=PIPE) as program:
        for number in range(3):
            program.write(b"%d\r\n" % number)
            wait_for(lambda: stored(dsn) == texts(range(number + 1)))  # noqa: B023
        program.write(b"\nhalf a line")
        program.close_stdin()
        assert program.end() == 0
    assert stored(dsn) == ["0", "1", "2", "", "half a line"]
    assert account(program.out[0])["appended"] == 5


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"s3same\xff", "line 3 of stdin is not UTF-8: its byte 6 is 0xff"),
        (b"s3same\0", "line 3 of stdin cannot be appended: "),
    ],
)
def test_a_bad_line_ends_it_and_those_before_it_are_appended(
    dsn: str, bad: bytes, said: str
) -> None:
    ran = run("log", "append", "a", "-", "--dsn", dsn, stdin=b"1\n2\n" + bad + b"\n4\n")
    assert (ran.returncode, ran.stdout) == (2, "")
    summary, error = ran.stderr.splitlines()
    assert summary.startswith("appended 2 lines to a in ")
    assert summary.endswith("; the last id is 2")
    assert error.startswith(f"error: {said}")
    assert error.endswith("neither it nor what follows it was appended")
    assert "s3same" not in ran.stderr
    assert stored(dsn) == ["1", "2"]


def test_what_the_server_refuses_ends_it_and_is_told_by_its_lines(dsn: str) -> None:
    execute(dsn, "ALTER TABLE pgnotifybus.events ADD CHECK (payload <> 's3same')")
    with running("log", "append", "a", "-", "--json", "--dsn", dsn, stdin=PIPE) as program:
        program.write(b"1\n")
        wait_for(lambda: stored(dsn) == ["1"])
        program.write(b"s3same\n")
        assert program.end() == 1
    [error] = program.err
    assert error.startswith("error: line 2 was not appended: cannot append to the log: ")
    told = account(program.out[0])
    assert (told["accepted"], told["appended"], told["unsent"]) == (2, 1, 1)
    assert stored(dsn) == ["1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_once_what_was_taken_is_appended(
    dsn: str, number: signal.Signals, code: int
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE pgnotifybus.events IN SHARE MODE")  # so that lines wait
        with running("log", "append", "a", "-", "--dsn", dsn, stdin=PIPE) as program:
            program.write(lines(range(100)))
            wait_for(lambda: waits_for_a_lock(dsn))
            program.signal(number)
            other.commit()
            assert program.end() == code
    taken = len(stored(dsn))
    assert 0 < taken <= 100
    assert stored(dsn) == texts(range(taken))
    summary, stopped = program.err
    assert summary.startswith(f"appended {taken} line")
    assert stopped == f"stopped by {number.name}: nothing behind line {taken} was taken"


def waits_for_a_lock(dsn: str) -> bool:
    statement = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgnotifybus appender'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(execute(dsn, statement))


def test_the_end_of_a_stopped_one_does_not_wait_for_ever(dsn: str) -> None:
    """It is said which lines are not in the log: none that was given up is appended later."""
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE pgnotifybus.events IN SHARE MODE")
        with running("log", "append", "a", "-", "--json", "--dsn", dsn, stdin=PIPE) as program:
            program.write(lines(range(100)))
            wait_for(lambda: waits_for_a_lock(dsn))
            program.signal(signal.SIGINT)
            assert program.end() == 130
        other.rollback()
    told = account(program.out[0])
    assert told["unsent"] == told["accepted"]
    assert "was not appended: interrupted" in program.err[-1]
    wait_for(lambda: not execute(dsn, _APPENDERS))
    assert stored(dsn) == []


_APPENDERS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE application_name = 'pgnotifybus appender' AND datname = current_database()"
)
_KILL_APPENDER = _APPENDERS.replace("SELECT pid", "SELECT pg_terminate_backend(pid)")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_every_line_is_appended_once_over_connections_that_are_killed(
    dsn: str, driver: str
) -> None:
    arguments = ("log", "append", "a", "-", "--json", "--driver", driver, "--dsn", dsn)
    with running(*arguments, stdin=PIPE) as program:
        for start in range(0, 20_000, 5_000):
            program.write(lines(range(start, start + 5_000)))
            # So it is at work: one that is killed while it begins ends, as it should.
            wait_for(lambda: len(stored(dsn)) > start)  # noqa: B023
            wait_for(lambda: execute(dsn, _KILL_APPENDER) == [(True,)])
        program.close_stdin()
        assert program.end() == 0
    assert stored(dsn) == texts(range(20_000))
    told = account(program.out[0])
    assert (told["accepted"], told["appended"]) == (20_000, 20_000)


async def test_a_commit_that_was_not_answered_is_asked_about_and_not_repeated(dsn: str) -> None:
    """The commit waits for our lock, and the connection is cut meanwhile."""
    execute(
        dsn,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;"
        " CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON pgnotifybus.events"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    async with FaultProxy.in_front_of(dsn) as proxy:
        arguments = ("log", "append", "a", "-", "--json", "--dsn", proxy.dsn)
        with psycopg.connect(dsn) as other, running(*arguments, stdin=PIPE) as program:
            other.execute("SELECT pg_advisory_xact_lock(7)")
            program.write(b"once\n")
            program.close_stdin()
            await asyncio.to_thread(wait_for, lambda: waits_for_a_lock(dsn))
            await proxy.reset()
            await proxy.wait_connected(2)  # it asks what has become of it
            other.commit()
            assert await asyncio.to_thread(program.end) == 0
    assert stored(dsn) == ["once"]
    assert account(program.out[0])["appended"] == 1


def test_a_server_that_restarts_is_waited_for_and_it_is_said_once(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    server = private_server()
    execute(server.dsn, schema.sql())
    execute(server.dsn, "TRUNCATE pgnotifybus.events")
    with running("log", "append", "a", "-", "--json", "--dsn", server.dsn, stdin=PIPE) as program:
        program.write(b"before\n")
        wait_for(lambda: stored(server.dsn) == ["before"])
        server.stop()
        program.write(b"1\n2\n")
        program.until(lambda line: line.endswith("waiting, trying again"), "err")
        server.start()
        program.close_stdin()
        assert program.end() == 0
    assert len(program.err) == 1
    assert stored(server.dsn) == ["before", "1", "2"]


def test_two_signals_while_the_server_is_away_end_it_at_once_with_the_account(
    private_server: Callable[..., EmbeddedServer],
) -> None:
    server = private_server()
    execute(server.dsn, schema.sql())
    with running("log", "append", "b", "-", "--json", "--dsn", server.dsn, stdin=PIPE) as program:
        program.write(b"before\n")
        wait_for(lambda: stored(server.dsn, "b") == ["before"])
        server.stop()
        program.write(b"1\n2\n")
        program.until(lambda line: line.startswith("-- cannot append: "), "err")
        program.signal(signal.SIGINT)
        program.signal(signal.SIGINT)
        assert program.end() == 130
    told = account(program.out[0])
    assert told["appended"] == 1
    assert told["unsent"] == told["accepted"] - 1
    assert "Traceback" not in "".join(program.err)


# -- tail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_events_are_printed_as_they_come_and_count_ends_it(dsn: str, driver: str) -> None:
    append(dsn, "a", "earlier")
    arguments = ("log", "tail", "a", "b c", "--count", "3", "--driver", driver, "--dsn", dsn)
    with running(*arguments) as program:
        following(program)
        append(dsn, "other", "not this")
        done(dsn, "append", "a", "two\nlines\x1b[2J", "--key", "k\t")
        first = program.line()
        append(dsn, "b c", "")
        assert program.line().endswith("\tb c\t4\t\t")  # each one at once
        append(dsn, "a", "last")
        assert program.end() == 0
    time, *rest = first.split("\t")
    assert rest == ["a", "3", "k\\t", "two\\nlines\\x1b[2J"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    assert len(program.out) == 3


def test_json_has_all_of_an_event_and_the_cursor_to_go_on_after(dsn: str) -> None:
    before = datetime.now(UTC)
    done(dsn, "append", "a", "1", "--key", "k", "--header", "h=ü")
    append(dsn, "a", "2", "3")
    first, second = objects(dsn, "tail", "a", "--after", "beginning", "--no-follow", "--count", "2")
    assert list(first) == [
        "type",
        "id",
        "channel",
        "key",
        "payload",
        "headers",
        "created_at",
        "cursor",
    ]
    created = datetime.fromisoformat(first.pop("created_at"))
    assert abs((created - before).total_seconds()) < 60
    assert len(first.pop("cursor")) > 20
    assert first == {
        "type": "event",
        "id": 1,
        "channel": "a",
        "key": "k",
        "payload": "1",
        "headers": {"h": "ü"},
    }
    with running("log", "tail", "a", "--json", "--after", second["cursor"], "--dsn", dsn) as it:
        assert json.loads(it.line())["payload"] == "3"
        append(dsn, "a", "4")
        assert json.loads(it.line())["payload"] == "4"
        it.signal(signal.SIGINT)
        assert it.end() == 130
    assert len(it.out) == 2
    assert "Traceback" not in "".join(it.err)


def test_no_follow_prints_what_there_is_and_ends(dsn: str) -> None:
    tail = ("tail", "a", "--no-follow")
    assert done(dsn, *tail, "--after", "beginning") == ""
    count = 9_000  # more than one page
    execute(dsn, f"SELECT pgnotifybus.append('a', n::text) FROM generate_series(1, {count}) AS n")
    append(dsn, "b", "another")
    assert done(dsn, *tail) == ""
    found = objects(dsn, *tail, "--after", "beginning")
    assert [each["payload"] for each in found] == texts(range(1, count + 1))
    assert done(dsn, *tail, "--after", found[-1]["cursor"]) == ""
    some = objects(dsn, *tail, "--after", found[4_998]["cursor"], "--count", "2")
    assert [each["payload"] for each in some] == ["5000", "5001"]
    recent = objects(dsn, *tail, "--after", "1h")
    assert [each["id"] for each in recent] == [each["id"] for each in found]
    time = found[5_000]["created_at"]
    later = [each["id"] for each in objects(dsn, *tail, "--after", time)]
    assert later == [each["id"] for each in found if each["created_at"] >= time]
    assert done(dsn, *tail, "--after", "2999-01-01T00:00:00Z") == ""


def test_each_event_comes_once_over_connections_that_are_killed(dsn: str) -> None:
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name LIKE 'pgnotifybus %' AND datname = current_database()"
    )
    with running("log", "tail", "a", "--json", "--count", "9", "--dsn", dsn) as program:
        following(program)
        for number in range(3):
            append(dsn, "a", f"{number}.0")
            program.line()
            [(killed,)] = execute(dsn, kill)
            assert killed
            append(dsn, "a", f"{number}.1", f"{number}.2")
            program.line()
            program.line()
        assert program.end() == 0
    payloads = [json.loads(line)["payload"] for line in program.out]
    assert payloads == [f"{a}.{b}" for a in range(3) for b in range(3)]
    assert any(line.startswith("-- connection lost") for line in program.err)


def expired(dsn: str) -> str:
    """A cursor behind which retention has deleted events; one is kept."""
    append(dsn, "a", "1", "2")
    [first] = objects(dsn, "tail", "a", "--after", "beginning", "--no-follow", "--count", "1")
    prune_all(dsn)
    append(dsn, "a", "3")
    return str(first["cursor"])


@pytest.mark.parametrize("option", [(), ("--no-follow",)])
def test_an_expired_cursor_is_an_error_that_says_what_to_do(
    dsn: str, option: tuple[str, ...]
) -> None:
    ran = run("log", "tail", "a", "--after", expired(dsn), *option, "--dsn", dsn)
    assert (ran.returncode, ran.stdout) == (1, "")
    error = ran.stderr.splitlines()[-1]
    assert error.startswith("error: retention has deleted events behind this cursor")
    assert "--after beginning" in error
    assert "--gaps" in error
    assert ".oldest" not in error


@pytest.mark.parametrize("option", [(), ("--no-follow",)])
def test_with_gaps_an_expired_cursor_is_a_line_and_it_goes_on(
    dsn: str, option: tuple[str, ...]
) -> None:
    tail = ("tail", "a", "b", "--gaps", "--count", "1", *option)
    after = ("--after", expired(dsn))
    ran = run("log", *tail, *after, "--dsn", dsn)
    gap, other, event = ran.stdout.splitlines()
    assert gap.startswith("-- gap in a: retention has deleted events")
    assert other.startswith("-- gap in b: ")
    assert event.endswith("\ta\t3\t\t3")
    ran = run("log", *tail, *after, "--json", "--dsn", dsn)
    gaps = [json.loads(line) for line in ran.stdout.splitlines()][:2]
    assert [(each["type"], each["reason"], each["channel"]) for each in gaps] == [
        ("gap", "expired", "a"),
        ("gap", "expired", "b"),
    ]
    [event_] = objects(dsn, "tail", "a", "--after", gaps[0]["cursor"], "--no-follow")
    assert event_["payload"] == "3"


async def test_a_cursor_of_another_log_is_an_error_and_with_gaps_it_goes_on_from_now(
    dsn: str,
) -> None:
    append(dsn, "a", "1")
    [event] = objects(dsn, "tail", "a", "--after", "beginning", "--no-follow")
    await schema.remove(dsn)
    await schema.install(dsn)
    append(dsn, "a", "before now")
    after = ("--after", str(event["cursor"]))
    for option in ((), ("--no-follow",)):
        ran = run("log", "tail", "a", *after, *option, "--dsn", dsn)
        assert (ran.returncode, ran.stdout) == (1, "")
        error = ran.stderr.splitlines()[-1]
        assert error.startswith("error: the cursor is of another event log")
        assert "--after beginning" in error
    [gap] = objects(dsn, "tail", "a", *after, "--gaps", "--no-follow")
    assert (gap["type"], gap["reason"]) == ("gap", "epoch")
    with running("log", "tail", "a", *after, "--gaps", "--count", "1", "--dsn", dsn) as program:
        assert program.line().startswith("-- gap in a: the cursor is of another log")
        append(dsn, "a", "after now")
        assert program.end() == 0
    assert program.out[1].endswith("\tafter now")
    [resumed] = objects(dsn, "tail", "a", "--after", gap["cursor"], "--no-follow")
    assert resumed["payload"] == "after now"


def test_what_is_no_place_is_said_before_a_server_is_looked_for() -> None:
    assert "--after must be beginning, now" in error_of(
        NOWHERE, "tail", "a", "--after", "yesterday", code=2
    )


def test_a_reader_that_has_enough_ends_it(dsn: str) -> None:
    arguments = ("log", "tail", "a", "--after", "beginning", "--dsn", dsn)
    append(dsn, "a", "1")
    with running(*arguments, read_stdout=False) as program:
        assert program.process.stdout is not None
        assert program.process.stdout.readline().endswith(b"\t1\n")
        program.process.stdout.close()  # as `head -1` does; no further event comes
        assert program.end() == 0
    assert not any("Error" in line or "Traceback" in line for line in program.err)


# -- stats and prune ------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_stats_say_what_is_in_the_log(dsn: str, driver: str) -> None:
    append(dsn, "b\n", "12", "34")
    append(dsn, "a", "5")
    [told] = objects(dsn, "stats", "--driver", driver)
    channels = told.pop("channels")
    assert list(channels) == ["a", "b\n"]
    assert channels["b\n"]["events"] == 2
    assert channels["b\n"]["payload_bytes"] > 0
    oldest, newest = (
        datetime.fromisoformat(channels["b\n"][f"{n}_at"]) for n in ("oldest", "newest")
    )
    assert oldest < newest
    cursor = told.pop("cursor")
    assert told.pop("table_bytes") > 0
    assert re.fullmatch("[0-9a-f-]{16,36}", told.pop("epoch"))
    assert told == {"keep_seconds": 604_800, "keep_bytes": None, "events": 3}
    append(dsn, "a", "6")
    [event] = objects(dsn, "tail", "a", "--after", cursor, "--no-follow")
    assert event["payload"] == "6"

    shown = done(dsn, "stats").splitlines()
    assert "kept       for 7 d" in shown
    assert "events     4" in shown
    head, first, second = shown[-3:]
    assert head.split() == ["CHANNEL", "EVENTS", "PAYLOADS", "OLDEST", "NEWEST"]
    assert first.split()[:2] == ["a", "2"]
    assert second.split()[:2] == ["b\\n", "2"]
    assert first.index("2") == second.index("2") == head.index("EVENTS")


def test_prune_says_how_many_were_deleted(dsn: str) -> None:
    assert done(dsn, "prune") == "deleted 0 events from the log in schema pgnotifybus\n"
    append(dsn, "a", "1")
    assert done(dsn, "prune", "--older-than", "1h").startswith("deleted 0 events")
    assert done(dsn, "prune", "--older-than", "0s").startswith("deleted 1 event from")
    assert stored(dsn) == []
    assert "--older-than must look like" in error_of(dsn, "prune", "--older-than", "-1h", code=2)


def test_the_log_may_lie_in_another_schema(database18: str) -> None:
    name = 'my "own"'
    execute(database18, schema.sql(schema=name))
    where = ("--schema", name)
    done(database18, "append", "a", "1", *where)
    done(database18, "append", "a", "-", *where, stdin=b"2\n")
    found = objects(database18, "tail", "a", "--after", "beginning", "--no-follow", *where)
    assert [each["payload"] for each in found] == ["1", "2"]
    assert objects(database18, "stats", *where)[0]["events"] == 2
    assert objects(database18, "consumers", *where) == []
    assert prune_all(database18, *where) == 2


# -- consumers ------------------------------------------------------------------------------------


class Failing(Exception):
    pass


async def consume(dsn: str, name: str, *, fail: bool = False) -> list[str]:
    """Take one batch, of one event, and perhaps fail for good."""
    async with EventLog(dsn) as log, log.consumer(name, "a", "b", max_attempts=1) as consumer:
        taken: list[str] = []
        with contextlib.suppress(Failing):
            async with consumer.batch(limit=1) as batch:
                taken = [event.payload for event in batch.events]
                if fail:
                    raise Failing("no\x1b[2J")
        return taken


# The turn of a consumer, which has two keys.
_TAKEN = (
    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_consumers_are_shown_with_what_they_lack_and_what_has_failed(
    dsn: str, driver: str
) -> None:
    assert objects(dsn, "consumers", "--driver", driver) == []
    append(dsn, "a", "1", "2", "3")
    assert await consume(dsn, "billing", fail=True) == ["1"]
    async with EventLog(dsn) as log, log.consumer("mail", "b") as mail:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            waiting = group.create_task(mail.batch().__aenter__())
            await until(dsn, _TAKEN)
            billing, other = await asyncio.to_thread(objects, dsn, "consumers", "--driver", driver)
            waiting.cancel()
    assert billing.pop("lag_seconds") >= 0
    assert len(billing.pop("cursor")) > 20
    assert datetime.fromisoformat(billing.pop("updated_at")).tzinfo is not None
    assert billing == {
        "name": "billing",
        "channels": ["a", "b"],
        "active": False,
        "lag_events": 2,
        "stuck": None,
        "attempts": 0,
        "error": "Failing: no\x1b[2J",
        "dead_letters": 1,
    }
    assert (other["name"], other["active"], other["lag_events"]) == ("mail", True, 0)

    head, first, second = done(dsn, "consumers").splitlines()
    columns = ["NAME", "CHANNELS", "ACTIVE", "EVENTS", "BEHIND", "ATTEMPTS", "DEAD"]
    assert head.split()[:-2] == columns
    assert first.split()[:5] == ["billing", "a,", "b", "no", "2"]
    assert first.endswith("Failing: no\\x1b[2J")
    assert second.split()[:3] == ["mail", "b", "no"]


async def test_dead_letters_are_shown_and_tried_again(dsn: str) -> None:
    done(dsn, "append", "a", "1", "--key", "k")
    append(dsn, "a", "2", "3")
    for payload in ("1", "2"):
        assert await consume(dsn, "billing", fail=True) == [payload]
    dead = ("consumers", "dead", "billing")
    first, second = objects(dsn, *dead)
    assert datetime.fromisoformat(first.pop("died_at")).tzinfo is not None
    assert (first["id"], first["key"], first["payload"]) == (1, "k", "1")
    assert (first["attempts"], first["error"], first["replay"]) == (1, "Failing: no\x1b[2J", False)
    assert second["payload"] == "2"
    shown = done(dsn, *dead).splitlines()[0].split("\t")
    assert shown[1:] == ["a", "1", "k", "1", "1 attempt: Failing: no\\x1b[2J"]

    replay = ("consumers", "replay", "billing")
    said = error_of(dsn, *replay, "1", "99", code=1)
    assert "no dead letter 99" in said
    assert "pgnotifybus log consumers dead billing" in said
    assert [each["replay"] for each in objects(dsn, *dead)] == [False, False]
    assert done(dsn, *replay, "2") == "1 dead letter of billing will be tried again\n"
    assert "is about to be tried again" in done(dsn, *dead).splitlines()[1]
    assert await consume(dsn, "billing") == ["2"]
    assert [each["payload"] for each in objects(dsn, *dead)] == ["1"]
    assert objects(dsn, *replay) == [{"name": "billing", "replayed": 1}]
    assert await consume(dsn, "billing") == ["1"]
    ran = run("log", *dead, "--dsn", dsn)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == "billing has no dead letter\n"


async def test_a_consumer_goes_on_from_where_it_is_sent_and_can_be_dropped(dsn: str) -> None:
    append(dsn, "a", "1", "2")
    assert await consume(dsn, "billing") == ["1"]
    seek = ("consumers", "seek", "billing")
    assert objects(dsn, *seek, "now") == [{"name": "billing", "after": "now"}]
    assert objects(dsn, "consumers")[0]["lag_events"] == 0
    assert done(dsn, *seek, "beginning") == "billing goes on after beginning\n"
    assert await consume(dsn, "billing") == ["1"]
    [event] = objects(dsn, "tail", "a", "--after", "beginning", "--no-follow", "--count", "1")
    done(dsn, *seek, "beginning")
    done(dsn, *seek, event["cursor"])
    assert await consume(dsn, "billing") == ["2"]
    assert "WHERE must be beginning" in error_of(dsn, *seek, "there", code=2)

    assert done(dsn, "consumers", "drop", "billing") == "dropped: billing\n"
    assert objects(dsn, "consumers") == []
    assert objects(dsn, "consumers", "drop", "billing") == [{"name": "billing", "dropped": False}]


async def test_a_consumer_that_cannot_go_on_says_so_and_is_sent_elsewhere(dsn: str) -> None:
    append(dsn, "a", "1", "2")
    [event] = objects(dsn, "tail", "a", "--after", "beginning", "--no-follow", "--count", "1")
    assert await consume(dsn, "billing") == ["1"]
    prune_all(dsn)
    append(dsn, "a", "3")
    [state] = objects(dsn, "consumers")
    assert (state["stuck"], state["lag_events"], state["lag_seconds"]) == ("expired", None, None)
    assert "retention has deleted what it should read next: seek" in done(dsn, "consumers")
    said = error_of(dsn, "consumers", "seek", "billing", event["cursor"], code=1)
    assert "retention has deleted events" in said
    assert "beginning is the oldest event that is kept" in said
    done(dsn, "consumers", "seek", "billing", "beginning")
    assert await consume(dsn, "billing") == ["3"]


async def test_of_a_consumer_that_is_not_there_it_is_said_which_are(dsn: str) -> None:
    append(dsn, "a", "1")
    for arguments in (("dead", "bill"), ("replay", "bill"), ("seek", "bill", "now")):
        assert "there is no consumer bill; there is none" in error_of(
            dsn, "consumers", *arguments, code=1
        )
    await consume(dsn, "billing")
    said = error_of(dsn, "consumers", "seek", "bill", "now", code=1)
    assert "there is no consumer bill; there is billing" in said
    assert [each["name"] for each in objects(dsn, "consumers")] == ["billing"]


async def test_options_in_front_of_a_command_are_refused_as_they_would_not_count(dsn: str) -> None:
    append(dsn, "a", "1")
    await consume(dsn, "billing")
    ran = run("log", "consumers", "--schema", "other", "drop", "billing", "--dsn", dsn)
    assert ran.returncode == 2
    assert "write options behind drop" in ran.stderr
    assert len(objects(dsn, "consumers")) == 1


# -- help -----------------------------------------------------------------------------------------


def test_help_shows_the_commands_and_an_example_of_each() -> None:
    assert {"append", "tail", "stats", "consumers", "prune"} <= set(run("log").stdout.split())
    assert run("log", "--help").stdout == run("log").stdout
    for command in (
        ("append",),
        ("tail",),
        ("stats",),
        ("prune",),
        ("consumers",),
        ("consumers", "dead"),
        ("consumers", "replay"),
        ("consumers", "seek"),
        ("consumers", "drop"),
    ):
        said = run("log", *command, "--help").stdout
        name = " ".join(command)
        assert said.count(f"pgnotifybus log {name}") >= 2, name  # the usage, and an example
        assert "Exit codes" in said
