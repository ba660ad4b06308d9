"""Installing, listing and removing triggers, on real PostgreSQL."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg import conninfo

from pgnotifybus import triggers
from pgnotifybus.core.trigger_catalog import State
from pgnotifybus.errors import InvalidChannel, SchemaError
from pgnotifybus.triggers import InstalledTrigger
from support.sql import execute
from support.told import change, reread, told_on

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)"
PLAIN = InstalledTrigger(
    schema="public",
    table="orders",
    channel="ch",
    key=("id",),
    columns=None,
    when=None,
    state="live",
)


@pytest.fixture
async def orders(database18: str) -> str:
    """A database with a table `orders`, on PostgreSQL 18."""
    await execute(database18, ORDERS)
    return database18


@asynccontextmanager
async def holding(dsn: str, lock: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Hold a lock on `orders`."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(f"LOCK TABLE orders IN {lock} MODE".encode())
        yield connection


async def made(dsn: str) -> list[tuple[Any, ...]]:
    """Every function and trigger that is not PostgreSQL's own, and what it is a version of."""
    return await execute(
        dsn,
        """SELECT 'function', oid::regprocedure::text, xmin::text FROM pg_proc
            WHERE oid >= 16384
           UNION ALL
           SELECT 'trigger', tgrelid::regclass || ' ' || tgname, xmin::text FROM pg_trigger
            WHERE NOT tgisinternal
            ORDER BY 1, 2""",
    )


# -- only if different ----------------------------------------------------------------------------


async def test_it_is_installed_once(database: str) -> None:
    await execute(database, ORDERS)
    assert await triggers.install(database, "orders", channel="ch") is True
    before = await made(database)
    assert len(before) == 1 + 4
    assert await triggers.install(database, "public.orders", channel="ch", key=["id"]) is False
    assert await made(database) == before
    assert await triggers.list(database) == [PLAIN]


async def test_where_it_is_there_no_lock_is_taken_and_nothing_written(orders: str) -> None:
    """So that every process can do it when it starts, also while a migration runs."""
    await triggers.install(orders, "orders", channel="ch", columns=["status"], when="total > 0")

    async def again() -> bool:
        return await triggers.install(
            orders, "orders", channel="ch", columns=["status"], when="total > 0"
        )

    async with holding(orders, "ACCESS EXCLUSIVE"):
        assert await again() is False
    # Autovacuum takes a transaction id now and then, but not every time.
    taken = []
    for _ in range(5):
        (before,) = (await execute(orders, "SELECT txid_snapshot_xmax(txid_current_snapshot())"))[0]
        assert await again() is False
        (after,) = (await execute(orders, "SELECT txid_snapshot_xmax(txid_current_snapshot())"))[0]
        taken.append(after - before)
    assert 0 in taken, taken


async def test_what_is_told_can_be_changed_while_others_write(orders: str) -> None:
    """Then only the function is replaced, for which the table need not be locked."""
    await triggers.install(orders, "orders", channel="ch")
    async with holding(orders, "ROW EXCLUSIVE"):
        assert await triggers.install(orders, "orders", channel="ch", columns=["status"]) is True
        assert await triggers.install(orders, "orders", channel="ch", columns=["status"]) is False
    assert await triggers.list(orders) == [replace(PLAIN, columns=("status",))]
    async with told_on(orders, "ch") as told:
        assert await told.by("INSERT INTO orders VALUES (1, 'x')") == [
            change("insert", {"id": 1, "status": "x"})
        ]
        # A session that has run the function already gets the new one, too.
        await triggers.install(orders, "orders", channel="ch")
        assert await told.by("INSERT INTO orders VALUES (2, 'x')") == [change("insert", {"id": 2})]


async def test_it_waits_for_a_lock_only_so_long(orders: str) -> None:
    async with holding(orders, "ROW EXCLUSIVE"):
        with pytest.raises(SchemaError, match=r"55P03.*lock_timeout"):
            await triggers.install(orders, "orders", channel="ch", lock_timeout=0.05)
    assert await made(orders) == []
    await triggers.install(orders, "orders", channel="ch")
    async with holding(orders, "ACCESS SHARE"):
        with pytest.raises(SchemaError, match=r"55P03.*lock_timeout"):
            await triggers.remove(orders, "orders", lock_timeout=0.05)
    assert await triggers.list(orders) == [PLAIN]


async def test_of_many_at_once_one_installs_it_and_none_fails(orders: str) -> None:
    """Also where the role's transactions keep the snapshot that they began with."""
    options = "-c default_transaction_isolation=serializable"
    dsn = conninfo.make_conninfo(orders, options=options)
    async with holding(orders, "ROW EXCLUSIVE") as writer:
        installing = [
            asyncio.create_task(triggers.install(dsn, "orders", channel="ch", lock_timeout=20.0))
            for _ in range(6)
        ]
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        async with asyncio.timeout(15):
            while (await execute(orders, waiting))[0][0] < 6:  # one for the table, five behind
                pass
        await writer.rollback()
        done = await asyncio.gather(*installing)
    assert sorted(done) == [False] * 5 + [True]
    assert len(await made(orders)) == 5


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ("ALTER TABLE orders DISABLE TRIGGER ALL", "stale"),
        ("ALTER TABLE orders ENABLE REPLICA TRIGGER {}_update", "stale"),
        ("DROP TRIGGER {}_truncate ON orders", "stale"),
        ("ALTER TRIGGER {}_insert ON orders RENAME TO tell", "live"),
        ("ALTER FUNCTION {}() RENAME TO tell", "live"),
        (
            "DO $$ BEGIN EXECUTE pg_get_functiondef('{}'::regproc); END $$",
            "live",
        ),  # as dumps have it
        ("COMMENT ON FUNCTION {}() IS 'dumps may leave out comments'", "live"),
        ("ALTER FUNCTION {}() RESET search_path", "stale"),
        ("ALTER FUNCTION {}() SECURITY DEFINER", "stale"),
        ("ALTER TABLE orders ENABLE ALWAYS TRIGGER {}_update", "live"),
        (
            "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('{}'::regproc), 'reread', ''); END $$",
            "stale",
        ),
        ("ALTER TABLE orders RENAME TO sales; ALTER TABLE sales RENAME TO orders", "live"),
        (
            "DROP TRIGGER {0}_delete ON orders; "
            "CREATE TRIGGER x AFTER DELETE ON orders EXECUTE FUNCTION {0}()",
            "stale",
        ),
    ],
)
async def test_what_was_damaged_is_stale_until_it_is_installed_again(
    orders: str, damage: str, state: State
) -> None:
    await triggers.install(orders, "orders", channel="ch")
    [(name,)] = await execute(orders, "SELECT proname FROM pg_proc WHERE oid >= 16384")
    await execute(orders, damage.format(name))
    [found] = await triggers.list(orders)
    assert found == replace(PLAIN, state=state)
    assert await triggers.install(orders, "orders", channel="ch") is (state == "stale")
    assert await triggers.list(orders) == [PLAIN]
    assert len(await made(orders)) == 5
    async with told_on(orders, "ch") as told:
        assert await told.by("INSERT INTO orders VALUES (1)") == [change("insert", {"id": 1})]
        assert await told.by("UPDATE orders SET total = 1") == [change("update", {"id": 1})]
        assert await told.by("DELETE FROM orders") == [change("delete", {"id": 1})]
        assert await told.by("TRUNCATE orders") == [reread("truncate")]


async def test_a_renamed_column_makes_it_stale_and_the_new_name_is_found(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch")
    await execute(orders, "ALTER TABLE orders RENAME COLUMN id TO number")
    assert [each.state for each in await triggers.list(orders)] == ["stale"]
    assert await triggers.install(orders, "orders", channel="ch") is True
    assert await triggers.list(orders) == [replace(PLAIN, key=("number",))]


async def test_with_always_it_fires_also_for_what_is_replicated(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch")
    async with told_on(orders, "ch", "SET session_replication_role = replica") as told:
        assert await told.by("INSERT INTO orders VALUES (1)") == []
        [(name,)] = await execute(orders, "SELECT proname FROM pg_proc WHERE oid >= 16384")
        await told.by(f"ALTER TABLE orders ENABLE ALWAYS TRIGGER {name}_insert")
        await triggers.install(orders, "orders", channel="ch", columns=["status"])
        assert len(await told.by("INSERT INTO orders VALUES (2)")) == 1


# -- several --------------------------------------------------------------------------------------


async def test_one_table_may_tell_several_channels_and_several_tables_one(orders: str) -> None:
    await execute(orders, "CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY)")
    await triggers.install(orders, "orders", channel="ch", columns=["status"], when="total > 0")
    await triggers.install(orders, "orders", channel="other", key=["status"])
    await triggers.install(orders, "shop.orders", channel="ch")
    expected = [
        replace(PLAIN, columns=("status",), when="total > 0"),
        replace(PLAIN, channel="other", key=("status",)),
        replace(PLAIN, schema="shop"),
    ]
    assert await triggers.list(orders) == expected
    assert await triggers.remove(orders, "orders", channel="none") == 0
    assert await triggers.remove(orders, "orders", channel="ch") == 1
    assert await triggers.list(orders) == expected[1:]
    assert await triggers.remove(orders, "shop.orders") == 1
    assert await triggers.remove(orders, "orders") == 1
    assert await triggers.remove(orders, "orders") == 0
    assert await made(orders) == []


async def test_what_a_dropped_table_has_left_is_found_and_removed(orders: str) -> None:
    await execute(orders, 'CREATE SCHEMA shop; CREATE TABLE shop."Or""ders" (id int PRIMARY KEY)')
    await triggers.install(orders, "orders", channel="ch")
    await triggers.install(orders, 'shop."Or""ders"', channel="ch")
    await execute(orders, 'DROP TABLE orders; DROP TABLE shop."Or""ders"')
    left = replace(PLAIN, schema="shop", table='Or"ders', state="orphaned")
    assert await triggers.list(orders) == [replace(PLAIN, state="orphaned"), left]
    assert await triggers.remove(orders, "orders") == 1
    assert await triggers.list(orders) == [left]
    with pytest.raises(SchemaError, match="there is no table"):
        await triggers.remove(orders, '"Or""ders"')  # in another schema
    assert await triggers.remove(orders, 'shop."Or""ders"') == 1
    assert await made(orders) == []


async def test_a_table_that_is_made_anew_gets_it_anew(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch")
    await execute(orders, f"DROP TABLE orders; {ORDERS}")
    assert await triggers.install(orders, "orders", channel="ch") is True
    assert await triggers.list(orders) == [PLAIN]
    assert len(await made(orders)) == 5
    # With the former table still there, under another name, there are two.
    await execute(orders, f"ALTER TABLE orders RENAME TO former; {ORDERS}")
    assert await triggers.install(orders, "orders", channel="ch") is True
    assert [(each.table, each.state) for each in await triggers.list(orders)] == [
        ("former", "stale"),
        ("orders", "live"),
    ]
    async with told_on(orders, "ch") as told:
        assert await told.by("INSERT INTO former VALUES (1)", "INSERT INTO orders VALUES (2)") == [
            change("insert", {"id": 1}, table="former"),
            change("insert", {"id": 2}),
        ]
    assert await triggers.remove(orders, "orders") == 1
    assert await triggers.remove(orders, "former") == 1
    assert await made(orders) == []


async def test_of_two_for_one_channel_one_is_left(database: str) -> None:
    """As a script may put there that was printed where the names were not yet taken."""
    await execute(database, ORDERS)
    wish: dict[str, Any] = {"channel": "ch", "columns": ["status"]}
    script = await triggers.sql(database, "orders", **wish)
    await triggers.install(database, "orders", channel="ch")
    await execute(database, f"ALTER TABLE orders RENAME TO former; {ORDERS}")
    await triggers.install(database, "orders", channel="ch")  # under another name than in there
    await execute(database, "DROP TABLE former")
    await execute(database, script)
    assert sorted((each.columns or ()) for each in await triggers.list(database)) == [
        (),
        ("status",),
    ]
    merged = await triggers.sql(database, "orders", **wish)
    assert await triggers.install(database, "orders", **wish) is True
    assert await triggers.list(database) == [replace(PLAIN, columns=("status",))]
    assert len(await made(database)) == 5
    assert await triggers.install(database, "orders", **wish) is False
    for _ in range(2):
        await execute(database, merged)
        assert await triggers.list(database) == [replace(PLAIN, columns=("status",))]


# -- for migrations -------------------------------------------------------------------------------


async def test_the_printed_statements_do_the_same_and_may_be_run_twice(database: str) -> None:
    await execute(database, ORDERS)
    wish: dict[str, Any] = {"channel": "c'\\h", "columns": ["status"], "when": "status <> '\\'"}
    script = await triggers.sql(database, "orders", **wish)
    assert await made(database) == []
    async with await psycopg.AsyncConnection.connect(database) as connection:
        for setting in ("on", "off"):
            await connection.execute(f"SET standard_conforming_strings = {setting}".encode())
            await connection.execute(script.encode())
    assert len(await made(database)) == 5
    assert await triggers.install(database, "orders", **wish) is False
    assert await triggers.sql(database, "orders", **wish) == script


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("create", "table", "said"),
    [
        ("", "orders", "there is no table orders"),
        ("", "no.where.at.all", "dotted names"),
        ("", "a b", "not a valid identifier"),
        ("", "", "not a valid identifier"),
        ("", "1259", "not a valid identifier"),
        ("", "pg_class", "system catalog"),
        ("CREATE VIEW v AS SELECT 1 AS id", "v", "is a view"),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1 AS id", "v", "is a materialized view"),
        ("CREATE SEQUENCE s", "s", "is a sequence"),
        ("CREATE TABLE t (id int PRIMARY KEY)", "t_pkey", "is an index"),
        ("CREATE TABLE t (id int)", "t", "has no primary key.*--key a,b.*--no-key"),
        (
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
            "CREATE FOREIGN TABLE f (id int) SERVER s",
            "f",
            "is a foreign table",
        ),
        (
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
            "CREATE TABLE t (id int, a int) PARTITION BY LIST (a); "
            "CREATE TABLE u PARTITION OF t FOR VALUES IN (1) PARTITION BY LIST (id); "
            "CREATE FOREIGN TABLE f PARTITION OF u FOR VALUES IN (1) SERVER s",
            "t",
            "foreign table among its partitions",
        ),
    ],
)
async def test_what_can_have_no_trigger_is_refused(
    database18: str, create: str, table: str, said: str
) -> None:
    if create:
        await execute(database18, create)
    with pytest.raises(SchemaError, match=said):
        await triggers.install(database18, table, channel="ch")
    with pytest.raises(SchemaError, match=said):
        await triggers.sql(database18, table, channel="ch")
    assert await made(database18) == []


async def test_a_temporary_table_is_refused(database18: str) -> None:
    """It can only be found over a connection that is the caller's own."""
    connection = await asyncpg.connect(database18)
    await connection.execute("CREATE TEMP TABLE t (id int PRIMARY KEY)")

    async def connect() -> object:
        return connection

    with pytest.raises(SchemaError, match="temporary"):
        await triggers.install(connect, "t", channel="ch")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"columns": ["stat"]}, r'has no column "stat"; it has "id", "status", "total", "twice"'),
        ({"columns": ["Status"]}, r'no column "Status"'),
        ({"columns": ["ctid"]}, r'no column "ctid"'),
        ({"key": ["nr"]}, r'no column "nr"'),
        ({"columns": ["twice"]}, "make it STORED"),
        ({"key": ["twice"]}, "make it STORED"),
        ({"columns": ["status"], "key": []}, "without a key"),
    ],
)
async def test_columns_that_cannot_be_told_are_refused(
    orders: str, wish: dict[str, Any], said: str
) -> None:
    virtual = "ALTER TABLE orders ADD twice numeric GENERATED ALWAYS AS (total * 2) VIRTUAL"
    await execute(orders, virtual)
    with pytest.raises(SchemaError, match=said):
        await triggers.install(orders, "orders", channel="ch", **wish)
    assert await made(orders) == []


NO_CONDITIONS = [
    "stat = 'x'",  # a typo must not wait for the first write
    "status",
    "total >",
    "count(*) > 1",
    "generate_series(1, 2) > 1",
    "ctid IS NULL",  # which transition tables have not got
    "tableoid = 1",
    "twice > 1",  # which is NULL in triggers
    "$1",
    "id = $1",
    "_count > 1",
    "TG_OP = 'INSERT'",
    "new_rows.id > 1",
    "EXISTS (SELECT FROM changed)",
    "is_large(total)",  # of a schema that is not named
    "true) OR (true",
    "true) FROM orders; DROP TABLE canary; --",
    "true; DROP TABLE canary",
    "true)); DROP TABLE canary; SELECT ((1",
    "SELECT true",
    "true LIMIT 1",
    "true UNION SELECT 1",
    "true /*",
    "'",
    '"',
    "$$",
    "true --\n)",
    "true GROUP BY id",
    "id, id",
]


async def test_a_condition_that_is_none_is_refused_and_nothing_else_happens(orders: str) -> None:
    await execute(
        orders,
        "CREATE TABLE canary (); "
        "ALTER TABLE orders ADD twice numeric GENERATED ALWAYS AS (total * 2) VIRTUAL; "
        "CREATE FUNCTION is_large(numeric) RETURNS bool LANGUAGE sql AS 'SELECT $1 > 1'",
    )
    before = await made(orders)
    for when in NO_CONDITIONS:
        for call in (triggers.install, triggers.sql):
            said = "the server refuses the condition " + re.escape(repr(when))
            with pytest.raises(SchemaError, match=said):
                await call(orders, "orders", channel="ch", when=when)
        assert await made(orders) == before, when
    assert await execute(orders, "SELECT to_regclass('canary')::text") == [("canary",)]


@pytest.mark.parametrize(
    ("table", "wish", "said"),
    [
        ("a\0b", {}, "NUL"),
        ("a\ud800", {}, "lone surrogate"),
        ("t", {"when": "a\0"}, "NUL"),
        ("t", {"when": "\udfff"}, "lone surrogate"),
        ("t", {"when": " \n"}, "must be a condition"),
        ("t", {"columns": ["\0"]}, "NUL"),
        ("t", {"key": ["\ud800"]}, "lone surrogate"),
        ("t", {"key": "id"}, "list of names"),
        ("t", {"columns": "status"}, "list of names"),
        ("t", {"columns": []}, "one at least"),
        ("t", {"key": ["a", "b", "a"]}, "twice"),
        ("t", {"lock_timeout": 0}, "lock_timeout"),
        ("t", {"lock_timeout": float("nan")}, "lock_timeout"),
        ("t", {"lock_timeout": float("inf")}, "lock_timeout"),
    ],
)
async def test_arguments_that_cannot_be_are_refused_before_any_io(
    table: str, wish: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        await triggers.install("postgresql://127.0.0.1:1/x", table, channel="ch", **wish)


@pytest.mark.parametrize("channel", ["", "x" * 64, "é" * 32, "a\0b", "\ud800"])
async def test_a_channel_that_cannot_be_is_refused_before_any_io(channel: str) -> None:
    nowhere = "postgresql://127.0.0.1:1/x"
    with pytest.raises(InvalidChannel):
        await triggers.install(nowhere, "orders", channel=channel)
    with pytest.raises(InvalidChannel):
        await triggers.remove(nowhere, "orders", channel=channel)


async def test_what_a_newer_version_has_made_is_left_alone(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch")
    await execute(
        orders,
        """DO $$ BEGIN EXECUTE (
             SELECT replace(pg_get_functiondef(oid), '{"version":1', '{"version":2')
               FROM pg_proc WHERE oid >= 16384); END $$""",
    )
    before = await made(orders)
    for call in (triggers.install(orders, "orders", channel="ch"), triggers.list(orders)):
        with pytest.raises(SchemaError, match=r"version 2.*upgrade the library"):
            await call
    assert await made(orders) == before


async def test_what_a_newer_version_has_left_of_another_table_stops_nobody(orders: str) -> None:
    await execute(orders, "CREATE TABLE other (id int PRIMARY KEY)")
    await triggers.install(orders, "other", channel="ch")
    await execute(
        orders,
        """DO $$ BEGIN EXECUTE (
             SELECT replace(pg_get_functiondef(oid), '{"version":1', '{"version":2')
               FROM pg_proc WHERE oid >= 16384); END $$""",
    )
    assert await triggers.install(orders, "orders", channel="ch") is True
    await execute(orders, "DROP TABLE other")
    assert await triggers.install(orders, "orders", channel="ch") is False
    assert await triggers.list(orders) == [PLAIN]
    assert await triggers.remove(orders, "orders") == 1
    assert len(await made(orders)) == 1


async def test_a_column_that_is_not_stored_any_more_makes_it_stale(orders: str) -> None:
    await triggers.install(orders, "orders", channel="ch", columns=["status"])
    await execute(orders, "ALTER TABLE orders DROP status")
    await execute(orders, "ALTER TABLE orders ADD status text GENERATED ALWAYS AS ('x') VIRTUAL")
    assert await triggers.list(orders) == [replace(PLAIN, columns=("status",), state="stale")]
    with pytest.raises(SchemaError, match="make it STORED"):
        await triggers.install(orders, "orders", channel="ch", columns=["status"])


# -- rights ---------------------------------------------------------------------------------------


@pytest.fixture
async def stranger(orders: str) -> AsyncIterator[str]:
    """A role of whom nothing is, with a password, in the database of `orders`."""
    await execute(orders, "CREATE ROLE stranger LOGIN PASSWORD 'strange'")
    yield conninfo.make_conninfo(orders, user="stranger", password="strange")
    await execute(orders, "REASSIGN OWNED BY stranger TO postgres")
    await execute(orders, "DROP OWNED BY stranger; DROP ROLE stranger")


async def test_who_may_not_is_told_what_to_grant(orders: str, stranger: str) -> None:
    with pytest.raises(SchemaError, match=r"42501.*GRANT TRIGGER ON.*GRANT CREATE ON"):
        await triggers.install(stranger, "orders", channel="ch")
    assert await made(orders) == []
    await execute(orders, "GRANT TRIGGER ON orders TO stranger")
    await execute(orders, "GRANT CREATE ON SCHEMA public TO stranger")
    assert await triggers.install(stranger, "orders", channel="ch", when="total > 0") is True
    with pytest.raises(SchemaError, match=r"42501.*owner of the table"):
        await triggers.remove(stranger, "orders")
    assert len(await triggers.list(stranger)) == 1


async def test_no_function_of_another_role_is_taken_over(orders: str, stranger: str) -> None:
    """Its owner could change later what runs with the rights of whoever writes to the table."""
    await triggers.install(orders, "orders", channel="ch")
    [(name, trap)] = await execute(
        orders, "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE oid >= 16384"
    )
    await triggers.remove(orders, "orders")
    await execute(orders, "GRANT CREATE ON SCHEMA public TO stranger")
    async with await psycopg.AsyncConnection.connect(stranger) as connection:
        await connection.execute(trap.encode())
    assert await triggers.install(orders, "orders", channel="ch") is True
    called = await execute(
        orders,
        "SELECT DISTINCT proname, proowner::regrole::text FROM pg_trigger JOIN pg_proc"
        " ON pg_proc.oid = tgfoid WHERE NOT tgisinternal",
    )
    assert [owner for _, owner in called] == ["postgres"]
    assert called[0][0] != name


async def test_what_a_stranger_has_left_does_not_stop_the_owner(orders: str, stranger: str) -> None:
    """Anybody who may create functions can write that one is for this table."""
    await execute(orders, "ALTER TABLE orders OWNER TO stranger")
    await execute(orders, "GRANT CREATE ON SCHEMA public TO stranger")
    await triggers.install(stranger, "orders", channel="ch")
    await execute(
        orders,
        """DO $$ BEGIN EXECUTE (
             SELECT replace(pg_get_functiondef(oid), 'public.pgnotifybus', 'public.other')
               FROM pg_proc WHERE oid >= 16384); END $$""",
    )
    assert await triggers.remove(stranger, "orders") == 1
    assert [each.state for each in await triggers.list(stranger)] == ["orphaned"]
    await execute(orders, "DROP TABLE orders")
    with pytest.raises(SchemaError, match="42501"):
        await triggers.remove(stranger, "orders")
    assert await triggers.remove(orders, "orders") == 1


# -- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["asyncpg", "asyncpg pool", "sqlalchemy", "factory"])
async def test_every_kind_of_source_will_do(orders: str, kind: str) -> None:
    source: Any
    close: Any = None
    driver: Any = None
    match kind:
        case "asyncpg":
            source, driver = orders, "asyncpg"
        case "asyncpg pool":
            source = await asyncpg.create_pool(orders, min_size=1, max_size=2)
            close = source.close
        case "sqlalchemy":
            from sqlalchemy.ext.asyncio import create_async_engine

            source = create_async_engine(orders.replace("postgresql:", "postgresql+asyncpg:"))
            close = source.dispose
        case _:

            async def source() -> object:
                return await psycopg.AsyncConnection.connect(orders)

    wish: dict[str, Any] = {"channel": "ch", "when": "status <> 'x;y'"}
    try:
        assert await triggers.install(source, "orders", **wish, driver=driver) is True
        assert await triggers.install(source, "orders", **wish, driver=driver) is False
        script = await triggers.sql(source, "orders", **wish, driver=driver)
        assert "x;y" in script
        assert len(await triggers.list(source, driver=driver)) == 1
        with pytest.raises(SchemaError, match="refuses the condition"):
            await triggers.install(source, "orders", channel="ch", when="; SELECT 1", driver=driver)
        with pytest.raises(SchemaError, match="there is no table"):
            await triggers.install(source, "nothing", channel="ch", driver=driver)
        assert await triggers.remove(source, "orders", driver=driver) == 1
    finally:
        if close is not None:
            await close()
