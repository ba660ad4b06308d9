"""`pgnotifybus schema`, as a process against real PostgreSQL."""

from __future__ import annotations

import json
import subprocess

import psycopg
import pytest

from pgnotifybus import schema
from pgnotifybus.embedded import find
from support.program import clean_environment, run


def rows(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_from_install_to_remove_it_says_what_it_has_done(database18: str) -> None:
    server = ("--dsn", database18)
    for arguments, said in (
        (("install",), "installed: schema pgnotifybus, version 2, payloads are kept for 3,600 s"),
        (("install",), "nothing to do: schema pgnotifybus, version 2"),
        (("install", "--retention", "7d"), "payloads are kept for 604,800 s"),
        (("prune",), "deleted 0 payloads from schema pgnotifybus"),
        (("remove",), 'dropped all tables of pgnotifybus in "pgnotifybus", and the schema'),
        (("remove",), "nothing to do: there is no schema pgnotifybus"),
    ):
        done = run("schema", *arguments, *server)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_json_says_the_same_to_programs(database18: str, driver: str) -> None:
    def done(*arguments: str) -> object:
        ran = run("schema", *arguments, "--json", "--driver", driver, "--dsn", database18)
        assert (ran.returncode, ran.stderr) == (0, "")
        return json.loads(ran.stdout)

    name = 'my "own" ü\n'
    common = {"schema": name, "version": 2}
    install = ("install", "--schema", name, "--retention", "90s")
    assert done(*install) == {**common, "changed": True, "retention": 90}
    assert done(*install) == {**common, "changed": False, "retention": 90}
    execute(
        database18,
        'INSERT INTO "my ""own"" ü\n".payloads SELECT gen_random_uuid(), \'\', \'\', now()'
        " FROM generate_series(1, 1500)",
    )
    assert done("prune", "--schema", name) == {"schema": name, "deleted": 1_500}
    removed = {"schema": name, "removed": True, "schema_dropped": True}
    assert done("remove", "--schema", name) == removed
    nothing = {"schema": name, "removed": False, "schema_dropped": False}
    assert done("remove", "--schema", name) == nothing


def test_what_it_says_is_one_line_that_no_terminal_obeys(database18: str) -> None:
    done = run("schema", "install", "--schema", "a\n\x1b[2J", "--dsn", database18)
    assert done.stdout.startswith("installed: schema a\\n\\x1b[2J, version 2")
    assert done.stdout.count("\n") == 1


def test_the_schema_stays_where_something_else_is_in_it(database18: str) -> None:
    assert run("schema", "install", "--dsn", database18).returncode == 0
    execute(database18, "CREATE TABLE pgnotifybus.mine ()")
    done = run("schema", "remove", "--json", "--dsn", database18)
    assert json.loads(done.stdout) == {
        "schema": "pgnotifybus",
        "removed": True,
        "schema_dropped": False,
    }
    assert rows(database18, "SELECT * FROM pgnotifybus.mine") == []


@pytest.mark.parametrize("name", ["pgnotifybus", 'a "b" :c $1 %'])
def test_psql_takes_the_statements_also_twice(database18: str, name: str) -> None:
    printed = run("schema", "sql", "--schema", name, "--retention", "15m")
    assert (printed.returncode, printed.stderr) == (0, "")
    for _ in range(2):
        done = subprocess.run(
            [
                find(18).bin_dir / "psql",
                "--no-psqlrc",
                "--quiet",
                "--set",
                "ON_ERROR_STOP=1",
                database18,
            ],
            input=printed.stdout.encode(),
            env=clean_environment(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == b""
    installing = ("install", "--schema", name, "--retention", "15m", "--dsn", database18)
    assert run("schema", *installing).stdout.startswith("nothing to do")


def test_printing_the_statements_needs_no_server_and_no_driver() -> None:
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    assert run("schema", "sql", env=nowhere).stdout == schema.sql()


def test_what_it_cannot_do_is_one_line_that_says_what_to_do(database18: str) -> None:
    execute(database18, "CREATE SCHEMA theirs; COMMENT ON SCHEMA theirs IS 'theirs'")
    for arguments, said in (
        (("prune",), "install it first: `pgnotifybus schema install`"),
        (("remove", "--schema", "theirs"), "not one that this library has made"),
        (("install", "--schema", "theirs"), "give another name"),
    ):
        done = run("schema", *arguments, "--dsn", database18)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_who_holds_the_table_is_waited_for_only_so_long(database18: str) -> None:
    assert run("schema", "install", "--dsn", database18).returncode == 0
    with psycopg.connect(database18) as other:
        other.execute("LOCK TABLE pgnotifybus.payloads IN ACCESS EXCLUSIVE MODE")
        timeout = ("--lock-timeout", "0.05", "--dsn", database18)
        assert run("schema", "install", *timeout).stdout.startswith("nothing to do")
        done = run("schema", "install", "--retention", "2h", *timeout)
        assert done.returncode == 1
        assert "raise lock_timeout" in done.stderr


@pytest.mark.parametrize("command", ["install", "remove", "prune"])
def test_with_no_server_there_it_is_one_line(command: str) -> None:
    done = run("schema", command, "--dsn", "postgresql://u:s3same@127.0.0.1:1/x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot connect to 127.0.0.1:1")
    assert done.stderr.count("\n") == 1
    assert "s3same" not in done.stderr


def test_help_shows_the_commands_and_their_options() -> None:
    assert {"install", "sql", "remove", "prune"} <= set(run("schema").stdout.split())
    assert run("schema", "--help").stdout == run("schema").stdout
    everywhere = {"--schema"}
    served = everywhere | {"--dsn", "--driver", "--json"}
    for command, options in (
        ("install", served | {"--retention", "--lock-timeout"}),
        ("sql", everywhere | {"--retention"}),
        ("remove", served | {"--lock-timeout"}),
        ("prune", served),
    ):
        assert options <= set(run("schema", command, "--help").stdout.split())
