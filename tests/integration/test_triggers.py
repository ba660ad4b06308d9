"""What triggers tell of each kind of statement, on real PostgreSQL."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from pgnotifybus import triggers
from pgnotifybus.core.trigger_body import VARIABLES
from pgnotifybus.errors import SchemaError
from support.sql import execute
from support.told import AT_BYTES, Told, change, keys_only, reread, told_on

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)"


@pytest.fixture
async def told(database: str) -> AsyncIterator[Told]:
    """A table `orders` whose keys are told, on each PostgreSQL."""
    async with told_on(database, "ch", ORDERS) as told:
        await triggers.install(database, "orders", channel="ch")
        yield told


@pytest.fixture
async def told18(database18: str) -> AsyncIterator[Told]:
    """A connection to an empty database on PostgreSQL 18."""
    async with told_on(database18, "ch") as told:
        yield told


def ids(*values: object) -> list[dict[str, object]]:
    return [{"id": value} for value in values]


# -- statements -----------------------------------------------------------------------------------


async def test_each_statement_that_changes_rows_is_told_once(told: Told) -> None:
    assert await told.by("INSERT INTO orders VALUES (1), (2), (3)") == [
        change("insert", *ids(1, 2, 3))
    ]
    assert told.raw == [
        '{"schema":"public","table":"orders","op":"insert","rows":[{"id":1},{"id":2},{"id":3}]}'
    ]
    assert await told.by("UPDATE orders SET status = 'paid' WHERE id < 3") == [
        change("update", *ids(1, 2))
    ]
    assert await told.by("UPDATE orders SET status = status WHERE id = 3") == [
        change("update", *ids(3))
    ]
    assert await told.by("DELETE FROM orders WHERE id = 1") == [change("delete", *ids(1))]
    assert await told.by("TRUNCATE orders") == [reread("truncate")]


async def test_statements_that_change_no_row_are_not_told(told: Told) -> None:
    assert (
        await told.by(
            "INSERT INTO orders SELECT 1 WHERE false",
            "UPDATE orders SET status = 'paid'",
            "DELETE FROM orders",
        )
        == []
    )


async def test_copy_is_told(told: Told) -> None:
    async with told.connection.cursor() as cursor:
        async with cursor.copy("COPY orders (id) FROM STDIN") as copy:
            await copy.write("1\n2\n")
    assert await told.by() == [change("insert", *ids(1, 2))]


async def test_an_upsert_is_told_as_what_it_did(told: Told) -> None:
    upsert = "INSERT INTO orders VALUES {} ON CONFLICT (id) DO UPDATE SET status = EXCLUDED.status"
    assert await told.by(upsert.format("(1, 'new')")) == [change("insert", *ids(1))]
    assert await told.by(upsert.format("(1, 'paid')")) == [change("update", *ids(1))]
    both = await told.by(upsert.format("(1, 'sent'), (2, 'new')"))
    assert sorted(both, key=lambda each: str(each["op"])) == [
        change("insert", *ids(2)),
        change("update", *ids(1)),
    ]
    assert await told.by("INSERT INTO orders VALUES (1) ON CONFLICT DO NOTHING") == []


async def test_a_merge_is_told_as_what_it_did(told: Told) -> None:
    await told.by("INSERT INTO orders VALUES (1, 'new'), (2, 'new'), (3, 'new')")
    merge = """
        MERGE INTO orders USING (VALUES (1, 'paid'), (2, NULL), (4, 'new')) AS come (id, status)
           ON orders.id = come.id
         WHEN MATCHED AND come.status IS NULL THEN DELETE
         WHEN MATCHED THEN UPDATE SET status = come.status
         WHEN NOT MATCHED THEN INSERT (id, status) VALUES (come.id, come.status)"""
    found = await told.by(merge)
    assert sorted(found, key=lambda each: str(each["op"])) == [
        change("delete", *ids(2)),
        change("insert", *ids(4)),
        change("update", *ids(1)),
    ]
    nothing = """
        MERGE INTO orders USING (VALUES (99)) AS come (id) ON orders.id = come.id
         WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING"""
    assert await told.by(nothing) == []


async def test_a_cascade_is_told_of_the_table_that_it_reaches(told: Told, database: str) -> None:
    await told.by(
        "CREATE TABLE lines (id int PRIMARY KEY, "
        "order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE)",
        "INSERT INTO orders VALUES (1), (2)",
        "INSERT INTO lines VALUES (10, 1), (11, 1), (20, 2)",
    )
    await triggers.install(database, "lines", channel="ch", columns=["order_id"])
    found = await told.by("DELETE FROM orders")
    assert change("delete", *ids(1, 2)) in found
    lines = [row["id"] for each in found if each["table"] == "lines" for row in each["rows"]]
    assert sorted(lines) == [10, 11, 20]
    await told.by("INSERT INTO orders VALUES (1)", "INSERT INTO lines VALUES (10, 1)")
    found = await told.by("UPDATE orders SET id = 5")
    assert change("update", {"id": 10, "order_id": 5}, table="lines") in found
    found = await told.by("TRUNCATE orders CASCADE")
    assert sorted(found, key=str) == [reread("truncate", table="lines"), reread("truncate")]


async def test_what_happens_at_commit_is_told(told18: Told, database18: str) -> None:
    """Deferred triggers act when the transaction commits, and their statements are told too."""
    await told18.by(
        ORDERS,
        "CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders DEFERRABLE "
        "INITIALLY DEFERRED)",
        "CREATE FUNCTION add_line() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO lines VALUES (NEW.id * 10, NEW.id); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION add_line()",
    )
    await triggers.install(database18, "lines", channel="ch")
    await told18.connection.execute("BEGIN; INSERT INTO lines VALUES (11, 1)")
    await told18.connection.execute("INSERT INTO orders VALUES (1)")
    assert await told18.by("COMMIT") == [
        change("insert", *ids(11), table="lines"),
        change("insert", *ids(10), table="lines"),
    ]


async def test_what_is_rolled_back_is_not_told(told: Told) -> None:
    assert await told.by("BEGIN", "INSERT INTO orders VALUES (1)", "ROLLBACK") == []
    assert await told.by(
        "BEGIN",
        "INSERT INTO orders VALUES (1)",
        "SAVEPOINT before",
        "INSERT INTO orders VALUES (2)",
        "ROLLBACK TO before",
        "INSERT INTO orders VALUES (3)",
        "COMMIT",
    ) == [change("insert", *ids(1)), change("insert", *ids(3))]


async def test_the_same_twice_in_a_transaction_is_told_once(told: Told) -> None:
    """As the server has it: told again would be "read row 1 again", twice."""
    await told.by("INSERT INTO orders VALUES (1)")
    update = "UPDATE orders SET total = total + 1"
    assert await told.by("BEGIN", update, update, "COMMIT") == [change("update", *ids(1))]
    assert await told.by(update, update) == [change("update", *ids(1))] * 2


async def test_a_value_that_comes_back_in_a_transaction_is_told_each_time(
    told: Told, database: str
) -> None:
    """Otherwise the last that is told would not be what is there: PostgreSQL drops repetitions."""
    await triggers.install(database, "orders", channel="ch", columns=["status"])
    await told.by("INSERT INTO orders VALUES (1, 'a')")
    before = time.time()
    to = [f"UPDATE orders SET status = '{status}'" for status in "baba"]
    assert await told.by("BEGIN", *to, "COMMIT") == [
        change("update", {"id": 1, "status": status}) for status in "baba"
    ]
    assert before - 60 < told.at[0] < told.at[1] < told.at[2] < told.at[3] < before + 60


# -- keys -----------------------------------------------------------------------------------------


async def test_a_changed_key_is_told_as_it_was_and_as_it_is(told: Told) -> None:
    await told.by("INSERT INTO orders VALUES (1), (2)")
    assert await told.by("UPDATE orders SET id = 5 WHERE id = 1") == [change("update", *ids(1, 5))]
    await told.by("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
    await told.by("ALTER TABLE orders ADD PRIMARY KEY (id) DEFERRABLE")
    assert await told.by("UPDATE orders SET id = 7 - id") == [change("update", *ids(2, 5))]


async def test_a_composite_key_is_told_in_its_own_order(database: str) -> None:
    table = (
        "CREATE TABLE lines (note text, nr int, shop text, PRIMARY KEY (shop, nr) INCLUDE (note))"
    )
    async with told_on(database, "ch", table) as told:
        await triggers.install(database, "lines", channel="ch")
        await told.by("INSERT INTO lines VALUES ('x', 1, 'a'), ('y', 1, 'b')")
        assert told.raw == [
            '{"schema":"public","table":"lines","op":"insert",'
            '"rows":[{"shop":"a","nr":1},{"shop":"b","nr":1}]}'
        ]


async def test_a_key_of_ones_own_need_not_be_unique(told18: Told, database18: str) -> None:
    """Rows that have the same key are looked at together, so that no change is missed."""
    await told18.by("CREATE TABLE orders (customer int, status text)")
    await triggers.install(database18, "orders", channel="ch", key=["customer"], columns=["status"])
    insert = "INSERT INTO orders VALUES (7, 'new'), (7, 'new'), (8, NULL), (NULL, 'new')"
    assert await told18.by(insert) == [
        change(
            "insert",
            {"customer": 7, "status": "new"},
            {"customer": 8, "status": None},
            {"customer": None, "status": "new"},
        )
    ]
    # One of two equal rows goes from 7 to 8: 7 is not what it was, though it looks as before.
    move = "UPDATE orders SET customer = 8 WHERE ctid = (SELECT min(ctid) FROM orders)"
    [found] = await told18.by(move)
    assert {"customer": 7} in found["rows"]
    assert {"customer": 8, "status": "new"} in found["rows"]
    [found] = await told18.by("UPDATE orders SET status = 'paid' WHERE customer IS NULL")
    assert found["rows"] == [{"customer": None, "status": "paid"}]


async def test_without_a_key_it_is_told_that_the_table_has_changed(
    told: Told, database: str
) -> None:
    await triggers.install(database, "orders", channel="ch", key=[], when="total > 0")
    assert await told.by("INSERT INTO orders VALUES (1, 'x', 0)", "DELETE FROM orders") == []
    assert await told.by("INSERT INTO orders VALUES (1, 'x', 0), (2, 'x', 1)") == [
        reread("insert", 2)
    ]
    assert await told.by("UPDATE orders SET total = 0") == [reread("update", 2)]
    assert await told.by("UPDATE orders SET total = 0") == []
    assert await told.by("UPDATE orders SET total = 1") == [reread("update", 2)]
    assert await told.by("DELETE FROM orders") == [reread("delete", 2)]
    assert await told.by("TRUNCATE orders") == [reread("truncate")]


# -- columns and conditions -----------------------------------------------------------------------


async def test_named_columns_travel_and_others_do_not_matter(told: Told, database: str) -> None:
    await triggers.install(database, "orders", channel="ch", columns=["status"])
    assert await told.by("INSERT INTO orders VALUES (1, 'new', 5), (2, NULL, 5)") == [
        change("insert", {"id": 1, "status": "new"}, {"id": 2, "status": None})
    ]
    assert await told.by("UPDATE orders SET total = 6", "UPDATE orders SET status = status") == []
    assert await told.by("UPDATE orders SET status = 'paid', total = 7") == [
        change("update", {"id": 1, "status": "paid"}, {"id": 2, "status": "paid"})
    ]
    assert await told.by("UPDATE orders SET status = NULL WHERE id = 2") == [
        change("update", {"id": 2, "status": None})
    ]
    # What is under the new key now; and the old one alone, under which there is nothing.
    assert (
        await told.by("UPDATE orders SET id = 9 WHERE id = 1")
        == [change("update", {"id": 1}, {"id": 9, "status": "paid"})]
        or told.raw
    )
    assert await told.by("DELETE FROM orders WHERE id = 9") == [
        change("delete", {"id": 9, "status": "paid"})
    ]


async def test_swapped_keys_are_told_as_what_each_is_now(told18: Told, database18: str) -> None:
    await told18.by(
        "CREATE TABLE orders (id int PRIMARY KEY DEFERRABLE, status text)",
        "INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    )
    await triggers.install(database18, "orders", channel="ch", columns=["status"])
    assert await told18.by("UPDATE orders SET id = 3 - id WHERE id < 3") == [
        change("update", {"id": 1, "status": "b"}, {"id": 2, "status": "a"})
    ]


async def test_the_key_may_be_all_that_matters(told18: Told, database18: str) -> None:
    await told18.by(ORDERS, "INSERT INTO orders VALUES (1), (2)")
    await triggers.install(database18, "orders", channel="ch", columns=["id"])
    assert await told18.by("UPDATE orders SET status = 'paid'") == []
    assert await told18.by("UPDATE orders SET id = 3 WHERE id = 1") == [
        change("update", *ids(1, 3))
    ]


async def test_a_condition_makes_a_smaller_table_whose_changes_are_told(
    told: Told, database: str
) -> None:
    await triggers.install(
        database, "orders", channel="ch", columns=["status"], when="orders.total > 10 -- large"
    )
    assert await told.by(
        "INSERT INTO orders VALUES (1, 'new', 5), (2, 'new', 50), (3, 'new', NULL)"
    ) == [change("insert", {"id": 2, "status": "new"})]
    assert await told.by("UPDATE orders SET status = 'paid' WHERE id <> 2") == []
    assert await told.by("UPDATE orders SET total = 20 WHERE id = 1") == [
        change("update", {"id": 1, "status": "paid"})
    ]
    assert await told.by("UPDATE orders SET total = 30 WHERE id = 1") == []
    assert await told.by("UPDATE orders SET total = 0, status = 'sent' WHERE id = 1") == [
        change("update", {"id": 1})
    ]
    assert await told.by("DELETE FROM orders") == [change("delete", {"id": 2, "status": "new"})]


async def test_a_condition_may_span_lines_and_hold_any_text(told18: Told, database18: str) -> None:
    await told18.by('CREATE TABLE "a""%$$b" (id int PRIMARY KEY, "select" text)')
    text = "$x$it's\n  100% \\ {0} $$ /* no */ $x$"
    condition = f'"select" <> \'a backslash \\\' AND "select" = {text} -- $pgnotifybus$'
    await triggers.install(database18, '"a""%$$b"', channel="ch", when=condition)
    await told18.by("SET standard_conforming_strings = off", "SET escape_string_warning = off")
    assert await told18.by(f'INSERT INTO "a""%$$b" VALUES (1, {text}), (2, \'other\')') == [
        change("insert", *ids(1), table='a"%$$b')
    ]
    assert told18.warnings == []


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", "é", "€", "\x01"])
async def test_what_is_told_fits_to_the_last_byte(told: Told, database: str, letter: str) -> None:
    """Trap 25: a byte too many would abort the user's write."""
    await triggers.install(database, "orders", channel="ch", columns=["status"])
    frame = len('{"schema":"public","table":"orders","op":"insert","rows":[{"id":1,"status":""}]}')
    frame += AT_BYTES
    size = len(json.dumps(letter, ensure_ascii=False).encode()) - 2
    count, rest = divmod(7_999 - frame, size)
    fits, over = letter * count + "x" * rest, letter * count + "x" * (rest + 1)
    insert = "INSERT INTO orders VALUES (1, {})"
    await told.connection.execute(sql.SQL(insert).format(sql.Literal(fits)))
    assert await told.by() == [change("insert", {"id": 1, "status": fits})]
    assert len(told.raw[0].encode()) == 7_999
    await told.connection.execute(
        sql.SQL("UPDATE orders SET status = {}").format(sql.Literal(over))
    )
    assert await told.by() == [keys_only("update", *ids(1))]
    assert await told.by("DELETE FROM orders") == [keys_only("delete", *ids(1))]


async def test_keys_that_do_not_fit_are_told_as_a_reread(told18: Told, database18: str) -> None:
    await told18.by("CREATE TABLE orders (id text PRIMARY KEY, status text)")
    await triggers.install(database18, "orders", channel="ch")
    frame = len('{"schema":"public","table":"orders","op":"insert","rows":[{"id":""}]}')
    key = "é" * ((7_999 - frame) // 2) + "x" * ((7_999 - frame) % 2)
    await told18.connection.execute("INSERT INTO orders VALUES (%s)", [key])
    assert await told18.by() == [change("insert", *ids(key))]
    assert len(told18.raw[0].encode()) == 7_999
    await told18.connection.execute("INSERT INTO orders VALUES (%s)", [key + "x"])
    assert await told18.by() == [reread("insert", 1)]
    assert await told18.by("UPDATE orders SET status = 'x'") == [reread("update", 2)]


async def test_more_rows_than_fit_are_told_as_a_reread(told: Told) -> None:
    assert await told.by("INSERT INTO orders SELECT generate_series(1, 500)") == [
        change("insert", *ids(*range(1, 501)))
    ]
    assert await told.by("INSERT INTO orders SELECT generate_series(1001, 1700)") == [
        reread("insert", 700)
    ]
    assert await told.by("INSERT INTO orders SELECT generate_series(2001, 102000)") == [
        reread("insert", 100_000)
    ]
    assert await told.by("UPDATE orders SET total = 1") == [reread("update", 101_200)]
    assert await told.by("DELETE FROM orders") == [reread("delete", 101_200)]


async def test_a_huge_value_is_neither_built_nor_compared(told18: Told, database18: str) -> None:
    """Its JSON alone could be over the gigabyte that a value may have."""
    await told18.by("CREATE TABLE orders (id int PRIMARY KEY, status text, other int)")
    await triggers.install(database18, "orders", channel="ch", columns=["status"])
    huge = "repeat(E'\\x01', 200 * 1024 * 1024)"
    assert await told18.by(f"INSERT INTO orders VALUES (1, {huge})") == [
        keys_only("insert", *ids(1))
    ]
    assert await told18.by("UPDATE orders SET other = 1") == [keys_only("update", *ids(1))]
    assert await told18.by("DELETE FROM orders") == [keys_only("delete", *ids(1))]
    assert told18.warnings == []


async def test_large_values_that_did_not_change_are_not_told(told18: Told, database18: str) -> None:
    """They lie outside of the row; up to a limit they are compared all the same."""
    await told18.by("CREATE TABLE orders (id int PRIMARY KEY, status text, other int)")
    await triggers.install(database18, "orders", channel="ch", columns=["status"])
    await told18.by("INSERT INTO orders VALUES (1, repeat(md5('x'), 3000))")
    assert await told18.by("UPDATE orders SET other = 1") == []
    assert await told18.by("UPDATE orders SET status = status || 'x'") == [
        keys_only("update", *ids(1))
    ]


# -- types and names ------------------------------------------------------------------------------


async def test_values_of_all_kinds_are_told(told18: Told, database18: str) -> None:
    """JSON, domains without operators and types of one's own; none of them needs to be compared."""
    await told18.by(
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%')",
        """CREATE TABLE orders (
             id numeric PRIMARY KEY, ts timestamptz, day date, raw bytea, doc jsonb, old json,
             list int[], mood mood, pair pair, mail email, spot point, span int4range, flag bool,
             ratio float8, twice numeric GENERATED ALWAYS AS (id * 2) STORED, other int)""",
        "SET timezone = 'UTC'",
    )
    columns = re.findall(
        r"\w+", "ts day raw doc old list mood pair mail spot span flag ratio twice"
    )
    await triggers.install(database18, "orders", channel="ch", columns=columns)
    insert = """
        INSERT INTO orders VALUES (
          'NaN', 'infinity', '-infinity', '\\x00ff', '{"a": [1]}', '{ "b":2}', '{1,NULL}', 'sad',
          '(1,"x y")', 'a@b', '(1,2)', '[1,5)', true, 'Infinity')"""
    assert await told18.by(insert) == [
        change(
            "insert",
            {
                "id": "NaN",
                "ts": "infinity",
                "day": "-infinity",
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
            },
        )
    ]
    assert await told18.by("UPDATE orders SET other = 1") == []
    [found] = await told18.by("UPDATE orders SET old = '{\"b\": 3}', ratio = 0.1, id = 1.50")
    assert {"id": "NaN"} in found["rows"]
    assert any(row.get("old") == {"b": 3} and row["ratio"] == 0.1 for row in found["rows"])
    assert '"id":1.50' in told18.raw[0]
    assert told18.warnings == []


async def test_a_change_is_told_however_the_session_rounds_floats(
    told: Told, database: str
) -> None:
    """With `extra_float_digits` at 0 both would look the same, and the change be lost."""
    await told.by("ALTER TABLE orders ADD ratio float8, ADD spot point")
    await triggers.install(database, "orders", channel="ch", columns=["ratio", "spot"])
    await told.by("INSERT INTO orders (id, ratio, spot) VALUES (1, 1, '(1,1)')")
    for digits, ratio in ((0, "1.0000000000000002"), (-15, "1.4")):
        await told.by(f"SET extra_float_digits = {digits}")
        [found] = await told.by(f"UPDATE orders SET ratio = {ratio}")
        assert found["rows"] == [{"id": 1, "ratio": float(ratio), "spot": "(1,1)"}]
    [found] = await told.by("UPDATE orders SET spot = '(1.2,1)'")
    assert found["rows"][0]["spot"] == "(1.2,1)"
    assert await told.by("UPDATE orders SET ratio = ratio", "SHOW extra_float_digits") == []


async def test_a_key_is_spelled_the_same_for_every_writer(told18: Told, database18: str) -> None:
    """Else who keeps rows by their keys would not know them again."""
    await told18.by("CREATE TABLE orders (a bytea, b interval, c daterange, d float8)")
    await triggers.install(database18, "orders", channel="ch", key=["a", "b", "c", "d"])
    insert = (
        "INSERT INTO orders VALUES ('\\x00ff', '1 mon 2 days 3:00', '[2020-01-02,2020-03-04)', 0.1)"
    )
    await told18.by(insert)
    expected = told18.raw
    await told18.by(
        "SET bytea_output = escape",
        "SET intervalstyle = iso_8601",
        "SET datestyle = 'German, DMY'",
        "SET extra_float_digits = -10",
    )
    await told18.by(insert)
    assert told18.raw == expected
    assert '"b":"1 mon 2 days 03:00:00","c":"[2020-01-02,2020-03-04)","d":0.1}' in expected[0]


NAMES = [
    "Mixed Case",
    "o'clock",
    'say "hi"',
    "back\\slash",
    "$$ $1 $pgnotifybus$",
    "100% %s {0} {x}",
    "größe €",
    "a;--/*",
    "named",
    "key",
    "entry",
    "each",
    "before",
    "_rows",
    "TG_OP",
    "x" * 63,
    "é" * 31,
    "\t\r\n",
]


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_will_do_for_anything(told18: Told, database18: str, name: str) -> None:
    """Also those that the function uses itself."""
    quoted = sql.Identifier(name)
    create = "CREATE SCHEMA {0}; CREATE TABLE {0}.{0} ({0} int PRIMARY KEY, id text, named int)"
    if name == "named":
        create = "CREATE SCHEMA {0}; CREATE TABLE {0}.{0} ({0} int PRIMARY KEY, id text)"
    await told18.connection.execute(sql.SQL(create).format(quoted))
    table = quoted.as_string(told18.connection)
    bare = f"{table}.{table}" if name in VARIABLES else table
    async with told_on(database18, name) as told:
        for when in (None, f"{table}.{table} > 0 AND {bare} < 9"):
            await triggers.install(
                database18, f"{table}.{table}", channel=name, columns=["id"], when=when
            )
            assert await told.by(f"INSERT INTO {table}.{table} VALUES (1, 'x')") == [
                change("insert", {name: 1, "id": "x"}, table=name, schema=name)
            ]
            assert await told.by(f"UPDATE {table}.{table} SET id = 'y', {table} = 2") == [
                change("update", {name: 1}, {name: 2, "id": "y"}, table=name, schema=name)
            ]
            assert await told.by(f"DELETE FROM {table}.{table}") == [
                change("delete", {name: 2, "id": "y"}, table=name, schema=name)
            ]
        assert told.warnings == []


async def test_a_renamed_table_is_told_by_its_new_name(told18: Told, database18: str) -> None:
    await told18.by(ORDERS)
    await triggers.install(database18, "orders", channel="ch")
    await told18.by("CREATE SCHEMA shop", "ALTER TABLE orders RENAME TO sales")
    await told18.by("ALTER TABLE sales SET SCHEMA shop")
    assert await told18.by("INSERT INTO shop.sales VALUES (1)") == [
        change("insert", *ids(1), table="sales", schema="shop")
    ]
    assert told18.warnings == []


async def test_a_database_in_another_encoding_counts_its_own_bytes(
    database18: str, told18: Told
) -> None:
    await told18.by("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    dsn = re.sub(r"test_\w+", "latin1", database18)
    try:
        async with told_on(dsn, "größe", ORDERS) as told:
            await triggers.install(dsn, "orders", channel="größe", columns=["status"])
            frame = len(
                '{"schema":"public","table":"orders","op":"insert","rows":[{"id":1,"status":""}]}'
            )
            text = "é" * (7_999 - frame - AT_BYTES)
            await told.connection.execute("INSERT INTO orders VALUES (1, %s)", [text])
            assert await told.by() == [change("insert", {"id": 1, "status": text})]
            assert await told.by("UPDATE orders SET status = status || 'x'") == [
                keys_only("update", *ids(1))
            ]
            with pytest.raises(SchemaError, match="has no equivalent"):
                await triggers.install(dsn, "orders", channel="€")
    finally:
        await told18.by("DROP DATABASE latin1 WITH (FORCE)")


# -- partitions and children ----------------------------------------------------------------------

PARTED = """
    CREATE TABLE orders (id int, year int, status text, PRIMARY KEY (id, year))
      PARTITION BY LIST (year);
    CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1);
    CREATE TABLE orders_2 PARTITION OF orders FOR VALUES IN (2)"""


async def test_statements_on_a_partitioned_table_are_told_once(told: Told, database: str) -> None:
    await told.by("DROP TABLE orders", PARTED)
    await triggers.install(database, "orders", channel="ch", columns=["status"])
    await triggers.install(database, "orders_1", channel="ch", columns=["status"])
    assert await told.by("INSERT INTO orders VALUES (1, 1, 'a'), (2, 2, 'b')") == [
        change("insert", {"id": 1, "year": 1, "status": "a"}, {"id": 2, "year": 2, "status": "b"})
    ]
    # It moves to another partition, as a DELETE there and an INSERT here.
    [found] = await told.by("UPDATE orders SET year = 2 WHERE id = 1")
    assert found == change("update", {"id": 1, "year": 1}, {"id": 1, "year": 2, "status": "a"})
    assert await told.by("UPDATE orders SET status = 'c' WHERE id = 2") == [
        change("update", {"id": 2, "year": 2, "status": "c"})
    ]
    assert len(await told.by("DELETE FROM orders WHERE id = 1")) == 1
    # A statement that names a partition fires the triggers of that one only.
    assert await told.by("INSERT INTO orders_1 VALUES (3, 1, 'd')") == [
        change("insert", {"id": 3, "year": 1, "status": "d"}, table="orders_1")
    ]
    assert await told.by("INSERT INTO orders_2 VALUES (4, 2, 'd')") == []
    # TRUNCATE fires those of every table that it empties.
    assert sorted(await told.by("TRUNCATE orders"), key=str) == [
        reread("truncate"),
        reread("truncate", table="orders_1"),
    ]


async def test_rows_of_children_are_told_of_the_parent(told18: Told, database18: str) -> None:
    await told18.by(ORDERS, "CREATE TABLE special (extra int) INHERITS (orders)")
    await triggers.install(database18, "orders", channel="ch")
    assert await told18.by("INSERT INTO special VALUES (1)") == []
    assert await told18.by("UPDATE orders SET status = 'paid'") == [change("update", *ids(1))]


# -- whoever writes -------------------------------------------------------------------------------


async def test_a_role_that_may_only_write_is_told_of_too(told18: Told, database18: str) -> None:
    await told18.by(
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.orders (id int PRIMARY KEY, status text)",
    )
    await triggers.install(
        database18, "shop.orders", channel="ch", columns=["status"], when="status <> ''"
    )
    await told18.by(
        "DO $$ BEGIN CREATE ROLE trigger_writer; EXCEPTION WHEN duplicate_object THEN END $$",
        "GRANT USAGE ON SCHEMA shop TO trigger_writer",
        "GRANT INSERT ON shop.orders TO trigger_writer",
        "SET ROLE trigger_writer",
    )
    assert await told18.by("INSERT INTO shop.orders VALUES (1, 'x')") == [
        change("insert", {"id": 1, "status": "x"}, schema="shop")
    ]
    assert told18.warnings == []
    await told18.by("RESET ROLE")
    await execute(database18, "DROP OWNED BY trigger_writer; DROP ROLE trigger_writer")


async def test_nothing_of_the_writers_search_path_is_called(told18: Told, database18: str) -> None:
    """Who may create functions somewhere could else run them as whoever writes to the table."""
    await told18.by(ORDERS)
    await triggers.install(
        database18, "orders", channel="ch", columns=["status"], when="status <> '' AND total > 0"
    )
    await told18.by(
        "CREATE SCHEMA evil; SET search_path = evil, pg_catalog, public",
        "CREATE TABLE evil.called (what text)",
        *(
            f"CREATE FUNCTION evil.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS "
            f"$$ BEGIN INSERT INTO evil.called VALUES ('{name}'); {end} END $$"
            for name, arguments, result, end in (
                ("pg_notify", "text, text", "void", ""),
                ("row_to_json", "record", "json", "RETURN NULL;"),
                ("to_json", "text", "json", "RETURN NULL;"),
                ("lower", "text", "text", "RETURN NULL;"),
                ("pg_column_size", "text", "int", "RETURN NULL;"),
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
    )
    assert await told18.by("INSERT INTO public.orders VALUES (1, 'x', 1)") == [
        change("insert", {"id": 1, "status": "x"})
    ]
    assert await told18.by("UPDATE public.orders SET status = 'y'") == [
        change("update", {"id": 1, "status": "y"})
    ]
    assert await execute(database18, "SELECT * FROM evil.called") == []


# -- what must not happen to the user's write -----------------------------------------------------


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
async def test_a_changed_table_is_told_as_a_reread_until_it_is_installed_again(
    told: Told, database: str, change_of_table: str
) -> None:
    """The write goes on, whatever has become of the columns: somebody else changed them."""
    await triggers.install(
        database, "orders", channel="ch", columns=["status"], when="total + 1 > 0"
    )
    await told.by("INSERT INTO orders VALUES (1, 'x', 1)", change_of_table)
    assert await told.by("INSERT INTO orders VALUES (2)") == [reread("insert")]
    assert await told.by("DELETE FROM orders") == [reread("delete")]
    assert len(told.warnings) == 2
    assert "public.orders" in told.warnings[0]
    assert "trigger" not in told.warnings[0]
    await triggers.remove(database, "orders")
    assert await told.by("INSERT INTO orders VALUES (3)") == []


async def test_a_condition_that_fails_does_not_abort_the_write(told: Told, database: str) -> None:
    await triggers.install(database, "orders", channel="ch", when="1 / total > 0")
    assert await told.by("INSERT INTO orders VALUES (1, 'x', 0)") == [reread("insert")]
    assert "division by zero" in told.warnings[0]
    assert await told.by("UPDATE orders SET total = 1") == [reread("update")]


async def test_casts_that_were_made_implicit_do_not_abort_the_write(
    told: Told, database: str
) -> None:
    """As some do for applications of old; `text || number` is ambiguous then."""
    casts = [f"CAST ({number} AS text)" for number in ("int", "bigint", "numeric")]
    await told.by(*(f"CREATE {cast} WITH INOUT AS IMPLICIT" for cast in casts))
    await triggers.install(database, "orders", channel="ch", columns=["status"])
    insert = "INSERT INTO orders SELECT generate_series(1, 1000)"
    assert await told.by(insert) == [reread("insert", 1000)]
    assert await told.by("UPDATE orders SET status = 'x' WHERE id = 1") == [
        change("update", {"id": 1, "status": "x"})
    ]
    assert await told.by("TRUNCATE orders") == [reread("truncate")]
    assert told.warnings == []


async def test_an_assertion_in_a_condition_does_not_abort_the_write(
    told18: Told, database18: str
) -> None:
    """PL/pgSQL does not count it among OTHERS."""
    await told18.by(
        ORDERS,
        "CREATE FUNCTION sure() RETURNS bool LANGUAGE plpgsql AS "
        "$$ BEGIN ASSERT false, 'not sure'; RETURN true; END $$",
    )
    await triggers.install(database18, "orders", channel="ch", when="public.sure()")
    assert await told18.by("INSERT INTO orders VALUES (1)") == [reread("insert")]
    assert "not sure" in told18.warnings[0]


@pytest.mark.parametrize("name", sorted(VARIABLES))
@pytest.mark.parametrize("key", [None, []])
async def test_a_condition_never_means_a_variable_of_the_function(
    told18: Told, database18: str, name: str, key: list[str] | None
) -> None:
    """After its column was renamed, its rows would meet the condition no more, in silence."""
    await told18.by(f"CREATE TABLE orders (id int PRIMARY KEY, {name} text)")
    with pytest.raises(SchemaError, match=r'ambiguous.*"orders"\.column: PL/pgSQL'):
        await triggers.install(database18, "orders", channel="ch", when=f"{name} = 'x'", key=key)
    condition = f"orders.{name} = 'x'"
    await triggers.install(database18, "orders", channel="ch", when=condition, key=key)
    insert = "INSERT INTO orders VALUES ({}, 'x'), ({}, 'y')"
    assert await told18.by(insert.format(1, 2)) == [
        change("insert", *ids(1)) if key is None else reread("insert", 2)
    ]
    await told18.by(f"ALTER TABLE orders RENAME {name} TO renamed")
    assert await told18.by(insert.format(3, 4)) == [reread("insert")]
    assert len(told18.warnings) == 1


async def test_what_asks_for_another_try_goes_through(told18: Told, database18: str) -> None:
    """A transaction that could not be serialized must not go on as if nothing had been."""
    await told18.by(
        ORDERS,
        "CREATE FUNCTION conflict() RETURNS bool LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'could not serialize' USING ERRCODE = '40001'; END $$",
    )
    await triggers.install(database18, "orders", channel="ch", when="public.conflict()")
    with pytest.raises(psycopg.errors.SerializationFailure):
        await told18.connection.execute("INSERT INTO orders VALUES (1)")
    assert await told18.by() == []


async def test_telling_takes_no_transaction_id_of_its_own(told18: Told, database18: str) -> None:
    """An exception handler is a subtransaction, which would take one if it wrote anything."""
    await told18.by(ORDERS)
    await triggers.install(database18, "orders", channel="ch", columns=["status"])
    await told18.by("INSERT INTO orders VALUES (1)")
    (before,) = (await execute(database18, "SELECT txid_current()"))[0]
    await told18.connection.execute("BEGIN; UPDATE orders SET status = 'x'; COMMIT")
    (after,) = (await execute(database18, "SELECT txid_current()"))[0]
    assert after == before + 2


async def test_a_statement_that_is_cancelled_in_the_trigger_is_cancelled(
    told18: Told, database18: str
) -> None:
    await told18.by(ORDERS)
    await triggers.install(database18, "orders", channel="ch", when="pg_sleep(60) IS NOT NULL")
    await told18.by("SET statement_timeout = '50ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        await told18.connection.execute("INSERT INTO orders VALUES (1)")
    await told18.by("SET statement_timeout = 0")
    assert await execute(database18, "SELECT * FROM orders") == []
