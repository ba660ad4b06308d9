"""Installing, listing and removing triggers that log, on real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from pgnotifybus import schema as schemas
from pgnotifybus import triggers
from pgnotifybus.core.names import quote
from pgnotifybus.core.trigger_catalog import State
from pgnotifybus.errors import SchemaError, SchemaMissing
from pgnotifybus.schema import ddl
from pgnotifybus.triggers import InstalledTrigger
from support.logged import event, logged_on
from support.sql import execute
from support.told import change, told_on

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)"
PLAIN = InstalledTrigger(
    schema="public",
    table="orders",
    channel="ch",
    key=("id",),
    columns=None,
    when=None,
    state="live",
    log="pgnotifybus",
)


@pytest.fixture
async def orders(database18: str) -> str:
    """A database with a table `orders` and an event log, on PostgreSQL 18."""
    await schemas.install(database18)
    await execute(database18, ORDERS)
    return database18


async def made(dsn: str) -> list[tuple[Any, ...]]:
    """Every trigger and trigger function, and what it is a version of."""
    return await execute(
        dsn,
        """SELECT 'function', oid::regprocedure::text, xmin::text FROM pg_proc
            WHERE oid >= 16384 AND prorettype = 'trigger'::regtype
           UNION ALL
           SELECT 'trigger', tgrelid::regclass || ' ' || tgname, xmin::text FROM pg_trigger
            WHERE NOT tgisinternal
            ORDER BY 1, 2""",
    )


# -- only if different ----------------------------------------------------------------------------


async def test_it_is_installed_once(database: str) -> None:
    await schemas.install(database, schema="my log")
    await execute(database, ORDERS)
    wish: dict[str, Any] = {"channel": "ch", "log": True, "schema": "my log"}
    assert await triggers.install(database, "orders", **wish) is True
    before = await made(database)
    assert len(before) == 1 + 4
    assert await triggers.install(database, "public.orders", **wish, key=["id"]) is False
    assert await made(database) == before
    assert await triggers.list(database) == [replace(PLAIN, log="my log")]


async def test_what_notifies_can_be_made_to_log_and_back_while_others_write(orders: str) -> None:
    """Only the function is replaced, for which the table need not be locked."""
    async with logged_on(orders, "ch") as logged, told_on(orders, "ch") as told:
        for _ in range(2):
            assert await triggers.install(orders, "orders", channel="ch") is True
            assert await triggers.list(orders) == [replace(PLAIN, log=None)]
            assert await told.by("INSERT INTO orders VALUES (1)") == [change("insert", {"id": 1})]
            async with await psycopg.AsyncConnection.connect(orders) as other:
                await other.execute("LOCK TABLE orders IN ROW EXCLUSIVE MODE")
                assert await triggers.install(orders, "orders", channel="ch", log=True) is True
            assert await triggers.list(orders) == [PLAIN]
            # A session that has run the function already gets the new one, too.
            assert await told.by("DELETE FROM orders") == []
            assert await logged.by() == [event("delete", "1", old_key={"id": 1})]
    assert len(await made(orders)) == 5


async def test_one_table_may_notify_and_log_on_different_channels(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch", log=True)
    await triggers.install(orders, "orders", channel="other", columns=["status"])
    async with logged_on(orders, "ch") as logged, told_on(orders, "other") as told:
        assert await told.by("INSERT INTO orders VALUES (1)") == [
            change("insert", {"id": 1, "status": None})
        ]
        assert await logged.by() == [event("insert", "1", key={"id": 1})]
    assert [each.log for each in await triggers.list(orders)] == ["pgnotifybus", None]
    assert await triggers.remove(orders, "orders", channel="ch") == 1
    assert [each.channel for each in await triggers.list(orders)] == ["other"]
    assert await triggers.remove(orders, "orders") == 1
    assert await made(orders) == []


async def test_the_printed_statements_do_the_same_and_may_be_run_twice(database: str) -> None:
    await schemas.install(database)
    await execute(database, ORDERS)
    wish: dict[str, Any] = {"channel": "c'\\h", "columns": ["status"], "when": "status <> '\\'"}
    script = await triggers.sql(database, "orders", **wish, log=True)
    assert await made(database) == []
    async with await psycopg.AsyncConnection.connect(database) as connection:
        for setting in ("on", "off"):
            await connection.execute(f"SET standard_conforming_strings = {setting}".encode())
            await connection.execute(script.encode())
    assert len(await made(database)) == 5
    assert await triggers.install(database, "orders", **wish, log=True) is False
    assert await triggers.sql(database, "orders", **wish, log=True) == script


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ("ALTER TABLE orders DISABLE TRIGGER ALL", "stale"),
        ("DROP TRIGGER {}_truncate ON orders", "stale"),
        ("ALTER FUNCTION {}() RESET search_path", "stale"),
        ("ALTER FUNCTION {}() SECURITY DEFINER", "stale"),
        ("ALTER FUNCTION {}() RENAME TO tell", "live"),
        ("DO $$ BEGIN EXECUTE pg_get_functiondef('{}'::regproc); END $$", "live"),
        (
            "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('{}'::regproc), 'reread', ''); END $$",
            "stale",
        ),
        ("ALTER TABLE orders RENAME COLUMN status TO state", "stale"),
    ],
)
async def test_what_was_damaged_is_stale_until_it_is_installed_again(
    orders: str, damage: str, state: State
) -> None:
    wish: dict[str, Any] = {"channel": "ch", "columns": ["status"], "log": True}
    await triggers.install(orders, "orders", **wish)
    [(name,)] = await execute(
        orders, "SELECT proname FROM pg_proc WHERE proname LIKE 'pgnotifybus%'"
    )
    await execute(orders, damage.format(name))
    [found] = await triggers.list(orders)
    assert found == replace(PLAIN, columns=("status",), state=state)
    if "COLUMN" in damage:
        await execute(orders, "ALTER TABLE orders RENAME COLUMN state TO status")
    else:
        assert await triggers.install(orders, "orders", **wish) is (state == "stale")
    assert await triggers.list(orders) == [replace(PLAIN, columns=("status",))]
    async with logged_on(orders, "ch") as logged:
        assert await logged.by("INSERT INTO orders VALUES (1)") == [
            event("insert", "1", key={"id": 1}, changed={"status": None})
        ]


async def test_what_a_dropped_table_has_left_is_found_and_removed(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch", log=True)
    await execute(orders, "DROP TABLE orders")
    assert await triggers.list(orders) == [replace(PLAIN, state="orphaned")]
    assert await triggers.remove(orders, "orders") == 1
    assert await made(orders) == []


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["pgnotifybus", "my log"])
async def test_without_a_log_nothing_is_changed(database: str, schema: str) -> None:
    await execute(database, ORDERS)
    await triggers.install(database, "orders", channel="ch")
    before = await made(database)
    option = " --schema 'my log'" if schema == "my log" else ""
    for call in (triggers.install, triggers.sql):
        with pytest.raises(SchemaMissing, match=f"`pgnotifybus schema install{option}`"):
            await call(database, "orders", channel="ch", log=True, schema=schema)
    assert await made(database) == before
    assert await triggers.list(database) == [replace(PLAIN, log=None)]


async def test_with_an_older_or_a_newer_log_nothing_is_changed(orders: str) -> None:
    await execute(orders, "DROP FUNCTION pgnotifybus.append_many(text[], text[], text[], jsonb[])")
    with pytest.raises(SchemaMissing, match="`pgnotifybus schema install`"):
        await triggers.install(orders, "orders", channel="ch", log=True)
    await schemas.install(orders)
    await execute(
        orders,
        f"COMMENT ON SCHEMA pgnotifybus IS 'pgnotifybus schema, version {ddl.VERSION + 1}; x'",
    )
    with pytest.raises(SchemaError, match="upgrade the library"):
        await triggers.install(orders, "orders", channel="ch", log=True)
    assert await made(orders) == []


async def test_a_log_that_has_gone_makes_it_stale(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch", log=True)
    await execute(orders, "DROP SCHEMA pgnotifybus CASCADE")
    assert await triggers.list(orders) == [replace(PLAIN, state="stale")]
    with pytest.raises(SchemaMissing, match="`pgnotifybus schema install`"):
        await triggers.install(orders, "orders", channel="ch", log=True)
    await schemas.install(orders)
    assert await triggers.list(orders) == [PLAIN]


@pytest.mark.parametrize("table", ddl.TABLES)
async def test_the_tables_of_the_log_are_not_logged_in_it(orders: str, table: str) -> None:
    """What writes an event would write an event, for ever."""
    with pytest.raises(SchemaError, match="itself"):
        await triggers.install(orders, f"pgnotifybus.{table}", channel="ch", log=True)
    assert await made(orders) == []


async def test_other_tables_in_the_schema_of_the_log_are_logged(database18: str) -> None:
    async with logged_on(
        database18, "ch", "CREATE TABLE shop.log_of (id int PRIMARY KEY)", schema="shop"
    ) as logged:
        assert await triggers.install(
            database18, "shop.log_of", channel="ch", log=True, schema="shop"
        )
        assert len(await logged.by("INSERT INTO shop.log_of VALUES (1)")) == 1


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"schema": "shop"}, "log=True"),
        ({"log": True, "schema": ""}, "schema name"),
        ({"log": True, "schema": "pg_x"}, "schema name"),
        ({"log": True, "schema": "a\0"}, "schema name"),
        ({"log": True, "schema": "x" * 64}, "schema name"),
    ],
)
async def test_arguments_that_cannot_be_are_refused_before_any_io(
    wish: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        await triggers.install("postgresql://127.0.0.1:1/x", "orders", channel="ch", **wish)
    with pytest.raises(ValueError, match=said):
        await triggers.sql("postgresql://127.0.0.1:1/x", "orders", channel="ch", **wish)


# -- the log that they write to -------------------------------------------------------------------

OWN = """\
CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM {}.append('ch', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER own AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION own()"""


@pytest.mark.parametrize("name", ["pgnotifybus", "my log", "a.b"])
async def test_a_log_that_triggers_append_to_is_not_removed(database18: str, name: str) -> None:
    """Nobody could write to their tables any more. A trigger of the user's own counts too."""
    await schemas.install(database18, schema=name)
    await execute(database18, ORDERS)
    await triggers.install(database18, "orders", channel="ch", log=True, schema=name)
    with pytest.raises(SchemaError, match=r"these tables: public\.orders\. Remove the triggers"):
        await schemas.remove(database18, schema=name)
    await triggers.remove(database18, "orders")
    await execute(database18, OWN.format(quote(name)))
    with pytest.raises(SchemaError, match=r"public\.orders"):
        await schemas.remove(database18, schema=name)
    await execute(database18, "DROP FUNCTION own CASCADE")
    assert await schemas.remove(database18, schema=name)


async def test_a_log_of_another_name_is_removed(database18: str) -> None:
    await schemas.install(database18, schema="log")
    await execute(database18, f"CREATE SCHEMA my_log; {ORDERS}; {OWN.format('my_log')}")
    assert await schemas.remove(database18, schema="log")


async def test_a_plain_name_is_found_as_well(orders: str) -> None:
    await execute(orders, OWN.format("pgnotifybus"))
    with pytest.raises(SchemaError, match=r"public\.orders"):
        await schemas.remove(orders)
