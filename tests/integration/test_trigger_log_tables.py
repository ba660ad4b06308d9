"""What triggers log of all kinds of values, names, partitions and children."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgnotifybus import triggers
from support.logged import Logged, event, fields, keyed, logged_on

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)"


@pytest.fixture
async def logged(database: str) -> AsyncIterator[Logged]:
    """A table `orders` whose changes are logged, on each PostgreSQL."""
    async with logged_on(database, "ch", ORDERS) as logged:
        await triggers.install(database, "orders", channel="ch", log=True)
        yield logged


@pytest.fixture
async def logged18(database18: str) -> AsyncIterator[Logged]:
    """A database with an event log and nothing else, on PostgreSQL 18."""
    async with logged_on(database18, "ch") as logged:
        yield logged


# -- types and names ------------------------------------------------------------------------------


async def test_values_of_all_kinds_are_logged(logged18: Logged, database18: str) -> None:
    await logged18.by(
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%')",
        """CREATE TABLE orders (
             id numeric PRIMARY KEY, ts timestamptz, raw bytea, doc jsonb, old json,
             list int[], mood mood, pair pair, mail email, spot point, span int4range, flag bool,
             ratio float8, twice numeric GENERATED ALWAYS AS (id * 2) STORED, other int)""",
        "SET timezone = 'UTC'",
    )
    columns = re.findall(r"\w+", "ts raw doc old list mood pair mail spot span flag ratio twice")
    await triggers.install(database18, "orders", channel="ch", columns=columns, log=True)
    insert = """
        INSERT INTO orders VALUES (
          'NaN', 'infinity', '\\x00ff', '{"a": [1]}', '{ "b":2}', '{1,NULL}', 'sad',
          '(1,"x y")', 'a@b', '(1,2)', '[1,5)', true, 'Infinity')"""
    values = {
        "ts": "infinity",
        "raw": "\\x00ff",
        "doc": {"a": [1]},
        "old": {"b": 2},
        "list": [1, None],
        "mood": "sad",
        "pair": {"a": 1, "b": "x y"},
        "mail": "a@b",
        "twice": "NaN",
        "spot": "(1,2)",
        "span": "[1,5)",
        "flag": True,
        "ratio": "Infinity",
    }
    assert await logged18.by(insert) == [event("insert", "NaN", key={"id": "NaN"}, changed=values)]
    assert await logged18.by("UPDATE orders SET other = 1") == []
    assert await logged18.by("UPDATE orders SET old = '{\"b\": 3}', id = 1.50, spot = '(1,3)'") == [
        event(
            "update",
            "1.50",
            key={"id": 1.5},
            old_key={"id": "NaN"},
            changed={"old": {"b": 3}, "spot": "(1,3)", "twice": 3.0},
            old={"old": {"b": 2}, "spot": "(1,2)", "twice": "NaN"},
        )
    ]
    every = [name for name in columns if name != "twice"]
    nothing = f"UPDATE orders SET {', '.join(f'{name} = NULL' for name in every)}"
    [(_, found)] = await logged18.by(nothing)
    assert found["changed"] == dict.fromkeys(every)
    assert set(found["old"]) == set(every)


async def test_a_change_is_logged_however_the_session_rounds_floats(
    logged: Logged, database: str
) -> None:
    await logged.by("ALTER TABLE orders ADD ratio float8")
    await triggers.install(database, "orders", channel="ch", columns=["ratio"], log=True)
    await logged.by("INSERT INTO orders (id, ratio) VALUES (1, 1)", "SET extra_float_digits = -15")
    [(_, found)] = await logged.by("UPDATE orders SET ratio = 1.0000000000000002")
    assert (found["changed"], found["old"]) == ({"ratio": 1.0000000000000002}, {"ratio": 1})


NAMES = [
    "Mixed Case",
    'say "hi"',
    "o'clock\\",
    "$$ $1 $pgnotifybus$",
    "100% %s {0} {x}",
    "a;--/*",
    *("named", "key", "number", "each", "before", "after", "told", "part_1", "value_1"),
    *("payload", "batch", "sized", "old_rows", "new_rows", "changed", "_payloads", "_batches"),
    "é" * 31,
]


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_will_do_for_anything(database18: str, name: str) -> None:
    """Also those that the function uses itself, and that of the log's schema."""
    quoted = sql.Identifier(name)
    table = quoted.as_string()
    create = (
        f"CREATE SCHEMA {table}; "
        f"CREATE TABLE {table}.{table} ({table} int PRIMARY KEY, id text, other int)"
    )
    async with logged_on(database18, name, create, schema=f"l{name}"[:40]) as logged:
        for when in (None, f"{table}.{table} > 0"):
            await triggers.install(
                database18,
                f"{table}.{table}",
                channel=name,
                columns=["id"],
                when=when,
                log=True,
                schema=f"l{name}"[:40],
            )
            where = {"table": name, "schema": name}
            assert await logged.by(
                f"INSERT INTO {table}.{table} VALUES (1, 'x')",
                f"UPDATE {table}.{table} SET id = 'y', {table} = 2",
                f"DELETE FROM {table}.{table}",
                f"TRUNCATE {table}.{table}",
            ) == [
                event("insert", "1", **where, key={name: 1}, changed={"id": "x"}),
                event(
                    "update",
                    "2",
                    **where,
                    key={name: 2},
                    old_key={name: 1},
                    changed={"id": "y"},
                    old={"id": "x"},
                ),
                event("delete", "2", **where, old_key={name: 2}, old={"id": "y"}),
                event("truncate", None, **where, reread=True),
            ]


async def test_a_renamed_table_is_logged_by_its_new_name(logged18: Logged, database18: str) -> None:
    await logged18.by(ORDERS)
    await triggers.install(database18, "orders", channel="ch", log=True)
    await logged18.by("CREATE SCHEMA shop; ALTER TABLE orders RENAME TO sales")
    await logged18.by("ALTER TABLE sales SET SCHEMA shop")
    assert await logged18.by("INSERT INTO shop.sales VALUES (1)") == [
        event("insert", "1", table="sales", schema="shop", key={"id": 1})
    ]


# -- partitions and children ----------------------------------------------------------------------

PARTED = """
    CREATE TABLE orders (id int, year int, status text, PRIMARY KEY (id, year))
      PARTITION BY LIST (year);
    CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1);
    CREATE TABLE orders_2 (status text, id int NOT NULL, gone int, year int NOT NULL);
    ALTER TABLE orders_2 DROP gone;
    ALTER TABLE orders ATTACH PARTITION orders_2 FOR VALUES IN (2)"""


def parted(op: str, id_: int, year: int, **more: Any) -> tuple[str | None, Any]:
    key = fields("old_key" if op == "delete" else "key", id=id_, year=year)
    return event(op, f"[{id_},{year}]", **key, **more)


async def test_a_row_that_moves_to_another_partition_is_one_event(database: str) -> None:
    """A row trigger would see a DELETE and an INSERT."""
    async with logged_on(database, "ch", PARTED) as logged:
        await triggers.install(database, "orders", channel="ch", columns=["status"], log=True)
        assert await logged.by(
            "INSERT INTO orders VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c')"
        ) == [
            parted("insert", 1, 1, changed={"status": "a"}),
            parted("insert", 2, 1, changed={"status": "b"}),
            parted("insert", 3, 2, changed={"status": "c"}),
        ]
        found = await logged.by("UPDATE orders SET year = 3 - year WHERE id <> 2")
        assert sorted(found, key=str) == [
            parted("update", 1, 2, old_key={"id": 1, "year": 1}),
            parted("update", 3, 1, old_key={"id": 3, "year": 2}),
        ]
        # Some move and some stay.
        found = await logged.by("UPDATE orders SET year = 1, status = id")
        assert sorted(found, key=str) == [
            parted(
                "update",
                1,
                1,
                old_key={"id": 1, "year": 2},
                changed={"status": "1"},
                old={"status": "a"},
            ),
            parted("update", 2, 1, changed={"status": "2"}, old={"status": "b"}),
            parted("update", 3, 1, changed={"status": "3"}, old={"status": "c"}),
        ]
        # A statement that names a partition fires the triggers of that one only.
        assert await logged.by("INSERT INTO orders_2 VALUES ('d', 4, 2)") == []
        await triggers.install(database, "orders_2", channel="ch", log=True)
        found = await logged.by("DELETE FROM orders_2", "TRUNCATE orders")
        assert [(each[1]["table"], each[1]["op"]) for each in found] == [
            ("orders_2", "delete"),
            ("orders", "truncate"),
            ("orders_2", "truncate"),
        ]


async def test_a_row_that_is_lost_on_its_way_to_a_partition_stops_the_statement(
    database: str,
) -> None:
    """Old and new rows cannot be paired by their order then, and wrong pairs must not be logged."""
    async with logged_on(
        database,
        "ch",
        PARTED,
        "INSERT INTO orders SELECT n, 1 FROM generate_series(1, 4) AS n",
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER lose BEFORE INSERT ON orders_2 FOR EACH ROW EXECUTE FUNCTION lose()",
    ) as logged:
        await triggers.install(database, "orders", channel="ch", log=True)
        with pytest.raises(psycopg.Error, match=r"public\.orders.*partition"):
            await logged.by("UPDATE orders SET year = 2")
        assert len(await logged.by("UPDATE orders SET year = 2 WHERE id <> 2")) == 3


async def test_a_merge_that_moves_a_row_is_logged_if_it_can_also_insert_and_delete(
    database: str,
) -> None:
    """PostgreSQL counts it as those, and fires their triggers only if the MERGE has such parts."""
    async with logged_on(database, "ch", PARTED, "INSERT INTO orders VALUES (1, 1)") as logged:
        await triggers.install(database, "orders", channel="ch", log=True)
        merge = """
            MERGE INTO orders USING (VALUES (1)) AS come (id) ON orders.id = come.id
             WHEN MATCHED AND false THEN DELETE
             WHEN MATCHED THEN UPDATE SET year = 2
             WHEN NOT MATCHED AND false THEN INSERT DEFAULT VALUES"""
        found = await logged.by(merge)
        assert sorted(found, key=str) == [parted("delete", 1, 1), parted("insert", 1, 2)]


async def test_rows_of_children_are_logged_of_the_parent(database: str) -> None:
    """A row trigger of the parent would not see them."""
    child = "CREATE TABLE special (extra int) INHERITS (orders)"
    async with logged_on(database, "ch", ORDERS, child) as logged:
        await triggers.install(database, "orders", channel="ch", log=True)
        assert await logged.by(
            "INSERT INTO special VALUES (1)", "INSERT INTO orders VALUES (2)"
        ) == [*keyed("insert", 2)]
        found = await logged.by("UPDATE orders SET id = id * 10")
        assert sorted(found, key=str) == [
            event("update", f"{n}0", key={"id": n * 10}, old_key={"id": n}) for n in (1, 2)
        ]
        assert len(await logged.by("DELETE FROM orders")) == 2
