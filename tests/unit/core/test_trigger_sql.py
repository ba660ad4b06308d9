"""The text of triggers: names, literals, marks, and how many rows could fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from pgnotifybus.core.names import MAX_PAYLOAD_BYTES, literal
from pgnotifybus.core.trigger_body import VARIABLES, Definition, body, max_rows
from pgnotifybus.core.trigger_sql import (
    MARK,
    VERSION,
    checks,
    create_function,
    create_triggers,
    function_name,
    read_mark,
    script,
    source,
    split_names,
    trigger_names,
)

ORDERS = Definition("public", "orders", "ch", ("id",), ("status",), "total > 0")


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("id", ("id",)),
        ("ID, Status", ("id", "status")),
        ('"Mixed Case",b', ("Mixed Case", "b")),
        (' "a,b" , "say ""hi""" ', ("a,b", 'say "hi"')),
        ('""""', ('"',)),
        ("größe,Ö", ("größe", "Ö")),  # the server folds what is ASCII
        ("a$1,_b", ("a$1", "_b")),
    ],
)
def test_names_are_read_as_sql_reads_them(text: str, names: tuple[str, ...]) -> None:
    assert split_names(text) == names


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", ",a", "a b", 'a"b"', '"a', '""', '"a"b', "a.b", "a;b", "a(b)", '"a" "b"'],
)
def test_what_is_no_list_of_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="commas"):
        split_names(text)


def test_names_of_functions_and_triggers_fit_and_differ() -> None:
    tables = ["a", "b", "x" * 63, "é" * 31, '"', ""]
    names = {function_name(a, b, n) for a in tables for b in tables for n in range(3)}
    assert len(names) == len(tables) ** 2 * 3
    assert function_name("a", "b") == function_name("a", "b")
    for name in names:
        assert all(len(each) <= 63 and each.isidentifier() for each in trigger_names(name))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "''"),
        ("a", "'a'"),
        ("it's", "'it''s'"),
        ("a\\", "E'a\\\\'"),
        ("\\'", "E'\\\\'''"),
        ("$$ \n --", "'$$ \n --'"),
    ],
)
def test_a_literal_reads_the_same_for_every_session(text: str, quoted: str) -> None:
    assert literal(text) == quoted


# -- the mark -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "definition",
    [
        ORDERS,
        replace(ORDERS, columns=None, when=None),
        replace(ORDERS, key=()),
        Definition('"', "\\", "é'", ("a,b", "\n"), ("$$",), "x = '\\' -- {0} %s"),
    ],
)
def test_a_mark_can_be_read_again(definition: Definition) -> None:
    assert read_mark(source(definition)) == (VERSION, definition)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "BEGIN RETURN NULL; END",
        MARK,
        MARK + "{\n",
        MARK + "[]\n",
        MARK + "null\n",
        MARK + '{"version":1}\n',
        source(ORDERS).lstrip(),
        source(ORDERS).replace("}", "", 1),
        source(ORDERS).replace('"key":["id"]', '"key":7'),
        source(ORDERS).replace('"version":1', '"version":null'),
        source(ORDERS).replace('"version":1', '"version":"new"'),
        source(ORDERS).replace('"version":1', '"version":Infinity'),
        source(ORDERS).replace('"version":1', '"version":' + "[" * 100_000),
    ],
)
def test_what_somebody_else_has_written_has_no_mark(code: str) -> None:
    assert read_mark(code) is None


def test_what_a_newer_version_adds_does_not_hide_the_version() -> None:
    newer = source(ORDERS).replace('"version":1', '"version":9,"more":[1]')
    assert read_mark(newer) == (9, ORDERS)


# -- statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [("a",), ("id",), ("a", "b"), ("x" * 63,), ("é" * 31, "b", "c")])
def test_no_more_rows_could_fit_than_are_told(key: tuple[str, ...]) -> None:
    """And all that could are: nothing is told as a re-read only because of its number."""

    def smallest(rows: int) -> int:
        # Of the shortest names, and in an encoding that has one byte for each character.
        told = {"schema": "s", "table": "t", "op": "insert"}
        row = dict.fromkeys(key, 0)
        text = json.dumps({**told, "rows": [row] * rows}, separators=(",", ":"), ensure_ascii=False)
        return len(text)

    assert smallest(max_rows(key)) <= MAX_PAYLOAD_BYTES < smallest(max_rows(key) + 1)


def test_nothing_in_a_definition_ends_the_body() -> None:
    tricky = replace(ORDERS, channel="$pgnotifybus$", when="a = '$pgnotifybus_$'")
    text = create_function(tricky, '"f"', replace=False)
    _, _, rest = text.partition("$pgnotifybus__$")
    inside, _, behind = rest.partition("$pgnotifybus__$")
    assert inside == source(tricky)
    assert behind == ";"


def test_a_new_function_never_replaces_one_that_is_there() -> None:
    """Its owner could change it later; see `create_function`."""
    assert "OR REPLACE" not in create_function(ORDERS, '"f"', replace=False)
    assert "OR REPLACE" not in script(ORDERS, "public", "f")
    assert "OR REPLACE" in create_function(ORDERS, '"f"', replace=True)


def test_each_trigger_has_one_event_and_no_columns() -> None:
    """PostgreSQL allows transition tables to no others."""
    text = create_triggers(ORDERS, '"public"."f"', "f")
    assert text.count("CREATE TRIGGER") == text.count("FOR EACH STATEMENT") == 4
    assert " OR " not in text
    assert " OF " not in text


def test_a_condition_stands_on_lines_of_its_own_wherever_it_is_used() -> None:
    """Else a comment at its end would swallow what is behind it."""
    wish = replace(ORDERS, when="total > 0 -- large")
    first, second = (literal_in(each) for each in checks(wish, ["id"]))
    assert first.endswith("WHERE \ntotal > 0 -- large\n LIMIT 0")
    assert second.endswith("WHERE (\ntotal > 0 -- large\n) LIMIT 0")
    uses = body(wish).count("large")
    assert uses > 4
    assert body(wish).count("WHERE (\ntotal > 0 -- large\n)") == uses


def test_a_condition_is_read_a_third_time_where_a_column_has_the_name_of_a_variable() -> None:
    wish = replace(ORDERS, table="a")
    assert len(checks(wish, ["id", "Found"])) == 2
    third = literal_in(checks(wish, ["id", "found", "new"])[2])
    assert ', (SELECT NULL AS "found", NULL AS "new") AS b WHERE (' in third
    declared = re.findall(r"^  (_\w+) ", body(wish).partition("BEGIN")[0], re.MULTILINE)
    assert len(declared) > 5
    assert set(declared) <= VARIABLES


def literal_in(statement: str) -> str:
    """The query in a statement of `checks`, whose texts have no quotes here."""
    return statement.split("''")[1]
