"""Names are data: whatever is in them, the trigger works and nothing else happens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgnotifybus import triggers
from pgnotifybus.core.names import quote
from pgnotifybus.core.trigger_sql import split_names
from pgnotifybus.errors import SchemaError
from support.logged import event, logged_on
from support.sql import execute
from support.told import change, told_on

NASTY = [
    *"\"'`\\$%;:,.()[]{}<>=|&!?@#*/+-~^_ \t\r\n\x01\x1b\x7f",
    *"aAéÉ€😀\u200b\u202e\ufeffİß",
    *("$$", "$pgnotifybus$", "$1", "--", "/*", "*/", "''", '""', "\\'", "E'", 'U&"', "\\u0041"),
    *(
        "%s",
        "%I",
        "%%",
        "{}",
        "{0}",
        "{{",
        "NULL",
        "select",
        "id",
        "key",
        "entry",
        "named",
        "_rows",
    ),
    "'); DROP TABLE canary; --",
    '"; DROP TABLE canary; --',
    "$$; DROP TABLE canary; --",
    "\\'); DROP TABLE canary; --",
    "x" * 62,
]


def cut(text: str) -> str:
    """As much of a text as a name can hold."""
    return text.encode()[:63].decode(errors="ignore")


names = st.lists(st.sampled_from(NASTY), min_size=1, max_size=12).map("".join).map(cut)
columns = st.lists(names, min_size=3, max_size=3, unique=True)

# On a shared machine, one example may take long now and then.
relaxed = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def state(dsn: str) -> list[tuple[Any, ...]]:
    """All that there is in the database beside the tables themselves."""
    return await execute(
        dsn,
        """SELECT (SELECT count(*) FROM pg_proc WHERE oid >= 16384),
                  (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal),
                  (SELECT count(*) FROM pg_class WHERE oid >= 16384),
                  (SELECT string_agg(note, ',') FROM public.canary)""",
    )


@relaxed
@given(schema=names.filter(lambda name: not name.startswith("pg_")), table=names, channel=names)
@example(schema='"', table="'", channel="\\")
async def test_any_name_of_a_table_and_a_channel_will_do(
    database18: str, schema: str, table: str, channel: str
) -> None:
    await works(database18, cut(f"s{schema}"), table, channel, ["id", "status", "other"])


@relaxed
@given(columns=columns)
@example(columns=['"', "'", "\\"])
async def test_any_name_of_a_column_will_do(database18: str, columns: list[str]) -> None:
    await works(database18, "s", "t", "ch", columns)


@relaxed
@given(log=names.filter(lambda name: not name.startswith("pg_")), table=names, columns=columns)
@example(log='"', table="'", columns=["\\", "%", "$$"])
async def test_any_name_will_do_where_it_logs(
    database18: str, log: str, table: str, columns: list[str]
) -> None:
    key, status, other = columns
    place, log = f"s.{quote(table)}", cut(f"l{log}")
    create = f"""CREATE SCHEMA s; CREATE TABLE {place} (
        {quote(other)} int, {quote(status)} text, {quote(key)} text PRIMARY KEY)"""
    where: dict[str, Any] = {"table": table, "schema": "s"}
    async with logged_on(database18, table, create, schema=log) as logged:
        try:
            condition = f"{quote(table)}.{quote(other)} > 0"
            wish: dict[str, Any] = {"channel": table, "columns": [status], "when": condition}
            wish |= {"log": True, "schema": log}
            assert await triggers.install(database18, place, **wish) is True
            assert await logged.by(
                f"INSERT INTO {place} VALUES (1, 'new', 'x'), (0, 'new', 'y')",
                f"UPDATE {place} SET {quote(status)} = {quote(key)}",
                f"UPDATE {place} SET {quote(key)} = 'z' WHERE {condition}",
                f"DELETE FROM {place}",
            ) == [
                event("insert", "x", **where, key={key: "x"}, changed={status: "new"}),
                event(
                    "update",
                    "x",
                    **where,
                    key={key: "x"},
                    changed={status: "x"},
                    old={status: "new"},
                ),
                event("update", "z", **where, key={key: "z"}, old_key={key: "x"}),
                event("delete", "z", **where, old_key={key: "z"}, old={status: "x"}),
            ]
            assert [each.state for each in await triggers.list(database18)] == ["live"]
            assert await triggers.install(database18, place, **wish) is False
        finally:
            drop = f"DROP SCHEMA s CASCADE; DROP SCHEMA {quote(log)} CASCADE"
            await logged.connection.execute(drop.encode())


async def works(dsn: str, schema: str, table: str, channel: str, columns: list[str]) -> None:
    key, status, other = columns
    place = f"{quote(schema)}.{quote(table)}"
    # Whoever writes the list of an option must be able to write these, too.
    assert split_names(",".join(map(quote, columns))) == tuple(columns)
    await execute(dsn, "DROP TABLE IF EXISTS canary; CREATE TABLE canary AS SELECT 'alive' AS note")
    create = f"""CREATE SCHEMA {quote(schema)}; CREATE TABLE {place} (
        {quote(other)} int, {quote(status)} text, {quote(key)} text PRIMARY KEY)"""
    async with told_on(dsn, channel, create) as told:
        try:
            before = await state(dsn)
            condition = f"{quote(table)}.{quote(other)} > 0"
            wish: dict[str, Any] = {"channel": channel, "columns": [status], "when": condition}
            assert await triggers.install(dsn, place, **wish) is True
            [(functions, made, classes, note)] = await state(dsn)
            assert (functions - before[0][0], made - before[0][1]) == (1, 4)
            assert (classes, note) == (before[0][2], "alive")
            insert = f"INSERT INTO {place} VALUES (1, 'new', 'x'), (0, 'new', 'y')"
            where = {"table": table, "schema": schema}
            assert await told.by(insert) == [change("insert", {key: "x", status: "new"}, **where)]
            assert await told.by(f"UPDATE {place} SET {quote(status)} = {quote(key)}") == [
                change("update", {key: "x", status: "x"}, **where)
            ]
            assert await told.by(f"UPDATE {place} SET {quote(key)} = 'z' WHERE {condition}") == [
                change("update", {key: "x"}, {key: "z", status: "x"}, **where)
            ]
            assert await told.by(f"DELETE FROM {place}") == [
                change("delete", {key: "z", status: "x"}, **where)
            ]
            assert told.warnings == []
            [found] = await triggers.list(dsn)
            assert (found.schema, found.table, found.channel) == (schema, table, channel)
            assert (found.key, found.columns, found.when) == ((key,), (status,), condition)
            assert found.state == "live"
            assert await triggers.install(dsn, place, **wish) is False
            assert await triggers.remove(dsn, place, channel=channel) == 1
            assert await state(dsn) == before
        finally:
            await told.connection.execute(f"DROP SCHEMA {quote(schema)} CASCADE".encode())


@relaxed
@given(
    name=st.text(max_size=70).filter(
        lambda name: name.strip(" \n'").lower() not in ("canary", "note", "true", "false", "null")
    ),
    role=st.sampled_from(["table", "channel", "columns", "key", "when"]),
)
@example(name="\0", role="table")
@example(name="\ud800", role="channel")
async def test_any_text_at_all_is_an_error_and_changes_nothing(
    database18: str, name: str, role: str
) -> None:
    """As there is no such table or column, and no such condition."""
    await execute(database18, "CREATE TABLE IF NOT EXISTS canary AS SELECT 'alive' AS note")
    before = await state(database18)
    wish: dict[str, Any] = {"channel": "ch", "key": ["note"]}
    wish[role] = [name] if role in ("columns", "key") else name
    table = wish.pop("table", "canary" if role != "channel" else "nothing")
    with pytest.raises((SchemaError, ValueError)):
        await triggers.install(database18, table, **wish)
    assert await state(database18) == before
