"""What the catalog holds of tables, and of our triggers on them. Layer: core.

What is installed is recognised by the mark in the source of its function, and by the triggers that
call that, whatever all of them are called: a table may be renamed, and a dump be restored.

The queries stand beside those who read their answers: one JSON object a row. They must run where
search_path is pg_catalog alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from pgnotifybus.core import trigger_sql
from pgnotifybus.core.names import MAX_CHANNEL_BYTES, quote
from pgnotifybus.core.trigger_body import Definition
from pgnotifybus.errors import InvalidChannel, SchemaError

State = Literal["live", "stale", "orphaned"]

_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a composite type",
}


# -- tables ---------------------------------------------------------------------------------------

TABLE: Final = """\
WITH RECURSIVE descendants AS (
  SELECT inhrelid FROM pg_inherits WHERE inhparent = CAST(CAST($1 AS text) AS oid)
   UNION
  SELECT child.inhrelid
    FROM pg_inherits AS child JOIN descendants ON child.inhparent = descendants.inhrelid
)
SELECT json_build_object(
         'oid', class.oid::text,
         'schema', space.nspname,
         'name', class.relname,
         'kind', class.relkind,
         'persistence', class.relpersistence,
         'columns', (
           SELECT json_agg(json_build_array(attname, attgenerated) ORDER BY attnum)
             FROM pg_attribute
            WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped),
         'primary_key', (
           SELECT json_agg(attribute.attname ORDER BY part.place)
             FROM pg_constraint AS key,
                  unnest(key.conkey) WITH ORDINALITY AS part (number, place),
                  pg_attribute AS attribute
            WHERE key.conrelid = class.oid AND key.contype = 'p'
              AND attribute.attrelid = class.oid AND attribute.attnum = part.number),
         'foreign', EXISTS (
           SELECT 1 FROM descendants JOIN pg_class AS child ON child.oid = inhrelid
            WHERE child.relkind = 'f'),
         'channel_bytes', octet_length(CAST($2 AS text)))::text
  FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace
 WHERE class.oid = CAST(CAST($1 AS text) AS oid)"""
"""A table by its oid, and how long the name of a channel is in the encoding of the database."""


class Table(NamedTuple):
    """A table that can have a trigger."""

    oid: str
    schema: str
    name: str
    columns: tuple[str, ...]
    virtual: frozenset[str]
    """Generated columns that are not stored: triggers see NULL in them."""
    primary_key: tuple[str, ...]
    partitioned: bool

    @property
    def title(self) -> str:
        """Its name, for people."""
        return f"{self.schema}.{self.name}"

    @property
    def visible(self) -> tuple[str, ...]:
        """The columns that triggers can see."""
        return tuple(name for name in self.columns if name not in self.virtual)


def read_table(answer: str) -> Table:
    """A table, from a row of `TABLE`.

    Raises:
        SchemaError: If it cannot have such a trigger; the message says why.
        InvalidChannel: If the name of the channel is too long in this database.
    """
    row: dict[str, Any] = json.loads(answer)
    title = f"{row['schema']}.{row['name']}"
    if row["kind"] not in ("r", "p"):
        what = _KINDS.get(row["kind"], "of another kind")
        raise SchemaError(f"{title} is {what}: only a table can have a trigger that sees its rows")
    if row["schema"] in ("pg_catalog", "pg_toast"):
        raise SchemaError(f"{title} is a system catalog, which can have no triggers")
    if row["persistence"] == "t":
        raise SchemaError(f"{title} is a temporary table, whose rows nobody else could read")
    if row["foreign"]:
        raise SchemaError(
            f"{title} has a foreign table among its partitions or children, whose rows PostgreSQL "
            "cannot show to a trigger: install on the others one by one"
        )
    if row["channel_bytes"] > MAX_CHANNEL_BYTES:
        raise InvalidChannel(
            f"the channel name has {row['channel_bytes']} bytes in the encoding of this database, "
            f"PostgreSQL takes {MAX_CHANNEL_BYTES} at the most"
        )
    return Table(
        oid=row["oid"],
        schema=row["schema"],
        name=row["name"],
        columns=tuple(name for name, _ in row["columns"] or ()),
        virtual=frozenset(name for name, generated in row["columns"] or () if generated == "v"),
        primary_key=tuple(row["primary_key"] or ()),
        partitioned=row["kind"] == "p",
    )


# -- what is installed ----------------------------------------------------------------------------

FOUND: Final = """\
SELECT json_build_object(
         'schema', space.nspname,
         'name', function.proname,
         'owned', pg_get_userbyid(function.proowner) = current_user,
         'removable', pg_has_role(function.proowner, 'USAGE'),
         'source', function.prosrc,
         'settings', CASE WHEN NOT function.prosecdef THEN to_json(function.proconfig) END,
         'oid', class.oid::text,
         'table_schema', home.nspname,
         'table', class.relname,
         'columns', (
           SELECT json_agg(attname)
             FROM pg_attribute
            WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped
              AND attgenerated <> 'v'),
         'logs', (
           SELECT json_agg(place.nspname)
             FROM pg_proc AS append JOIN pg_namespace AS place ON place.oid = append.pronamespace
            WHERE append.proname = 'append_many'
              AND oidvectortypes(append.proargtypes) = 'text[], text[], text[], jsonb[]'),
         'triggers', (
           SELECT json_agg(json_build_array(
                    tgname, tgtype, coalesce(tgoldtable, ''), coalesce(tgnewtable, ''), tgenabled))
             FROM pg_trigger
            WHERE tgrelid = class.oid AND tgfoid = function.oid AND NOT tgisinternal))::text
  FROM pg_proc AS function
  JOIN pg_namespace AS space ON space.oid = function.pronamespace
  LEFT JOIN (SELECT DISTINCT tgfoid, tgrelid FROM pg_trigger WHERE NOT tgisinternal) AS call
    ON call.tgfoid = function.oid
  LEFT JOIN pg_class AS class ON class.oid = call.tgrelid
  LEFT JOIN pg_namespace AS home ON home.oid = class.relnamespace
 WHERE function.prorettype = 'trigger'::regtype
   AND starts_with(function.prosrc, CAST($1 AS text))
   AND (class.oid IS NULL OR class.oid::text = CAST($2 AS text) OR CAST($2 AS text) IS NULL)"""
"""The functions whose sources begin with our mark, with each table whose triggers call them.

Of one table, or all; those that are called for no table come in any case.
"""

TAKEN: Final = """\
SELECT function.proname::text
  FROM pg_proc AS function JOIN pg_namespace AS space ON space.oid = function.pronamespace
 WHERE space.nspname = CAST($1 AS text) AND function.pronargs = 0
   AND starts_with(function.proname::text, CAST($2 AS text))"""
"""The functions of a schema whose names begin as ours do."""


class Trigger(NamedTuple):
    """One trigger, as pg_trigger has it."""

    name: str
    type: int
    old_table: str
    new_table: str
    enabled: str

    @property
    def fires(self) -> bool:
        """Whether it fires for what applications write."""
        return self.enabled in ("O", "A")


@dataclass(frozen=True, slots=True)
class Found:
    """A function of ours, and the triggers of one table that call it."""

    schema: str
    name: str
    owned: bool
    """Whether it belongs to the role that asks."""
    removable: bool
    """Whether that role may drop it: as its owner, a member of that, or a superuser."""
    source: str
    settings: tuple[str, ...]
    definition: Definition
    """What the mark says, but for the names of the table, which may have changed since."""
    oid: str | None
    """The table; None if it is gone."""
    columns: frozenset[str]
    """The columns of the table that triggers can see."""
    triggers: tuple[Trigger, ...]
    logs: frozenset[str] = frozenset()
    """The schemas that have an event log."""

    @property
    def function(self) -> str:
        """The name of the function, quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def fires(self) -> bool:
        """Whether all triggers are there, and fire."""
        shapes = {each[1:4] for each in self.triggers if each.fires}
        return shapes == trigger_sql.trigger_shapes() and len(self.triggers) == len(shapes)

    def does(self, definition: Definition) -> bool:
        """Whether the function is the one for a definition."""
        same = self.source == trigger_sql.source(definition)
        return same and self.settings == trigger_sql.SETTINGS

    @property
    def state(self) -> State:
        """Whether it does what its mark says."""
        if self.oid is None:
            return "orphaned"
        there = self.columns.issuperset((*self.definition.key, *(self.definition.columns or ())))
        there = there and self.definition.log in (None, *self.logs)
        return "live" if there and self.fires and self.does(self.definition) else "stale"


def read_found(answer: str) -> Found | None:
    """A function of ours, from a row of `FOUND`; None if its mark cannot be read.

    It is None too for what a newer version of this library has left of a table that is gone.

    Raises:
        SchemaError: If a newer version of this library has made it.
    """
    row: dict[str, Any] = json.loads(answer)
    read = trigger_sql.read_mark(row["source"])
    if read is None:
        return None
    version, definition = read
    if version > trigger_sql.VERSION and row["oid"] is None:
        return None  # it tells of nothing, and must not stop whoever works on another table
    if version > trigger_sql.VERSION:
        raise SchemaError(
            f"the trigger on {definition.schema}.{definition.table} is of version {version}, this "
            f"library knows {trigger_sql.VERSION}: upgrade the library"
        )
    if row["oid"] is not None:
        definition = replace(definition, schema=row["table_schema"], table=row["table"])
    return Found(
        schema=row["schema"],
        name=row["name"],
        owned=row["owned"],
        removable=row["removable"],
        source=row["source"],
        settings=tuple(row["settings"] or ()),
        definition=definition,
        oid=row["oid"],
        columns=frozenset(row["columns"] or ()),
        triggers=tuple(Trigger(*each) for each in row["triggers"] or ()),
        logs=frozenset(row.get("logs") or ()),
    )
