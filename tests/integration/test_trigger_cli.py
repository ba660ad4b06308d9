"""`pgnotifybus trigger`, as processes against real PostgreSQL."""

from __future__ import annotations

import json
import re

import psycopg
import pytest
from psycopg import sql

from support.program import run, running

ORDERS = 'CREATE TABLE orders (id int PRIMARY KEY, status text, "Total Sum" numeric)'


@pytest.fixture
def orders(database18: str) -> str:
    """A database with a table `orders`."""
    execute(database18, ORDERS)
    return database18


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for each in statements:
            connection.execute(each.encode())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_from_install_to_remove(orders: str, driver: str) -> None:
    server = ("--dsn", orders, "--driver", driver)
    wish = ("orders", "--channel", "my orders", "--columns", 'STATUS, "Total Sum"', "--key", "id")
    condition = ("--when", "status <> 'draft'")
    done = run("trigger", "install", *wish, *condition, *server)
    told = "public.orders tells channel my orders; "
    told += 'key "id"; columns "status", "Total Sum"; when status <> \'draft\'\n'
    assert (done.returncode, done.stdout, done.stderr) == (0, f"installed: {told}", "")
    done = run("trigger", "install", *wish, *condition, *server)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nothing to do: {told}", "")
    with running("listen", "my orders", "--count", "1", "--dsn", orders) as program:
        program.listening()
        execute(orders, "INSERT INTO orders VALUES (7, 'paid', 1.50)")
        assert program.end() == 0
    _, _, payload = program.out[0].partition("\t")
    assert re.fullmatch(
        r'\{"schema":"public","table":"orders","op":"insert","at":[0-9]{10}\.[0-9]{6},'
        r'"rows":\[\{"id":7,"status":"paid","Total Sum":1\.50\}\]\}',
        payload,
    )
    line = "public.orders\tmy orders\t" + told.partition("; ")[2]
    assert run("trigger", "list", *server).stdout == line
    done = run("trigger", "remove", "orders", *server)
    assert (done.returncode, done.stdout) == (0, "removed: what was told of orders\n")
    done = run("trigger", "remove", "orders", "--channel", "my orders", *server)
    said = "nothing to do: no trigger on orders for channel my orders\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    done = run("trigger", "list", *server)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no table of this database" in done.stderr


def test_programs_get_json(orders: str) -> None:
    environment = {"DATABASE_URL": orders}
    done = run("trigger", "install", "orders", "--channel", "ö", "--json", env=environment)
    installed = {
        "schema": "public",
        "table": "orders",
        "channel": "ö",
        "key": ["id"],
        "columns": None,
        "when": None,
        "log": None,
    }
    assert json.loads(done.stdout) == {"changed": True, **installed}
    execute(orders, "ALTER TABLE orders DISABLE TRIGGER ALL")
    done = run("trigger", "list", "--json", env=environment)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {**installed, "state": "stale"}
    ]
    plain = run("trigger", "list", env=environment)
    assert plain.stdout.endswith(" (stale: install it again)\n")
    done = run("trigger", "remove", "public.orders", "--json", env=environment)
    assert json.loads(done.stdout) == {"table": "public.orders", "channel": None, "removed": 1}


def test_sql_prints_what_install_would_run(orders: str) -> None:
    wish = ("orders", "--channel", "orders", "--no-key", "--dsn", orders)
    printed = run("trigger", "sql", *wish)
    assert printed.returncode == 0
    execute(orders, printed.stdout)
    assert run("trigger", "install", *wish).stdout.startswith("nothing to do")


@pytest.mark.parametrize("schema", ["pgnotifybus", "my log"])
def test_from_install_to_remove_of_one_that_logs(orders: str, schema: str) -> None:
    environment = {"DATABASE_URL": orders}
    option = () if schema == "pgnotifybus" else ("--schema", schema)
    wish = ("orders", "--channel", "orders", "--columns", "status", "--log", *option)
    done = run("trigger", "install", *wish, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "`pgnotifybus schema install" in done.stderr
    assert run("schema", "install", *option, env=environment).returncode == 0
    done = run("trigger", "install", *wish, env=environment)
    told = f'key "id"; columns "status"; log "{schema}"\n'
    said = f"installed: public.orders logs to channel orders; {told}"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    done = run("trigger", "install", *wish, "--json", env=environment)
    assert json.loads(done.stdout)["log"] == schema
    assert json.loads(done.stdout)["changed"] is False
    printed = run("trigger", "sql", *wish, env=environment)
    execute(orders, printed.stdout, "INSERT INTO orders VALUES (7, 'paid', 1.50)")
    assert run("trigger", "install", *wish, env=environment).stdout.startswith("nothing to do")
    with psycopg.connect(orders) as connection:
        query = sql.SQL("SELECT channel, key, payload FROM {}")
        found = connection.execute(query.format(sql.Identifier(schema, "events"))).fetchall()
    payload = '{"schema":"public","table":"orders","op":"insert","key":{"id":7},'
    assert found == [("orders", "7", payload + '"changed":{"status":"paid"}}')]
    assert run("trigger", "list", env=environment).stdout == f"public.orders\torders\t{told}"
    listed = run("trigger", "list", "--json", env=environment).stdout
    assert json.loads(listed)["log"] == schema
    done = run("trigger", "remove", "orders", env=environment)
    assert (done.returncode, done.stdout) == (0, "removed: what was told of orders\n")


def test_of_partitions_it_says_what_is_not_told(database18: str) -> None:
    execute(
        database18,
        "CREATE TABLE orders (id int PRIMARY KEY) PARTITION BY LIST (id)",
        "CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1)",
    )
    for table, said in (("orders", "partitions"), ("orders_1", "")):
        done = run("trigger", "install", table, "--channel", "orders", "--dsn", database18)
        assert done.returncode == 0
        assert said in done.stderr
        assert bool(done.stderr) == bool(said)


def test_names_do_not_disturb_a_terminal(database18: str) -> None:
    execute(database18, 'CREATE TABLE "a\x1b[2J\tb" (id int PRIMARY KEY)')
    done = run("trigger", "install", '"a\x1b[2J\tb"', "--channel", "c\nd", "--dsn", database18)
    assert done.stdout == ('installed: public."a\\x1b[2J\\tb" tells channel c\\nd; key "id"\n')
    assert run("trigger", "list", "--dsn", database18).stdout == (
        'public."a\\x1b[2J\\tb"\tc\\nd\tkey "id"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("install", "nothing", "--channel", "a"), 1, "there is no table nothing"),
        (("install", "orders", "--channel", "a", "--columns", "no"), 1, 'no column "no"'),
        (("install", "orders", "--channel", "a", "--when", "x"), 1, "refuses the condition"),
        (("remove", "nothing"), 1, "there is no table nothing"),
        (("install", "orders", "--channel", "x" * 64), 2, "64 bytes"),
        (("install", "orders"), 2, "--channel"),
        (("install", "orders", "--channel", "a", "--columns", "a b"), 2, "commas"),
        (("install", "orders", "--channel", "a", "--key", "a", "--no-key"), 2, "exclude"),
        (("install", "orders", "--channel", "a", "--key", "a,A"), 2, "twice"),
        (("install", "orders", "--channel", "a", "--when", " "), 2, "must be a condition"),
        (("install", "orders", "--channel", "a", "--log"), 1, "schema install"),
        (("install", "orders", "--channel", "a", "--schema", "x"), 2, "--log"),
        (("install", "orders", "--channel", "a", "--log", "--schema", ""), 2, "schema name"),
        (("install", "orders", "--channel", "a", "--lock-timeout", "0"), 2, "--lock-timeout"),
        (("install", "orders", "--channel", "a", "--lock-timeout", "nan"), 2, "--lock-timeout"),
        (("remove", "orders", "--lock-timeout", "inf"), 2, "lock_timeout"),
        (("install", "postgresql://u:s3same@h/x", "--channel", "a"), 2, "--dsn"),
        (("remove", "postgresql://u:s3same@h/x"), 2, "--dsn"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    orders: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = run("trigger", *arguments, "--dsn", orders)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "s3same" not in done.stderr


def test_help_says_what_each_command_is_for() -> None:
    assert "install" in run("trigger").stdout
    for command in ("install", "sql", "list", "remove"):
        said = run("trigger", command, "--help")
        assert said.returncode == 0
        assert "Exit codes" in said.stdout
        assert "--dsn" in said.stdout


def test_what_list_prints_is_what_the_other_commands_take(database18: str) -> None:
    execute(database18, 'CREATE TABLE "Mixed ""Case" (id int PRIMARY KEY)')
    server = ("--dsn", database18)
    done = run("trigger", "install", '"Mixed ""Case"', "--channel", "c", *server)
    assert done.returncode == 0, done.stderr
    listed = run("trigger", "list", *server).stdout.partition("\t")[0]
    assert listed == 'public."Mixed ""Case"'
    assert run("trigger", "remove", listed, *server).returncode == 0
    assert run("trigger", "list", *server).stdout == ""
