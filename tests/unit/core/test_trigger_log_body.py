"""The text of triggers that log."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from pgnotifybus.core.trigger_body import VARIABLES, Definition
from pgnotifybus.core.trigger_catalog import Found, Trigger, read_found
from pgnotifybus.core.trigger_log_body import log_body
from pgnotifybus.core.trigger_plan import wish
from pgnotifybus.core.trigger_sql import (
    SETTINGS,
    VERSION,
    create_function,
    read_mark,
    source,
    trigger_shapes,
)

ORDERS = Definition("public", "orders", "ch", ("id",), ("status",), "total > 0 -- large", log="s")


def test_a_mark_tells_of_the_log_only_where_there_is_one() -> None:
    """So that the triggers of those who have none stay as they are."""
    assert read_mark(source(ORDERS)) == (VERSION, ORDERS)
    assert source(ORDERS).endswith(log_body(ORDERS))
    plain = replace(ORDERS, log=None)
    assert read_mark(source(plain)) == (VERSION, plain)
    assert '"log"' not in source(plain)
    assert read_mark(source(ORDERS).replace('"log":"s"', '"log":7')) == (
        VERSION,
        replace(ORDERS, log="7"),
    )


@pytest.mark.parametrize("key", [("id",), ()])
def test_its_variables_are_known_to_those_who_check_conditions(key: tuple[str, ...]) -> None:
    text = log_body(replace(ORDERS, key=key, columns=None, when=None))
    declared = re.findall(r"^  (_\w+) ", text.partition("BEGIN")[0], re.MULTILINE)
    assert len(declared) > 1
    assert set(declared) <= VARIABLES


@pytest.mark.parametrize(("key", "uses"), [(("id",), 4), ((), 3)])
def test_a_condition_stands_on_lines_of_its_own(key: tuple[str, ...], uses: int) -> None:
    """Else a comment at its end would swallow what is behind it."""
    text = log_body(replace(ORDERS, key=key))
    assert text.count("large") == text.count("(\ntotal > 0 -- large\n)") == uses


def test_what_writes_stands_outside_of_the_handler() -> None:
    """Else each statement would take a transaction id for its subtransaction."""
    for key in (("id",), ()):
        text = log_body(replace(ORDERS, key=key))
        _, _, handled = text.partition("  BEGIN")
        handled, _, rest = handled.partition("EXCEPTION")
        assert "append" not in handled
        assert "append" in rest.partition("END;")[2]


def test_nothing_in_a_definition_ends_the_body() -> None:
    tricky = replace(ORDERS, channel="$pgnotifybus$", log="$pgnotifybus_$")
    text = create_function(tricky, '"f"', replace=False)
    _, _, rest = text.partition("$pgnotifybus__$")
    inside, _, behind = rest.partition("$pgnotifybus__$")
    assert (inside, behind) == (source(tricky), ";")


def test_a_log_that_is_not_there_makes_it_stale() -> None:
    def found(logs: list[str] | None) -> Found:
        shapes = sorted(trigger_shapes())
        row = {
            "schema": "public",
            "name": "f",
            "owned": True,
            "removable": True,
            "source": source(ORDERS),
            "settings": list(SETTINGS),
            "oid": "17",
            "table_schema": "public",
            "table": "orders",
            "columns": ["id", "status"],
            "logs": logs,
            "triggers": [Trigger(f"t{n}", *shape, "O") for n, shape in enumerate(shapes)],
        }
        read = read_found(json.dumps(row))
        assert read is not None
        return read

    assert found(["s"]).state == "live"
    assert found(["other"]).state == "stale"
    assert found(None).state == "stale"


def test_the_schema_of_the_log_is_checked() -> None:
    assert wish("ch", log="my log").log == "my log"
    assert wish("ch").log is None
    with pytest.raises(ValueError, match="schema name"):
        wish("ch", log="pg_log")
