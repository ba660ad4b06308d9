"""What is to be done about a trigger, given what the catalog holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pgnotifybus.core.trigger_body import Definition
from pgnotifybus.core.trigger_catalog import Found, Table, Trigger, read_found, read_table
from pgnotifybus.core.trigger_plan import Wish, script, to_drop, to_install, to_remove, wish
from pgnotifybus.core.trigger_sql import (
    SETTINGS,
    function_name,
    source,
    trigger_names,
    trigger_shapes,
)
from pgnotifybus.errors import SchemaError

ORDERS = Table("17", "public", "orders", ("id", "status"), frozenset(), ("id",), partitioned=False)
DEFINITION = Definition("public", "orders", "ch", ("id",), None, None)
NAME = function_name("orders", "ch")


def installed(definition: Definition = DEFINITION, **changes: Any) -> Found:
    """It, as it should be but for changes."""
    shapes = sorted(trigger_shapes())
    found = Found(
        schema="public",
        name=NAME,
        owned=True,
        removable=True,
        source=source(definition),
        settings=SETTINGS,
        definition=definition,
        oid="17",
        columns=frozenset(ORDERS.columns),
        triggers=tuple(Trigger(f"t{n}", *shape, "O") for n, shape in enumerate(shapes)),
    )
    return replace(found, **changes)


def plan(*found: Found, taken: tuple[str, ...] = ()) -> str | None:
    return to_install(DEFINITION, ORDERS, found, taken)


# -- installing -----------------------------------------------------------------------------------


def test_where_it_is_there_nothing_is_done() -> None:
    assert plan(installed(), taken=(NAME,)) is None
    assert installed().state == "live"


def test_where_nothing_is_there_it_is_made() -> None:
    text = plan()
    assert text is not None
    assert text.count("CREATE TRIGGER") == 4
    assert f'CREATE FUNCTION "public"."{NAME}"()' in text
    assert "DROP" not in text
    other = installed(replace(DEFINITION, channel="other"), name="other")
    elsewhere = installed(oid="18", name="elsewhere")
    assert plan(other, elsewhere) == text


@pytest.mark.parametrize(
    "change",
    [
        {"source": source(replace(DEFINITION, when="true"))},
        {"source": source(DEFINITION) + " "},
        {"settings": SETTINGS[:1]},
        {"settings": ()},
    ],
)
def test_where_only_the_function_differs_the_table_is_left_alone(change: dict[str, Any]) -> None:
    """Also its triggers, which may have been enabled for replicas."""
    found = installed(**change)
    text = plan(found)
    assert text is not None
    assert text.startswith(f'CREATE OR REPLACE FUNCTION "public"."{NAME}"()')
    assert "CREATE TRIGGER" not in text
    assert "DROP" not in text
    assert found.state == "stale"


@pytest.mark.parametrize("enabled", ["D", "R"])
def test_where_a_trigger_does_not_fire_all_are_made_anew(enabled: str) -> None:
    first, *rest = installed().triggers
    for triggers in ((first._replace(enabled=enabled), *rest), tuple(rest), (*rest, first, first)):
        found = installed(triggers=triggers)
        text = plan(found)
        assert text is not None
        assert found.state == "stale"
        assert text.count("CREATE TRIGGER") == 4
        for each in triggers:
            assert f'DROP TRIGGER IF EXISTS "{each.name}"' in text


def test_a_name_that_is_taken_is_not_used() -> None:
    second = function_name("orders", "ch", 1)
    for text in (plan(taken=(NAME,)), script(DEFINITION, ORDERS, (), (NAME,))):
        assert text is not None
        assert NAME not in text
        assert f'FUNCTION "public"."{second}"' in text
        assert all(f'"{each}"' in text for each in trigger_names(second))


def test_what_a_dropped_table_has_left_gives_way_if_it_is_ours() -> None:
    left = installed(oid=None, triggers=())
    assert left.state == "orphaned"
    text = plan(left, taken=(NAME,))
    assert text is not None
    assert text.index(f'DROP FUNCTION "public"."{NAME}"') < text.index("CREATE FUNCTION")
    of_another = plan(replace(left, owned=False), taken=(NAME,))
    assert of_another is not None
    assert NAME not in of_another


def test_of_several_for_one_channel_the_one_that_is_right_is_kept() -> None:
    right = installed(name="right")
    stale = installed(replace(DEFINITION, when="true"), name="stale")
    for found in ((right, stale), (stale, right)):
        assert plan(*found) == to_remove([stale])
    text = plan(stale, replace(stale, name="other"))
    assert text is not None
    assert text.startswith(to_remove([replace(stale, name="other")]))
    assert 'CREATE OR REPLACE FUNCTION "public"."stale"' in text
    again = script(DEFINITION, ORDERS, [stale, right], ())
    assert 'DROP FUNCTION IF EXISTS "public"."right"();' in again
    assert 'CREATE FUNCTION "public"."stale"()' in again


def test_what_others_have_left_is_dropped_only_where_nothing_else_is_meant() -> None:
    left = installed(oid=None, name="left", triggers=())
    theirs = replace(left, name="theirs", removable=False)
    there = installed()
    elsewhere = installed(oid="18")
    found = [left, theirs, there, elsewhere]
    assert to_drop(found, "17", ["public"], "orders", None) == [left, there]
    assert to_drop(found, None, ["public"], "orders", "ch") == [left]
    assert to_drop([theirs], None, ["public"], "orders", "ch") == [theirs]
    assert to_drop(found, "17", ["public"], "orders", "other") == []


def test_what_is_removed_is_what_was_found_under_whatever_name() -> None:
    found = installed(schema='s"', name="f", triggers=(Trigger("x y", 4, "", "changed", "O"),))
    assert to_remove([found]).split("\n") == [
        'DROP TRIGGER IF EXISTS "x y" ON "public"."orders";',
        'DROP FUNCTION "s"""."f"();',
    ]


# -- what is wished -------------------------------------------------------------------------------


def test_the_key_is_the_primary_one_unless_another_is_wished() -> None:
    assert wish("ch").on(ORDERS).key == ("id",)
    assert wish("ch", key=["status", "id"]).on(ORDERS).key == ("status", "id")
    assert wish("ch", key=[]).on(ORDERS).key == ()
    assert wish("ch", iter(["status"])).on(ORDERS).values == ("status",)
    assert wish("ch", ["id", "status"]).on(ORDERS).values == ("status",)


@pytest.mark.parametrize(
    ("asked", "table", "said"),
    [
        (wish("ch"), ORDERS._replace(primary_key=()), "no primary key.*--key.*--no-key"),
        (wish("ch", ["x"]), ORDERS, 'no column "x"; it has "id", "status"'),
        (wish("ch", key=["x"]), ORDERS, 'no column "x"'),
        (wish("ch", ["status"], key=[]), ORDERS, "without a key"),
        (wish("ch", ["status"]), ORDERS._replace(virtual=frozenset({"status"})), "STORED"),
    ],
)
def test_what_the_table_has_not_got_is_said(asked: Wish, table: Table, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        asked.on(table)


# -- reading the catalog --------------------------------------------------------------------------


def test_a_table_is_read() -> None:
    row = {
        "oid": "17",
        "schema": "public",
        "name": "orders",
        "kind": "p",
        "persistence": "p",
        "columns": [["id", ""], ["twice", "v"], ["half", "s"]],
        "primary_key": None,
        "foreign": False,
        "channel_bytes": 63,
    }
    table = read_table(json.dumps(row))
    assert table == Table(
        oid="17",
        schema="public",
        name="orders",
        columns=("id", "twice", "half"),
        virtual=frozenset({"twice"}),
        primary_key=(),
        partitioned=True,
    )
    assert table.visible == ("id", "half")
    with pytest.raises(ValueError, match="64 bytes in the encoding of this database"):
        read_table(json.dumps({**row, "channel_bytes": 64}))


def test_a_function_is_read_with_the_names_that_its_table_has_now() -> None:
    row: dict[str, Any] = {
        "schema": "public",
        "name": NAME,
        "owned": True,
        "removable": False,
        "source": source(DEFINITION),
        "settings": list(SETTINGS),
        "oid": "17",
        "table_schema": "shop",
        "table": "sales",
        "columns": ["id"],
        "triggers": [["t", 4, "", "changed", "O"]],
    }
    found = read_found(json.dumps(row))
    assert found is not None
    assert found.definition == replace(DEFINITION, schema="shop", table="sales")
    left = read_found(
        json.dumps(row | dict.fromkeys(("oid", "table_schema", "table", "columns", "triggers")))
    )
    assert left is not None
    assert (left.definition, left.state, left.triggers) == (DEFINITION, "orphaned", ())
    assert read_found(json.dumps(row | {"source": "\n-- pgnotifybus is great\n"})) is None
    newer = row | {"source": source(DEFINITION).replace('"version":1', '"version":9')}
    assert read_found(json.dumps(newer | {"oid": None})) is None
    with pytest.raises(SchemaError, match="version 9"):
        read_found(json.dumps(newer))
