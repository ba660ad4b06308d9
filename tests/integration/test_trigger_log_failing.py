"""What cannot be logged must not happen: who may write, and what stops a write."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from pgnotifybus import schema as schemas
from pgnotifybus import triggers
from support.logged import Logged, event, logged_on
from support.sql import execute

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)"


@pytest.fixture
async def logged(database: str) -> AsyncIterator[Logged]:
    """A table `orders` in a database with an event log, on each PostgreSQL."""
    async with logged_on(database, "ch", ORDERS) as logged:
        yield logged


@pytest.fixture
async def logged18(database18: str) -> AsyncIterator[Logged]:
    """The same on PostgreSQL 18."""
    async with logged_on(database18, "ch", ORDERS) as logged:
        yield logged


@pytest.fixture
async def writer(logged18: Logged, database18: str) -> AsyncIterator[str]:
    """A role that may do nothing yet."""
    await logged18.by("CREATE ROLE log_writer")
    yield "log_writer"
    await logged18.by("RESET ROLE")
    await execute(database18, "DROP OWNED BY log_writer; DROP ROLE log_writer")


# -- what stops a write ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change_of_table",
    [
        "ALTER TABLE orders RENAME COLUMN status TO state",
        "ALTER TABLE orders DROP COLUMN status",
        "ALTER TABLE orders RENAME COLUMN total TO sum",
        "ALTER TABLE orders ALTER COLUMN total TYPE text",
        "ALTER TABLE orders RENAME COLUMN id TO number",
    ],
)
async def test_a_changed_table_takes_no_writes_until_it_is_installed_again(
    logged: Logged, database: str, change_of_table: str
) -> None:
    """A change that nobody would ever hear of is worse than one that does not happen."""
    await triggers.install(
        database, "orders", channel="ch", columns=["status"], when="total + 1 > 0", log=True
    )
    await logged.by("INSERT INTO orders VALUES (1, 'x', 1)", change_of_table)
    for statement in ("INSERT INTO orders VALUES (2)", "DELETE FROM orders"):
        with pytest.raises(psycopg.Error) as caught:
            await logged.by(statement)
        said = caught.value.diag.message_primary or ""
        assert said.startswith(
            "pgnotifybus cannot log what has changed in public.orders for channel ch: "
        )
        hint = caught.value.diag.message_hint or ""
        assert "pgnotifybus trigger install public.orders --channel ch --log" in hint
        assert "with the columns, condition and key that it is to have" in hint
        assert caught.value.sqlstate in ("42703", "42883")
    assert await logged.by() == []
    assert await execute(database, "SELECT count(*) FROM orders") == [(1,)]
    assert await triggers.install(database, "orders", channel="ch", log=True) is True
    assert len(await logged.by("INSERT INTO orders VALUES (2)")) == 1
    assert await triggers.remove(database, "orders") == 1
    assert await logged.by("INSERT INTO orders VALUES (3)") == []


async def test_without_a_key_it_is_the_same(logged18: Logged, database18: str) -> None:
    await triggers.install(database18, "orders", channel="ch", key=[], when="total > 0", log=True)
    await logged18.by("ALTER TABLE orders RENAME COLUMN total TO sum")
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"public\.orders for channel ch"):
        await logged18.by("INSERT INTO orders VALUES (2)")


async def test_a_condition_that_fails_aborts_the_write(logged: Logged, database: str) -> None:
    await triggers.install(database, "orders", channel="ch", when="1 / total > 0", log=True)
    await logged.by("INSERT INTO orders VALUES (1, 'x', 1)")
    for statement in ("INSERT INTO orders VALUES (2, 'x', 0)", "UPDATE orders SET total = 0"):
        with pytest.raises(psycopg.errors.DivisionByZero, match=r"public\.orders.*division by"):
            await logged.by(statement)
    assert await logged.by("DELETE FROM orders") == [event("delete", "1", old_key={"id": 1})]


async def test_an_assertion_in_a_condition_aborts_the_write(
    logged18: Logged, database18: str
) -> None:
    await logged18.by(
        "CREATE FUNCTION sure() RETURNS bool LANGUAGE plpgsql AS "
        "$$ BEGIN ASSERT false, 'not sure'; RETURN true; END $$",
    )
    await triggers.install(database18, "orders", channel="ch", when="public.sure()", log=True)
    with pytest.raises(psycopg.Error, match=r"public\.orders.*not sure"):
        await logged18.by("INSERT INTO orders VALUES (1)")


async def test_what_asks_for_another_try_goes_through(logged18: Logged, database18: str) -> None:
    await logged18.by(
        "CREATE FUNCTION conflict() RETURNS bool LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'could not serialize' USING ERRCODE = '40001'; END $$",
    )
    await triggers.install(database18, "orders", channel="ch", when="public.conflict()", log=True)
    with pytest.raises(psycopg.errors.SerializationFailure, match=r"^could not serialize"):
        await logged18.by("INSERT INTO orders VALUES (1)")


async def test_an_event_that_is_too_large_aborts_the_write(
    logged18: Logged, database18: str
) -> None:
    await schemas.install(database18, event_limit=1000)
    await triggers.install(database18, "orders", channel="ch", columns=["status"], log=True)
    with pytest.raises(psycopg.errors.StringDataRightTruncation, match="1000 is the limit"):
        await logged18.by("INSERT INTO orders VALUES (1, repeat('x', 1000))")
    assert await execute(database18, "SELECT * FROM orders") == []


async def test_without_the_log_nothing_can_be_written(logged18: Logged, database18: str) -> None:
    await triggers.install(database18, "orders", channel="ch", log=True)
    await execute(database18, "DROP SCHEMA pgnotifybus CASCADE")
    for statement in ("INSERT INTO orders VALUES (1)", "TRUNCATE orders"):
        with pytest.raises(psycopg.Error, match="pgnotifybus"):
            await logged18.connection.execute(statement.encode())
    assert [each.state for each in await triggers.list(database18)] == ["stale"]
    assert await triggers.remove(database18, "orders") == 1
    await logged18.connection.execute("INSERT INTO orders VALUES (1)")


async def test_casts_that_were_made_implicit_do_not_matter(logged: Logged, database: str) -> None:
    # What the log itself works out once a session is not the trigger's.
    await logged.by("SELECT pgnotifybus.era()")
    for number in ("int", "bigint", "numeric"):
        await logged.by(f"CREATE CAST ({number} AS text) WITH INOUT AS IMPLICIT")
    await triggers.install(database, "orders", channel="ch", columns=["status"], log=True)
    insert = "INSERT INTO orders SELECT generate_series(1, 1000)"
    assert len(await logged.by(insert)) == 1000
    assert len(await logged.by("UPDATE orders SET status = 'x'")) == 1000
    await triggers.install(database, "orders", channel="ch", key=[], log=True)
    assert await logged.by("UPDATE orders SET status = 'x'", "TRUNCATE orders") == [
        event("update", None, reread=True, count=1000),
        event("truncate", None, reread=True),
    ]


async def test_logging_takes_no_transaction_id_of_its_own(
    logged18: Logged, database18: str
) -> None:
    """What may fail reads only: a subtransaction that writes would take one for each statement."""
    await triggers.install(database18, "orders", channel="ch", columns=["status"], log=True)
    await logged18.by("INSERT INTO orders VALUES (1)")
    (before,) = (await execute(database18, "SELECT txid_current()"))[0]
    await logged18.by("BEGIN", *["UPDATE orders SET status = id + 1, id = id + 1"] * 9, "COMMIT")
    (after,) = (await execute(database18, "SELECT txid_current()"))[0]
    assert after == before + 2


async def test_a_statement_that_is_cancelled_in_the_trigger_is_cancelled(
    logged18: Logged, database18: str
) -> None:
    condition = "pg_sleep(60) IS NOT NULL"
    await triggers.install(database18, "orders", channel="ch", when=condition, log=True)
    await logged18.by("SET statement_timeout = '50ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        await logged18.by("INSERT INTO orders VALUES (1)")


# -- whoever writes -------------------------------------------------------------------------------


async def test_a_writer_needs_rights_on_the_log(
    logged18: Logged, database18: str, writer: str
) -> None:
    await triggers.install(database18, "orders", channel="ch", columns=["status"], log=True)
    await logged18.by(f"GRANT INSERT ON orders TO {writer}", f"SET ROLE {writer}")
    for grant in ("USAGE ON SCHEMA pgnotifybus", "INSERT, SELECT ON pgnotifybus.events"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"pgnotifybus|events"):
            await logged18.by("INSERT INTO orders VALUES (1, 'x')")
        await execute(database18, f"GRANT {grant} TO {writer}")
    assert await logged18.by("INSERT INTO orders VALUES (1, 'x')") == [
        event("insert", "1", key={"id": 1}, changed={"status": "x"})
    ]


async def test_rows_are_logged_that_the_writer_may_not_see(
    logged18: Logged, database18: str, writer: str
) -> None:
    """As a policy for reading does not keep its changes from having happened."""
    await triggers.install(database18, "orders", channel="ch", columns=["status"], log=True)
    await logged18.by(
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY write ON orders FOR INSERT WITH CHECK (true)",
        f"GRANT INSERT, SELECT ON orders TO {writer}",
        f"GRANT USAGE ON SCHEMA pgnotifybus TO {writer}",
        f"GRANT INSERT, SELECT ON pgnotifybus.events TO {writer}",
        f"SET ROLE {writer}",
    )
    assert await logged18.by("INSERT INTO orders VALUES (1, 'x')") == [
        event("insert", "1", key={"id": 1}, changed={"status": "x"})
    ]
    assert await (await logged18.connection.execute("SELECT * FROM orders")).fetchall() == []


async def test_it_runs_with_the_rights_of_whoever_writes(
    logged18: Logged, database18: str, writer: str
) -> None:
    """Else who owns a type, or the table, could run code as whoever has installed the trigger."""
    await logged18.by(
        "CREATE TABLE ran_as (name text); GRANT INSERT ON ran_as TO PUBLIC",
        "CREATE TYPE mood AS (a int)",
        "CREATE FUNCTION spy(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO public.ran_as VALUES (current_user); RETURN '1'; END $$",
        "CREATE CAST (mood AS json) WITH FUNCTION spy(mood)",
        "ALTER TABLE orders ADD mood mood",
        f"GRANT INSERT ON orders TO {writer}",
        f"GRANT USAGE ON SCHEMA pgnotifybus TO {writer}",
        f"GRANT INSERT, SELECT ON pgnotifybus.events TO {writer}",
    )
    await triggers.install(
        database18, "orders", channel="ch", columns=["mood"], when="current_user <> ''", log=True
    )
    await logged18.by(f"SET ROLE {writer}", "INSERT INTO orders (id, mood) VALUES (1, '(1)')")
    assert {name for (name,) in await execute(database18, "SELECT name FROM ran_as")} <= {writer}
    [(definer,)] = await execute(
        database18, "SELECT prosecdef FROM pg_proc WHERE proname LIKE 'pgnotifybus%'"
    )
    assert definer is False


async def test_nothing_of_the_writers_search_path_is_called(
    logged18: Logged, database18: str
) -> None:
    await triggers.install(
        database18,
        "orders",
        channel="ch",
        columns=["status"],
        when="status <> '' AND total > 0",
        log=True,
    )
    await logged18.by(
        "CREATE SCHEMA evil",
        "SET search_path = evil, pg_catalog, public",
        "CREATE TABLE evil.called (what text)",
        "CREATE TABLE evil.events (LIKE pgnotifybus.events)",
        *(
            f"CREATE FUNCTION evil.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS "
            f"$$ BEGIN INSERT INTO evil.called VALUES ('{name}'); {end} END $$"
            for name, arguments, result, end in (
                ("append_many", "text[], text[], text[], jsonb[]", "bigint[]", "RETURN NULL;"),
                ("append", "text, text, text, jsonb", "bigint", "RETURN NULL;"),
                ("row_to_json", "record", "json", "RETURN NULL;"),
                ("to_json", "text", "json", "RETURN NULL;"),
                ("lower", "text", "text", "RETURN NULL;"),
                ("array_to_string", "text[], text", "text", "RETURN NULL;"),
                ("array_fill", "text, int[]", "text[]", "RETURN NULL;"),
                ("octet_length", "text", "int", "RETURN NULL;"),
                ("differ", "text, text", "bool", "RETURN NULL;"),
                ("more", "numeric, numeric", "bool", "RETURN NULL;"),
                ("join_text", "text, text", "text", "RETURN NULL;"),
            )
        ),
        "CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.differ)",
        "CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.differ)",
        "CREATE OPERATOR evil.> (LEFTARG = numeric, RIGHTARG = numeric, FUNCTION = evil.more)",
        "CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.join_text)",
        "CREATE TEMP TABLE changed (id int, status text, total numeric)",
        "CREATE TEMP TABLE new_rows AS TABLE changed",
        "CREATE TEMP TABLE events (LIKE pgnotifybus.events)",
    )
    assert await logged18.by(
        "INSERT INTO public.orders VALUES (1, 'x', 1)",
        "UPDATE public.orders SET status = 'y'",
        "TRUNCATE public.orders",
    ) == [
        event("insert", "1", key={"id": 1}, changed={"status": "x"}),
        event("update", "1", key={"id": 1}, changed={"status": "y"}, old={"status": "x"}),
        event("truncate", None, reread=True),
    ]
    assert await execute(database18, "SELECT * FROM evil.called") == []
