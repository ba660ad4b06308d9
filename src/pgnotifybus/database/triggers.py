"""Looking up tables and our triggers on them, over a connection. Layer: database.

What the answers mean, and what is to be done, is decided in `core.trigger_plan`.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from pgnotifybus.core import trigger_catalog, trigger_plan, trigger_sql
from pgnotifybus.core.names import quote
from pgnotifybus.core.trigger_body import Definition
from pgnotifybus.core.trigger_catalog import Found, Table
from pgnotifybus.core.trigger_plan import Wish
from pgnotifybus.errors import SchemaError
from pgnotifybus.links.base import Runner, ServerError

# A name is looked up as any statement of this role would. Everything behind it is in a transaction
# that finds nothing but PostgreSQL's own functions and operators.
_RESOLVE: Final = """\
SELECT pg_catalog.to_regclass(CAST($1 AS pg_catalog.text))::pg_catalog.oid::pg_catalog.text,
       pg_catalog.to_json(pg_catalog.parse_ident(CAST($1 AS pg_catalog.text)))::pg_catalog.text,
       pg_catalog.to_json(pg_catalog.current_schemas(false))::pg_catalog.text"""

# Each statement must see what the one before it has waited for, whatever the role's default is.
BEGIN: Final = """\
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
"""

_ALONE: Final = """\
SET LOCAL lock_timeout = 0;
SELECT pg_advisory_xact_lock(hashtext('pgnotifybus triggers'));
SET LOCAL lock_timeout = {milliseconds};
"""


class Name(NamedTuple):
    """A name of a table, looked up."""

    text: str
    """As it was written."""
    oid: str | None
    """None if there is no such table."""
    table: str
    schemas: list[str]
    """Where it may be: the schema in the name, else those of the search_path."""


class Task(NamedTuple):
    """What is to be installed, and how."""

    table: Table
    definition: Definition
    statements: str | None
    """None if there is nothing to do."""
    script: str
    """What does it whatever is there."""


def alone(lock_timeout: float) -> str:
    """Statements that wait until nobody else changes triggers, and from then on wait but so long.

    Who waits for that waits for those in front, each of which waits for a table at most so long:
    so that it has no limit of its own.

    Args:
        lock_timeout: Seconds.
    """
    return _ALONE.format(milliseconds=max(1, round(lock_timeout * 1000)))


async def resolve(runner: Runner, table: str) -> Name:
    """Look up a name, outside of a transaction of `BEGIN`."""
    [(oid, parts, path)] = await runner.fetch(_RESOLVE, table)
    *schema, name = json.loads(parts or "[]")
    return Name(table, oid, name, schema or json.loads(path or "[]"))


async def plan(runner: Runner, name: Name, wish: Wish) -> Task:
    """Look at what is there, and decide what is to be done; inside of a transaction of `BEGIN`.

    Raises:
        SchemaError, InvalidChannel: If the table cannot have what is wished.
    """
    rows = []
    if name.oid is not None:
        rows = await runner.fetch(trigger_catalog.TABLE, name.oid, wish.channel)
    if not rows:
        raise SchemaError(f"there is no table {name.text}")
    table = trigger_catalog.read_table(rows[0][0] or "")
    definition = wish.on(table)
    found = await find(runner, table.oid)
    names = await runner.fetch(trigger_catalog.TAKEN, table.schema, trigger_sql.PREFIX)
    taken = [each or "" for (each,) in names]
    return Task(
        table,
        definition,
        trigger_plan.to_install(definition, table, found, taken),
        trigger_plan.script(definition, table, found, taken),
    )


async def find(runner: Runner, oid: str | None) -> list[Found]:
    """What is installed on a table, or on any; and what no table has; as `plan`."""
    rows = await runner.fetch(trigger_catalog.FOUND, trigger_sql.MARK, oid)
    found = [trigger_catalog.read_found(answer or "") for (answer,) in rows]
    return [each for each in found if each is not None]


async def check_condition(runner: Runner, task: Task) -> None:
    """Let the server read the condition, so that a mistake shows now and not in a later write.

    Raises:
        SchemaError: If it refuses; the message says why.
    """
    if task.definition.when is None:
        return
    for statement in trigger_sql.checks(task.definition, task.table.visible):
        try:
            await runner.execute(statement)
        except ServerError as error:
            if error.sqlstate == "42702":  # the name of a column is ambiguous
                raise SchemaError(
                    f"the server refuses the condition {task.definition.when!r}: {error}. Write "
                    f"the name of the table before it, {quote(task.table.name)}.column: PL/pgSQL "
                    "may have a variable of the same name"
                ) from error
            raise SchemaError(
                f"the server refuses the condition {task.definition.when!r}: {error}. It may use "
                f"the columns {', '.join(map(quote, task.table.visible))}; functions, types and "
                "operators that are not PostgreSQL's own need the names of their schemas"
            ) from error
