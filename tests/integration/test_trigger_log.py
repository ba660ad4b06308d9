"""What triggers log of each kind of statement, on real PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pgnotifybus import triggers
from pgnotifybus.errors import SchemaError
from support.logged import Logged, event, keyed, logged_on

ORDERS = "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)"
DEFERRED = "CREATE TABLE orders (id int PRIMARY KEY DEFERRABLE, status text, total numeric)"


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


# -- statements -----------------------------------------------------------------------------------


async def test_each_row_that_changes_is_one_event(logged: Logged) -> None:
    assert await logged.by("INSERT INTO orders VALUES (2), (1), (3)") == keyed("insert", 2, 1, 3)
    assert logged.raw[0] == '{"schema":"public","table":"orders","op":"insert","key":{"id":2}}'
    update = "UPDATE orders SET status = 'paid' WHERE id = 1"
    assert await logged.by(update) == keyed("update", 1)
    assert logged.raw == ['{"schema":"public","table":"orders","op":"update","key":{"id":1}}']
    assert await logged.by(update) == keyed("update", 1)
    assert await logged.by("DELETE FROM orders WHERE id = 1") == keyed("delete", 1)
    assert logged.raw == ['{"schema":"public","table":"orders","op":"delete","old_key":{"id":1}}']
    assert await logged.by("TRUNCATE orders") == [event("truncate", None, reread=True)]


async def test_statements_that_change_no_row_are_not_logged(logged: Logged) -> None:
    assert (
        await logged.by(
            "INSERT INTO orders SELECT 1 WHERE false",
            "UPDATE orders SET status = 'paid'",
            "DELETE FROM orders",
        )
        == []
    )


async def test_copy_an_upsert_and_a_merge_are_logged_as_what_they_did(logged: Logged) -> None:
    async with logged.connection.cursor() as cursor:
        async with cursor.copy("COPY orders (id) FROM STDIN") as copy:
            await copy.write("1\n2\n")
    assert await logged.by() == keyed("insert", 1, 2)
    upsert = "INSERT INTO orders VALUES {} ON CONFLICT (id) DO UPDATE SET status = EXCLUDED.status"
    both = await logged.by(upsert.format("(1, 'sent'), (3, 'new')"))
    assert sorted(both, key=str) == [*keyed("update", 1), *keyed("insert", 3)]
    assert await logged.by("INSERT INTO orders VALUES (1) ON CONFLICT DO NOTHING") == []
    merge = """
        MERGE INTO orders USING (VALUES (1, 'paid'), (2, NULL), (4, 'new')) AS come (id, status)
           ON orders.id = come.id
         WHEN MATCHED AND come.status IS NULL THEN DELETE
         WHEN MATCHED THEN UPDATE SET status = come.status
         WHEN NOT MATCHED THEN INSERT (id, status) VALUES (come.id, come.status)"""
    found = await logged.by(merge)
    assert sorted(found, key=lambda each: str(each[0])) == [
        *keyed("update", 1),
        *keyed("delete", 2),
        *keyed("insert", 4),
    ]


async def test_a_cascade_is_logged_of_the_table_that_it_reaches(
    logged: Logged, database: str
) -> None:
    await logged.by(
        "CREATE TABLE lines (id int PRIMARY KEY, "
        "order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE)",
    )
    await triggers.install(database, "lines", channel="ch", columns=["order_id"], log=True)
    await logged.by(
        "INSERT INTO orders VALUES (1), (2)",
        "INSERT INTO lines VALUES (10, 1), (11, 1), (20, 2)",
    )
    found = await logged.by("UPDATE orders SET id = id + 4")
    moved = [
        event(
            "update",
            str(line),
            table="lines",
            key={"id": line},
            changed={"order_id": order + 4},
            old={"order_id": order},
        )
        for line, order in ((10, 1), (11, 1), (20, 2))
    ]
    assert sorted(each for each in found if each[1]["table"] == "lines") == moved
    assert len(found) == 5
    found = await logged.by("DELETE FROM orders")
    lines = [each[0] for each in found if each[1]["table"] == "lines"]
    assert (sorted(map(str, lines)), len(found)) == (["10", "11", "20"], 5)
    found = await logged.by("TRUNCATE orders CASCADE")
    assert sorted(each[1]["table"] for each in found) == ["lines", "orders"]


async def test_what_is_rolled_back_is_not_logged_and_all_else_is(logged: Logged) -> None:
    assert await logged.by("BEGIN", "INSERT INTO orders VALUES (1)", "ROLLBACK") == []
    assert await logged.by(
        "BEGIN",
        "INSERT INTO orders VALUES (1)",
        "SAVEPOINT before",
        "INSERT INTO orders VALUES (2)",
        "ROLLBACK TO before",
        "UPDATE orders SET total = 1",
        "UPDATE orders SET total = 1",  # the same again is an event again
        "COMMIT",
    ) == [*keyed("insert", 1), *keyed("update", 1), *keyed("update", 1)]


async def test_what_a_deferred_trigger_writes_at_commit_is_logged(
    logged18: Logged, database18: str
) -> None:
    await logged18.by(
        ORDERS,
        "CREATE FUNCTION add() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.id < 3 THEN INSERT INTO orders VALUES (NEW.id + 1); END IF; RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION add()",
    )
    await triggers.install(database18, "orders", channel="ch", log=True)
    assert await logged18.by("INSERT INTO orders VALUES (1)") == keyed("insert", 1, 2, 3)


# -- many and much --------------------------------------------------------------------------------


async def test_ten_thousand_rows_are_ten_thousand_events_in_their_order(
    logged: Logged, database: str
) -> None:
    await triggers.install(database, "orders", channel="ch", columns=["status"], log=True)
    text = "x" * 300  # more than goes into one batch
    insert = f"INSERT INTO orders SELECT n, '{text}' FROM generate_series(10000, 1, -1) AS n"
    found = await logged.by(insert)
    assert found == [
        event("insert", str(n), key={"id": n}, changed={"status": text})
        for n in range(10_000, 0, -1)
    ]
    found = await logged.by("UPDATE orders SET status = id")
    assert sorted(found, key=lambda each: int(each[0] or 0)) == [
        event("update", str(n), key={"id": n}, changed={"status": str(n)}, old={"status": text})
        for n in range(1, 10_001)
    ]
    assert await logged.by("UPDATE orders SET total = 1") == []
    assert len(await logged.by("DELETE FROM orders")) == 10_000


async def test_values_of_any_size_are_logged_whole(logged18: Logged, database18: str) -> None:
    await logged18.by(ORDERS)
    await triggers.install(database18, "orders", channel="ch", columns=["status"], log=True)
    huge = "repeat('x', 5000000)"
    found = await logged18.by(f"INSERT INTO orders SELECT n, {huge} FROM generate_series(1, 5) n")
    assert [each[0] for each in found] == ["1", "2", "3", "4", "5"]
    assert all(each[1]["changed"] == {"status": "x" * 5_000_000} for each in found)
    assert await logged18.by("UPDATE orders SET total = 1") == []


async def test_more_columns_than_a_function_takes_arguments(
    logged18: Logged, database18: str
) -> None:
    names = [f"c{n}" for n in range(120)]
    columns = ", ".join(f"{name} int DEFAULT 0" for name in names)
    await logged18.by(f"CREATE TABLE orders ({columns})")
    key, others = names[:110], names[110:]
    await triggers.install(database18, "orders", channel="ch", key=key, columns=names, log=True)
    [(name, found)] = await logged18.by("INSERT INTO orders DEFAULT VALUES")
    assert name == f"[{','.join('0' * 110)}]"
    assert found["changed"] == dict.fromkeys(others, 0)
    key, others = names[:1], names[1:]
    await triggers.install(database18, "orders", channel="ch", key=key, columns=names, log=True)
    update = f"UPDATE orders SET {', '.join(f'{name} = 1' for name in others)}"
    [(_, found)] = await logged18.by(update)
    assert (found["changed"], found["old"]) == (dict.fromkeys(others, 1), dict.fromkeys(others, 0))


# -- keys -----------------------------------------------------------------------------------------


async def test_a_row_that_changes_its_key_is_one_event(database: str) -> None:
    async with logged_on(database, "ch", DEFERRED) as logged:
        await triggers.install(database, "orders", channel="ch", columns=["status"], log=True)
        await logged.by("INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        assert await logged.by("UPDATE orders SET id = 5 WHERE id = 3") == [
            event("update", "5", key={"id": 5}, old_key={"id": 3})
        ]
        assert await logged.by("UPDATE orders SET id = 6, status = 'd' WHERE id = 5") == [
            event(
                "update",
                "6",
                key={"id": 6},
                old_key={"id": 5},
                changed={"status": "d"},
                old={"status": "c"},
            )
        ]
        # By their keys alone, these would be two rows that have changed their status.
        assert await logged.by("UPDATE orders SET id = 3 - id WHERE id < 3") == [
            event("update", "2", key={"id": 2}, old_key={"id": 1}),
            event("update", "1", key={"id": 1}, old_key={"id": 2}),
        ]


async def test_however_keys_are_permuted_each_new_one_comes_with_its_old_one(
    database: str,
) -> None:
    """Nothing in the transition tables says which row became which, but their order."""
    async with logged_on(database, "ch", DEFERRED, "CREATE TABLE plan (a int, b int)") as logged:
        count = 5_000
        await logged.by(
            f"INSERT INTO orders SELECT n, n FROM generate_series(1, {count}) AS n",
            "SET work_mem = '64kB'",  # so that they go to the disk
        )
        await triggers.install(
            database, "orders", channel="ch", columns=["status"], when="total IS NULL", log=True
        )
        now = list(range(1, count + 1))
        for seed in range(3):
            to = random.Random(seed).sample(now, count)
            async with logged.connection.cursor() as cursor:
                await cursor.execute("TRUNCATE plan")
                async with cursor.copy("COPY plan FROM STDIN") as copy:
                    for pair in zip(now, to, strict=True):
                        await copy.write_row(pair)
            update = "UPDATE orders SET id = b, status = id || '>' || b FROM plan WHERE id = a"
            found = {}
            for _, change in await logged.by(update):
                old, new = change.get("old_key", change["key"])["id"], change["key"]["id"]
                assert change["changed"] == {"status": f"{old}>{new}"}
                found[old] = new
            assert found == dict(zip(now, to, strict=True)), seed


async def test_a_key_of_several_columns_is_named_by_a_json_array(database: str) -> None:
    table = (
        "CREATE TABLE lines (note text, nr int, shop text, PRIMARY KEY (shop, nr) INCLUDE (note))"
    )
    async with logged_on(database, "ch", table) as logged:
        await triggers.install(database, "lines", channel="ch", log=True)
        assert await logged.by("INSERT INTO lines VALUES ('x', 1, 'a\"b')") == [
            event("insert", '["a\\"b",1]', table="lines", key={"shop": 'a"b', "nr": 1})
        ]
        assert await logged.by("UPDATE lines SET nr = 2") == [
            event(
                "update",
                '["a\\"b",2]',
                table="lines",
                key={"shop": 'a"b', "nr": 2},
                old_key={"shop": 'a"b', "nr": 1},
            )
        ]
        assert await logged.by("DELETE FROM lines") == [
            event("delete", '["a\\"b",2]', table="lines", old_key={"shop": 'a"b', "nr": 2})
        ]


async def test_a_key_of_ones_own_need_not_be_unique_and_may_be_null(
    logged18: Logged, database18: str
) -> None:
    await logged18.by("CREATE TABLE orders (customer text, nr int, status text)")
    wish: dict[str, Any] = {"channel": "ch", "columns": ["status"], "log": True}
    await triggers.install(database18, "orders", key=["customer"], **wish)
    insert = "INSERT INTO orders VALUES ('a \"b\"\n', 1, 'x'), (NULL, 1, 'x'), (NULL, 1, 'x')"
    assert await logged18.by(insert) == [
        event("insert", 'a "b"\n', key={"customer": 'a "b"\n'}, changed={"status": "x"}),
        *[event("insert", None, key={"customer": None}, changed={"status": "x"})] * 2,
    ]
    assert (
        await logged18.by("UPDATE orders SET customer = 'c' WHERE customer IS NULL")
        == [event("update", "c", key={"customer": "c"}, old_key={"customer": None})] * 2
    )
    await triggers.install(database18, "orders", key=["nr", "customer"], **wish)
    insert = "INSERT INTO orders VALUES (NULL, 2, NULL)"
    assert await logged18.by(insert) == [
        event("insert", "[2,null]", key={"nr": 2, "customer": None}, changed={"status": None})
    ]


async def test_without_a_primary_key_one_has_to_be_named(logged18: Logged, database18: str) -> None:
    await logged18.by("CREATE TABLE orders (id int, status text, total numeric)")
    with pytest.raises(SchemaError, match=r"no primary key.*--key.*--no-key"):
        await triggers.install(database18, "orders", channel="ch", log=True)
    await triggers.install(database18, "orders", channel="ch", key=[], when="total > 0", log=True)
    assert await logged18.by("INSERT INTO orders VALUES (1, 'x', 0)", "DELETE FROM orders") == []
    assert await logged18.by(
        "INSERT INTO orders VALUES (1, 'x', 0), (2, 'x', 1)",
        "UPDATE orders SET total = 0",
        "UPDATE orders SET total = 0",
        "UPDATE orders SET total = 1",
        "DELETE FROM orders",
        "TRUNCATE orders",
    ) == [
        event("insert", None, reread=True, count=2),
        event("update", None, reread=True, count=2),
        event("update", None, reread=True, count=2),
        event("delete", None, reread=True, count=2),
        event("truncate", None, reread=True),
    ]


async def test_a_key_is_spelled_the_same_for_every_writer(
    logged18: Logged, database18: str
) -> None:
    await logged18.by("CREATE TABLE orders (a bytea, b interval, c daterange, d float8)")
    await triggers.install(database18, "orders", channel="ch", key=["a", "b", "c", "d"], log=True)
    insert = (
        "INSERT INTO orders VALUES ('\\x00ff', '1 mon 2 days 3:00', '[2020-01-02,2020-03-04)', 0.1)"
    )
    expected = await logged18.by(insert)
    assert expected[0][0] == ('["\\\\x00ff","1 mon 2 days 03:00:00","[2020-01-02,2020-03-04)",0.1]')
    assert expected == await logged18.by(
        "SET bytea_output = escape",
        "SET intervalstyle = iso_8601",
        "SET datestyle = 'German, DMY'",
        "SET extra_float_digits = -10",
        insert,
    )


# -- columns and conditions -----------------------------------------------------------------------


async def test_of_the_named_columns_those_that_changed_are_logged(
    logged: Logged, database: str
) -> None:
    await logged.by("ALTER TABLE orders ADD note text")
    columns = ["status", "id", "note"]
    await triggers.install(database, "orders", channel="ch", columns=columns, log=True)
    insert = "INSERT INTO orders VALUES (1, 'new', 5, NULL)"
    values = {"status": "new", "note": None}
    assert await logged.by(insert) == [event("insert", "1", key={"id": 1}, changed=values)]
    assert await logged.by("UPDATE orders SET total = 6", "UPDATE orders SET status = status") == []
    assert await logged.by("UPDATE orders SET status = 'paid', total = 7") == [
        event("update", "1", key={"id": 1}, changed={"status": "paid"}, old={"status": "new"})
    ]
    assert logged.raw == [
        '{"schema":"public","table":"orders","op":"update","key":{"id":1},'
        '"changed":{"status":"paid"},"old":{"status":"new"}}'
    ]
    assert await logged.by("UPDATE orders SET status = NULL, note = 'x'") == [
        event(
            "update",
            "1",
            key={"id": 1},
            changed={"status": None, "note": "x"},
            old={"status": "paid", "note": None},
        )
    ]
    assert await logged.by("DELETE FROM orders") == [
        event("delete", "1", old_key={"id": 1}, old={"status": None, "note": "x"})
    ]


async def test_the_key_may_be_all_that_matters(logged18: Logged, database18: str) -> None:
    await logged18.by(ORDERS, "INSERT INTO orders VALUES (1), (2)")
    await triggers.install(database18, "orders", channel="ch", columns=["id"], log=True)
    assert await logged18.by("UPDATE orders SET status = 'paid'") == []
    assert await logged18.by("UPDATE orders SET id = 3 WHERE id = 1") == [
        event("update", "3", key={"id": 3}, old_key={"id": 1})
    ]
    assert await logged18.by("INSERT INTO orders VALUES (4)") == keyed("insert", 4)


async def test_a_condition_makes_a_smaller_table_whose_changes_are_logged(
    logged: Logged, database: str
) -> None:
    """A row that comes into it has a key and values; one that goes has the old ones."""
    await triggers.install(
        database,
        "orders",
        channel="ch",
        columns=["status"],
        when="orders.total > 10 -- large",
        log=True,
    )
    insert = "INSERT INTO orders VALUES (1, 'new', 5), (2, 'new', 50), (3, 'new', NULL)"
    new, paid, sent = ({"status": status} for status in ("new", "paid", "sent"))
    assert await logged.by(insert) == [event("insert", "2", key={"id": 2}, changed=new)]
    assert await logged.by("UPDATE orders SET status = 'paid' WHERE id <> 2") == []
    assert await logged.by("UPDATE orders SET total = 20, id = 7 WHERE id = 1") == [
        event("update", "7", key={"id": 7}, changed=paid)
    ]
    assert await logged.by("UPDATE orders SET total = 30, status = 'sent' WHERE id = 7") == [
        event("update", "7", key={"id": 7}, changed=sent, old=paid)
    ]
    assert await logged.by("UPDATE orders SET total = 31 WHERE id = 7") == []
    assert await logged.by("UPDATE orders SET total = 0, status = 'x', id = 8 WHERE id = 7") == [
        event("update", "7", old_key={"id": 7}, old=sent)
    ]
    assert await logged.by("DELETE FROM orders") == [
        event("delete", "2", old_key={"id": 2}, old=new)
    ]


@pytest.mark.parametrize("when", ["'true'", "NULL", "id > 0 AND status IS NOT NULL"])
async def test_a_condition_may_be_all_that_a_condition_may_be(
    logged18: Logged, database18: str, when: str
) -> None:
    await logged18.by(ORDERS)
    await triggers.install(database18, "orders", channel="ch", when=when, log=True)
    found = await logged18.by(
        "INSERT INTO orders VALUES (1, 'x')", "UPDATE orders SET total = 1", "DELETE FROM orders"
    )
    expected = [*keyed("insert", 1), *keyed("update", 1), *keyed("delete", 1)]
    assert found == ([] if when == "NULL" else expected)
