"""Queries as text: arrays, and the parameters as each driver wants them, whatever is quoted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pgnotifybus.core.names import quote
from pgnotifybus.database.callers import (
    _for_psycopg,
    _for_sqlalchemy,
    async_caller,
    sync_caller,
)
from pgnotifybus.database.queries import Query, Script, array, run
from pgnotifybus.links.base import NOTIFY, Rows

PSYCOPG = registry.load("postgresql.psycopg")()
ASYNCPG = registry.load("postgresql.asyncpg")()

# -- arrays ---------------------------------------------------------------------------------------

NASTY = [
    "",
    " ",
    "NULL",
    "null",
    "plain",
    "two words",
    "a,b",
    "{}",
    '{"a","b"}',
    "}",
    '"',
    '""',
    '\\"',
    '","',
    '"},{"',
    "\\",
    "\\\\",
    "ends with \\",
    "\\n",
    "\n\r\t\v\f\x01\x7f",
    "'; drop table payloads; --",
    "$1 %s :p1",
    "é日😀",
    "\u2028\u00a0",
    "[1:2]={1,2}",
]


def parsed(text: str) -> list[str]:
    """What PostgreSQL reads, where every element is quoted.

    Source: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    assert text[0] == "{"
    assert text[-1] == "}"
    found: list[str] = []
    rest = iter(text[1:-1])
    for begin in rest:
        assert begin == '"', "it is not quoted, or not separated"
        element = ""
        while (character := next(rest)) != '"':
            element += next(rest) if character == "\\" else character
        found.append(element)
        assert next(rest, ",") == ","
    return found


def test_the_text_of_an_array_is_as_documented() -> None:
    assert array([]) == "{}"
    assert array([""]) == '{""}'
    assert array(["a"]) == '{"a"}'
    assert array(["a", "NULL", ""]) == '{"a","NULL",""}'
    assert array(['say "hi"', "back\\slash"]) == '{"say \\"hi\\"","back\\\\slash"}'


@pytest.mark.parametrize("value", NASTY)
def test_an_element_is_read_as_it_was(value: str) -> None:
    assert parsed(array([value])) == [value]
    assert parsed(array(["a", value, value, "b"])) == ["a", value, value, "b"]


def test_many_elements_are_read_as_they_were_and_in_their_order() -> None:
    dice = random.Random(3)
    for _ in range(300):
        values = [
            "".join(dice.choices("\\\",{} aN\n'é", k=dice.randrange(8)))
            for _ in range(dice.randrange(6))
        ]
        assert parsed(array(values)) == values
    assert parsed(array(NASTY)) == NASTY


# -- parameters -----------------------------------------------------------------------------------

SCHEMAS = [
    "pgnotifybus",
    "MixedCase",
    'quo"te',
    '"',
    '""',
    "apo'strophe",
    "it's $1",
    "$1",
    "$2 or '$1'",
    "100%",
    "%s",
    "%%",
    "a:b",
    "a::b",
    ":p1",
    ":é",
    "back\\slash",
    "ends with \\",
    "\\:p1",
    "a\\::b",
    "{}",
    "{schema}",
    "é日😀",
    "semi;colon--",
    "/* $1",
    "new\nline",
]


def query_in(schema: str) -> Query:
    """One that quotes the name, casts, repeats a parameter and has literals of all sorts."""
    return Query(
        f"INSERT INTO {quote(schema)}.payloads SELECT CAST($2 AS text)::uuid,"
        " 'it''s $1 100% :p1 \"'"
        f" FROM {quote(schema)}.\"other $2\" WHERE a % 2 = 0 AND b = '::' AND c = $1 OR d = $1",
        ("one", "two"),
    )


def written_back(text: str) -> str:
    """What a driver makes of the text that takes parameters in Python's own way."""
    return text % {"p1": "$1", "p2": "$2"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_psycopg_gets_the_same_statement(schema: str) -> None:
    query = query_in(schema)
    text, parameters = _for_psycopg(query)
    assert written_back(text) == query.sql
    assert parameters == {"p1": "one", "p2": "two"}
    assert text.count("%(p1)s") == 2
    assert text.count("%(p2)s") == 1


@pytest.mark.parametrize("schema", SCHEMAS)
def test_sqlalchemy_gets_the_same_statement_over_each_driver(schema: str) -> None:
    query = query_in(schema)
    text, parameters = _for_sqlalchemy(query)
    assert parameters == {"p1": "one", "p2": "two"}
    over_psycopg = text.compile(dialect=PSYCOPG)
    assert written_back(str(over_psycopg)) == query.sql
    assert set(over_psycopg.params) == {"p1", "p2"}
    # It numbers the parameters in the order in which they come.
    over_asyncpg = text.compile(dialect=ASYNCPG)
    assert over_asyncpg.positiontup == ["p2", "p1"]
    swapped = query.sql.replace("CAST($2 AS", "CAST($1 AS").replace("= $1", "= $2")
    assert str(over_asyncpg) == swapped


@pytest.mark.parametrize("convert", [_for_psycopg, _for_sqlalchemy])
def test_a_statement_without_parameters_stays_one(convert: Callable[[Query], Any]) -> None:
    text, parameters = convert(Query("SELECT '$1', 5 % 2, 'a:b'::text", ()))
    if convert is _for_sqlalchemy:
        text = str(text.compile(dialect=PSYCOPG))
    assert written_back(text) == "SELECT '$1', 5 % 2, 'a:b'::text"
    assert parameters == {}


def test_the_statement_that_notifies_is_written_for_each_driver() -> None:
    query = Query(NOTIFY, ("orders", "42"))
    text, parameters = _for_psycopg(query)
    assert text % {name: f"'{value}'" for name, value in parameters.items()} == (
        "SELECT pg_catalog.pg_notify('orders', '42')"
    )
    clause, again = _for_sqlalchemy(query)
    assert again == parameters
    assert str(clause) == "SELECT pg_catalog.pg_notify(:p1, :p2)"


def test_a_parameter_is_never_written_into_the_statement() -> None:
    """Trap 22: NOTIFY itself takes no parameters; what we run instead does."""
    hostile = "'); drop table payloads; --%s:p1$1"
    query = Query(NOTIFY, (hostile, hostile))
    assert hostile not in _for_psycopg(query)[0]
    assert hostile not in str(_for_sqlalchemy(query)[0])


# -- running --------------------------------------------------------------------------------------


class Echo:
    """A session that answers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, ...]] = []

    async def fetch(self, sql: str, *parameters: str | None) -> Rows:
        self.asked.append((sql, *parameters))
        if sql == "fail":
            raise ConnectionError
        return [(sql, *parameters)]

    async def execute(self, sql: str) -> None:
        raise AssertionError(sql)


def script(*statements: str) -> Script[list[Rows]]:
    answers = []
    for number, sql in enumerate(statements):
        answers.append((yield Query(sql, (str(number),))))
    return answers


async def test_a_script_is_sent_the_rows_of_each_query_and_returns_its_result() -> None:
    runner = Echo()
    assert await run(script("a", "b"), runner) == [[("a", "0")], [("b", "1")]]
    assert runner.asked == [("a", "0"), ("b", "1")]
    assert await run(script(), runner) == []


async def test_a_script_ends_where_a_query_fails() -> None:
    runner = Echo()
    with pytest.raises(ConnectionError):
        await run(script("a", "fail", "b"), runner)
    assert runner.asked == [("a", "0"), ("fail", "1")]


# -- whose connection it is -----------------------------------------------------------------------


class Ours(AsyncSession):
    """A subclass of the user's."""


class TheirSession(Session):
    """A subclass of the user's."""


def test_a_session_of_the_users_own_class_is_taken() -> None:
    async_caller(Ours(), "notify", "notify_sync")
    sync_caller(TheirSession(), "notify_sync", "notify")


def test_a_session_is_taken_whatever_the_users_class_is_called() -> None:
    named = type("Session", (AsyncSession,), {})
    async_caller(named(), "notify", "notify_sync")


@pytest.mark.parametrize("connection", [None, "postgresql://", object()])
def test_what_is_no_connection_is_refused_with_what_would_be(connection: object) -> None:
    with pytest.raises(TypeError, match=r"notify takes an asyncpg connection.*notify_sync a psyco"):
        async_caller(connection, "notify", "notify_sync")
    with pytest.raises(TypeError, match=r"notify_sync takes a psycopg.*notify an asyncpg"):
        sync_caller(connection, "notify_sync", "notify")


def test_a_connection_of_the_other_kind_is_sent_to_the_other_function() -> None:
    with pytest.raises(TypeError, match=r"for sqlalchemy\.Session use notify_sync"):
        async_caller(Session(), "notify", "notify_sync")
    with pytest.raises(TypeError, match=r"for sqlalchemy\.AsyncSession await notify"):
        sync_caller(AsyncSession(), "notify_sync", "notify")
