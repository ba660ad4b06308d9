"""What a trigger that tells of changes does: the body of its function. Layer: core.

It must never keep the user's statement from succeeding, and cost little however much that changes:

1. Measure. Count the rows, up to one more than a notification could hold, and add up how much
   their values take. An upsert also fires the triggers of what it did not do: nothing is told then.
2. Tell. Few enough become JSON: the values if they fit, else the keys if these fit.
3. Otherwise, and whatever else goes wrong, say only that the table is to be read again.

All of that happens in a block with an exception handler. A handler costs a subtransaction, which
takes no transaction id unless it writes, and ours only reads: there is nothing to be measured in a
statement of 30 microseconds. Without it, renaming a column would make every write to the table
fail. Only what asks for the transaction to be tried again, as a serialization failure, goes
through. `pg_notify` stands behind the block.

What stands outside of it calls nothing that somebody else could make ambiguous: where casts from
numbers to text were made implicit, as some do for applications of old, `text || bigint` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pgnotifybus.core.names import MAX_PAYLOAD_BYTES, literal, quote

MAX_BUILT_BYTES: Final = 262_144
"""How many bytes of stored values are made into JSON, which may then still be too large.

No type takes more than about 30 times the space of its JSON (`name`: 64 bytes for `"a"`), so all
that could fit is under this. Compressed values grow by at most 255 times (LZ4), so building stays
cheap.
"""

VARIABLES: Final = frozenset(
    (
        *("found", "new", "old"),
        *("tg_name", "tg_when", "tg_level", "tg_op", "tg_relid", "tg_relname"),
        *("tg_table_name", "tg_table_schema", "tg_nargs", "tg_argv"),
        *("_head", "_count", "_key_bytes", "_bytes", "_keys", "_rows", "_message"),
        *("_batches", "_names", "_payloads"),
    )
)
"""The variables of the functions: those that PL/pgSQL gives to each trigger, and their own.

Source: src/pl/plpgsql/src/pl_comp.c
"""

HEAD: Final = """\
'{"schema":' || to_json(TG_TABLE_SCHEMA::text)::text
    || ',"table":' || to_json(TG_TABLE_NAME::text)::text
    || ',"op":"' || lower(TG_OP COLLATE "C") || '"'"""
"""How each payload begins."""

# The shortest that can stand around the rows: tables, as all names, have at least one character.
_FRAME: Final = len('{"schema":"s","table":"t","op":"insert","rows":[]}')


@dataclass(frozen=True, slots=True)
class Definition:
    """What a channel is told of a table."""

    schema: str
    table: str
    channel: str
    key: tuple[str, ...]
    """The columns that name a row; none to tell only that something has changed."""
    columns: tuple[str, ...] | None
    """The columns that matter, whose values travel; None to tell of every change, by its keys."""
    when: str | None
    """An SQL condition that the rows must meet, as a person wrote it."""
    log: str | None = None
    """The schema of the event log that it is written to; None to notify."""

    @property
    def values(self) -> tuple[str, ...]:
        """The columns that travel beside the key."""
        return tuple(name for name in self.columns or () if name not in self.key)


def max_rows(key: tuple[str, ...]) -> int:
    """More rows than this cannot fit into a notification, whatever is in them.

    Args:
        key: The columns that name a row, at least one.
    """
    # A name is at least as many bytes as it has characters; no value is shorter than one digit.
    shortest = len("{}") + sum(len(f'"{name}":0') for name in key) + len(key) - 1
    return (MAX_PAYLOAD_BYTES - _FRAME + 1) // (shortest + 1)


def body(definition: Definition) -> str:
    """The body of the function, in PL/pgSQL; search_path must be pg_catalog while it runs."""
    parts = _Parts(definition)
    update, other = (
        (parts.told_of_update(), parts.told("changed"))
        if definition.key
        else (parts.any_of("old_rows", "new_rows"), parts.any_of("changed"))
    )
    return f"""
#variable_conflict use_column
-- Made by pgnotifybus. `pgnotifybus trigger install` replaces it, `... remove` drops it.
-- Variables begin with _, so that none is taken for a column that has gone.
DECLARE
  _head text := {HEAD}{parts.at()};
  _count bigint;
  _key_bytes bigint;
  _bytes bigint;
  _keys text;
  _rows text;
  _message text;
BEGIN
  BEGIN
    IF TG_OP = 'UPDATE' THEN
{update}
    ELSIF TG_OP <> 'TRUNCATE' THEN
{other}
    END IF;
{parts.message()}
    IF _message IS NULL AND TG_OP = 'UPDATE' THEN
      SELECT count(*) INTO _count FROM new_rows;
    ELSIF _message IS NULL AND TG_OP <> 'TRUNCATE' THEN
      SELECT count(*) INTO _count FROM changed;
    END IF;
  EXCEPTION
    WHEN transaction_rollback THEN
      RAISE;
    WHEN OTHERS OR assert_failure THEN  -- which OTHERS leaves out
      RAISE WARNING 'pgnotifybus cannot say what has changed in %.%, only that something has: %',
        TG_TABLE_SCHEMA, TG_TABLE_NAME, SQLERRM
        USING HINT = 'If columns were renamed, dropped or changed, install the trigger again.';
      _message := NULL;
      _count := NULL;
  END;
  IF _message IS NULL THEN
    _message := _head || ',"reread":true' || coalesce(',"count":' || _count::text, '') || '}}';
  END IF;
  PERFORM pg_notify({literal(definition.channel)}, _message);
  RETURN NULL;
END
"""


class _Parts:
    """The statements that depend on the definition.

    A condition may hold text of several lines, so nothing is indented once it is in there.
    """

    def __init__(self, definition: Definition) -> None:
        # The alias also lets a condition name the table; nothing else is in scope beside it.
        self._table = quote(definition.table)
        self._key = definition.key
        self._values = definition.values
        self._filters = definition.columns is not None
        self._where = "" if definition.when is None else f" WHERE (\n{definition.when}\n)"

    def at(self) -> str:
        """The time, where values are told: so no two payloads are equal.

        PostgreSQL would deliver equal ones of a transaction once. Of a value that becomes a, b, and
        a again, the last that is told would be b. A key says "read this row" as well once as twice.
        """
        if not self._values:
            return ""
        return """ || ',"at":' || extract(epoch FROM clock_timestamp())::text"""

    def any_of(self, *transitions: str) -> str:
        """Go on only if there is a row."""
        nothing = "\n        AND ".join(
            f"NOT EXISTS (SELECT 1 {self._from(transition)})" for transition in transitions
        )
        return f"""\
      IF {nothing} THEN
        RETURN NULL;
      END IF;"""

    def told(self, transition: str) -> str:
        """What is told of the one transition table that INSERT and DELETE have."""
        build = f"""\
        SELECT string_agg(DISTINCT key, ','), string_agg(DISTINCT entry, ',') INTO _keys, _rows
          FROM ({self._entries(transition)}) AS each;"""
        return f"""\
      SELECT count, key_bytes, bytes INTO _count, _key_bytes, _bytes
        FROM ({self._measure(transition)}) AS measured;
{self._if_few(build if self._values else self._only_keys(transition), transition)}"""

    def told_of_update(self) -> str:
        """What is told of an UPDATE: what is there now under each key that is not as it was.

        Old and new rows are matched by the JSON of their keys, which needs no operator of the
        columns' types. Where a key is not unique, all rows that have it are compared together.
        """
        compare = f"""\
        SELECT string_agg(coalesce(after.key, before.key), ','),
               string_agg(coalesce(after.entries, before.key), ',')
          INTO _keys, _rows
          FROM ({self._by_key("old_rows")}) AS before
          FULL JOIN ({self._by_key("new_rows")}) AS after ON after.key = before.key
         WHERE after.entries IS DISTINCT FROM before.entries;
        IF _keys IS NULL THEN
          RETURN NULL;
        END IF;"""
        both = ("old_rows", "new_rows")
        return f"""\
      SELECT greatest(before.count, after.count),
             before.key_bytes + after.key_bytes, before.bytes + after.bytes
        INTO _count, _key_bytes, _bytes
        FROM ({self._measure("old_rows")}) AS before,
             ({self._measure("new_rows")}) AS after;
{self._if_few(compare if self._filters else self._only_keys(*both), *both)}"""

    def message(self) -> str:
        """Put together what fits."""
        or_keys = f"""
    IF _message IS NULL OR octet_length(_message) > {MAX_PAYLOAD_BYTES} THEN
      _message := _head || ',"keys_only":true,"rows":[' || _keys || ']}}';
    END IF;"""
        return f"""\
    _message := _head || ',"rows":[' || _rows || ']}}';{or_keys if self._values else ""}
    IF octet_length(_message) > {MAX_PAYLOAD_BYTES} THEN
      _message := NULL;
    END IF;"""

    # -- inside -----------------------------------------------------------------------------------

    def _if_few(self, build: str, *transitions: str) -> str:
        """Build what is to be told if there is something, and if it could fit."""
        few = max_rows(self._key)
        or_keys = f"""
      ELSIF _count <= {few} AND _key_bytes <= {MAX_BUILT_BYTES} THEN
{self._only_keys(*transitions)}"""
        return f"""\
      IF _count = 0 THEN
        RETURN NULL;
      END IF;
      IF _count <= {few} AND _bytes <= {MAX_BUILT_BYTES} THEN
{build}{or_keys if self._values else ""}
      END IF;"""

    def _only_keys(self, *transitions: str) -> str:
        keys = "\n            UNION ALL ".join(
            f"SELECT {self._json(self._key)} AS key\n            {self._from(transition)}"
            for transition in transitions
        )
        return f"""\
        SELECT string_agg(DISTINCT key, ',') INTO {"_keys" if self._values else "_rows"}
          FROM (
            {keys}
          ) AS each;"""

    def _by_key(self, transition: str) -> str:
        return f"""
            SELECT key, string_agg(entry, ',' ORDER BY entry) AS entries
              FROM ({self._entries(transition)}) AS each
             GROUP BY key
          """

    def _entries(self, transition: str) -> str:
        return f"""
              SELECT {self._json(self._key)} AS key,
                     {self._json((*self._key, *self._values))} AS entry
                {self._from(transition)}
            """

    def _measure(self, transition: str) -> str:
        """How many rows there are, up to one too many, and how much they take as stored."""
        return f"""
          SELECT count(*) AS count, coalesce(sum(key_bytes), 0) AS key_bytes,
                 coalesce(sum(bytes), 0) AS bytes
            FROM (
              SELECT {self._size(self._key)} AS key_bytes,
                     {self._size((*self._key, *self._values))} AS bytes
                {self._from(transition)}
               LIMIT {max_rows(self._key) + 1}
            ) AS each
        """

    def _from(self, transition: str) -> str:
        return f"FROM {transition} AS {self._table}{self._where}"

    def _size(self, names: tuple[str, ...]) -> str:
        # Of what lies outside the row, this reads the pointer only.
        return " + ".join(f"coalesce(pg_column_size({self._column(name)}), 0)" for name in names)

    def _json(self, names: tuple[str, ...]) -> str:
        columns = ", ".join(map(self._column, names))
        # The .* keeps a column of the name "named" from being taken for the row.
        return f'(SELECT row_to_json(named.*)::text COLLATE "C" FROM (SELECT {columns}) AS named)'

    def _column(self, name: str) -> str:
        return f"{self._table}.{quote(name)}"
