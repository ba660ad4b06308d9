"""The SQL of a trigger that tells a channel, or a log, of a table's changes. Layer: core.

For each table and channel there is one function, and four triggers that call it. Transition tables
are only for triggers of one event and without a list of columns, so there is one trigger for each
of INSERT, UPDATE and DELETE; TRUNCATE has no transition table at all.

The function tells as much as a notification holds: rows with their values, else the keys alone,
else that something has changed (`trigger_body`); or it writes each row into an event log
(`trigger_log_body`). `docs/howto/triggers.md` describes the payloads. Names that come
from outside are quoted wherever they stand, and what the function calls is looked up in
`pg_catalog` alone, whatever search_path the writer has.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Sequence
from typing import Final

from pgnotifybus.core.names import literal, quote
from pgnotifybus.core.trigger_body import VARIABLES, Definition, body
from pgnotifybus.core.trigger_log_body import log_body

VERSION: Final = 1
"""The version of the functions that are made here."""

SETTINGS: Final = (
    "search_path=pg_catalog, pg_temp",
    "standard_conforming_strings=on",
    # Below 1, which is the default, floats are rounded, and what differs would look the same.
    "extra_float_digits=1",
    # A key is spelled the same whoever writes, but for the time zone.
    "bytea_output=hex",
    "IntervalStyle=postgres",
    "DateStyle=iso",
)
"""What the function sets while it runs, as pg_proc has it: it reads the same for every writer."""

PREFIX: Final = "pgnotifybus_"
"""How the name of each of our functions begins."""

MARK: Final = "\n-- pgnotifybus "
"""How the source of each of our functions begins."""

_FOLDED: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

_EVENTS: Final = ("insert", "update", "delete", "truncate")
_TRANSITIONS: Final = {
    "insert": ("", "changed"),
    "update": ("old_rows", "new_rows"),
    "delete": ("changed", ""),
    "truncate": ("", ""),
}
# Bits of pg_trigger.tgtype; one FOR EACH STATEMENT that is AFTER its event has no other.
# Source: src/include/catalog/pg_trigger.h
_TYPES: Final = {"insert": 4, "delete": 8, "update": 16, "truncate": 32}


# -- names ----------------------------------------------------------------------------------------


def function_name(table: str, channel: str, attempt: int = 0) -> str:
    """A name for the function, the same for the same arguments, and for hardly any others.

    Args:
        table: The name of the table.
        channel: The name of the channel.
        attempt: How many such names are somebody else's.
    """
    told = json.dumps([table, channel, attempt]).encode()
    return f"{PREFIX}{hashlib.sha256(told).hexdigest()[:16]}"


def split_names(text: str) -> tuple[str, ...]:
    """The names of a list such as `id, "Mixed Case"`, read as SQL reads them.

    What is not quoted is folded to lower case, as far as it is ASCII.

    Raises:
        ValueError: If it is no list of names.
    """
    one = r'\s*(?:"(?:[^"]|"")+"|[^\s",.;()]+)\s*'
    if not re.fullmatch(f"{one}(?:,{one})*", text):
        raise ValueError(f"write column names as SQL does, with commas between them, not {text!r}")
    found = re.findall(r'"(?:[^"]|"")+"|[^\s",]+', text)
    return tuple(
        each[1:-1].replace('""', '"') if each.startswith('"') else each.translate(_FOLDED)
        for each in found
    )


# -- the mark -------------------------------------------------------------------------------------


def source(definition: Definition) -> str:
    """The source of the function.

    It begins with a mark, from which the definition can be read again. That could stand in a
    COMMENT ON FUNCTION too; but dumps may leave out comments, and then it would be installed twice.
    """
    logged = definition.log is not None
    mark = json.dumps(
        {
            "version": VERSION,
            "schema": definition.schema,
            "table": definition.table,
            "channel": definition.channel,
            "key": definition.key,
            "columns": definition.columns,
            "when": definition.when,
            **({"log": definition.log} if logged else {}),
        },
        ensure_ascii=False,  # and no line end in it, as JSON has none in its strings
        separators=(",", ":"),
    )
    return f"{MARK}{mark}{log_body(definition) if logged else body(definition)}"


def read_mark(code: str) -> tuple[int, Definition] | None:
    """The version and the definition of a source; None if it is not one of ours.

    What a newer version has added to it is not looked at.
    """
    if not code.startswith(MARK):
        return None
    try:
        found = json.loads(code.removeprefix(MARK).partition("\n")[0])
        schema, table, channel = (str(found[name]) for name in ("schema", "table", "channel"))
        columns, when, log = found["columns"], found["when"], found.get("log")
        definition = Definition(
            schema=schema,
            table=table,
            channel=channel,
            key=tuple(map(str, found["key"])),
            columns=None if columns is None else tuple(map(str, columns)),
            when=None if when is None else str(when),
            log=None if log is None else str(log),
        )
        return int(found["version"]), definition
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


# -- statements -----------------------------------------------------------------------------------


def create_triggers(definition: Definition, function: str, name: str) -> str:
    """The statements that make the triggers.

    Args:
        definition: What they tell.
        function: The function that they call, quoted and with its schema.
        name: What their names begin with.
    """
    table = _qualified(definition)
    return "\n".join(
        f"CREATE TRIGGER {quote(f'{name}_{event}')} AFTER {event.upper()} ON {table}"
        f"{_referencing(event)}\n  FOR EACH STATEMENT EXECUTE FUNCTION {function}();"
        for event in _EVENTS
    )


def drop_triggers(definition: Definition, names: Sequence[str]) -> str:
    """The statements that drop triggers of the table."""
    table = _qualified(definition)
    return "\n".join(f"DROP TRIGGER IF EXISTS {quote(name)} ON {table};" for name in names)


def trigger_names(name: str) -> tuple[str, ...]:
    """What `create_triggers` calls them."""
    return tuple(f"{name}_{event}" for event in _EVENTS)


def trigger_shapes() -> set[tuple[int, str, str]]:
    """The triggers, as pg_trigger has them: tgtype, tgoldtable and tgnewtable."""
    return {(_TYPES[event], *_TRANSITIONS[event]) for event in _EVENTS}


def create_function(definition: Definition, function: str, *, replace: bool) -> str:
    """The statement that makes the function.

    Args:
        definition: What it tells.
        function: Its name, quoted and with its schema.
        replace: Whether it is there already. If not, the statement must not take over one that
            somebody else puts there in time: its owner could change it later.
    """
    code = source(definition)
    tag = "$pgnotifybus$"
    while tag in code:  # no text of a user's can then end the body
        tag = f"{tag[:-1]}_$"
    settings = "".join(
        f"  SET {name} = {value}\n" for name, _, value in (each.partition("=") for each in SETTINGS)
    )
    return (
        f"CREATE {'OR REPLACE ' if replace else ''}FUNCTION {function}() RETURNS trigger\n"
        f"  LANGUAGE plpgsql\n{settings}AS {tag}{code}{tag};"
    )


def script(definition: Definition, schema: str, name: str) -> str:
    """The statements that install it from nothing, also where it is there already."""
    function = f"{quote(schema)}.{quote(name)}"
    return "\n\n".join(
        (
            drop_triggers(definition, trigger_names(name)),
            f"DROP FUNCTION IF EXISTS {function}();",
            create_function(definition, function, replace=False),
            create_triggers(definition, function, name) + "\n",
        )
    )


def checks(definition: Definition, columns: Sequence[str]) -> tuple[str, ...]:
    """Statements which the server must all take before a condition may be used.

    They have the server read and plan a query with the condition in it, and read no row. In the
    first, no parenthesis is open around the condition, so that those in it must match each other.
    In the second it stands in a pair of its own, which then can only be closed by ours: what is
    inside is one expression. A cursor takes a single query, so that none can stand behind it, and
    no parameters.

    A third is for columns that have the name of a variable of PL/pgSQL. If such a column is renamed
    later, its bare name would mean the variable, and the rows would not meet the condition without
    anybody noticing. So these names are ambiguous there, unless the table's stands before them.

    Args:
        definition: What is to be installed; it has a condition.
        columns: The columns of the table that triggers can see.
    """
    row = ", ".join(f"(one.whole).{quote(column)}" for column in columns)
    rows = (
        f"SELECT 1 FROM (SELECT {row} FROM (SELECT NULL::{_qualified(definition)} AS whole) AS one)"
        f" AS {quote(definition.table)} WHERE "
    )
    found = (
        _planned(f"{rows}\n{definition.when}\n LIMIT 0"),
        _planned(f"{rows}(\n{definition.when}\n) LIMIT 0"),
    )
    doubtful = [quote(column) for column in columns if column in VARIABLES]
    if not doubtful:
        return found
    other = "a" if definition.table != "a" else "b"
    again = f", (SELECT {', '.join(f'NULL AS {each}' for each in doubtful)}) AS {other}"
    bare = rows.removesuffix(" WHERE ") + again + " WHERE "
    return (*found, _planned(f"{bare}(\n{definition.when}\n) LIMIT 0"))


def _planned(query: str) -> str:
    block = f"DECLARE read refcursor; BEGIN OPEN read FOR EXECUTE {literal(query)}; CLOSE read; END"
    return f"DO {literal(block)}"


def _qualified(definition: Definition) -> str:
    return f"{quote(definition.schema)}.{quote(definition.table)}"


def _referencing(event: str) -> str:
    old, new = _TRANSITIONS[event]
    parts = f" OLD TABLE AS {old}" * bool(old) + f" NEW TABLE AS {new}" * bool(new)
    return f"\n  REFERENCING{parts}" if parts else ""
