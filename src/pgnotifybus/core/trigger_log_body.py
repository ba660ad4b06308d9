"""What a trigger that logs changes does: the body of its function. Layer: core.

Its rules are the opposite of those of `trigger_body`: it must not lose anything. Each changed row
becomes one event, however many there are, and what cannot be logged does not happen.

**What fails, fails the user's statement.** It is caught only to say which trigger it was. A handler
costs a subtransaction, which takes a transaction id as soon as it writes; one for each statement
would be too many. So inside of it rows are only read, a batch at a time, through a cursor, and
every batch is appended outside of it.

**An UPDATE fires one statement trigger, too,** although transition tables do not say which old row
became which new one, and keys cannot where they changed. A row trigger would know, but not of all
rows: one on a partitioned table sees a row that moves to another partition as a DELETE and an
INSERT, and one on a parent sees no rows of its children. It would also be a call for each row. So
rows are paired by the order in which the server has stored them: it puts the old and the new
version of a row into the two tables in one go, or, of a row that moves, one right after the other,
and reads them in that order. Only one thing comes between them, a BEFORE INSERT trigger that lets a
row vanish on its way to another partition. The tables differ in length then, and the statement
fails.
Source: AfterTriggerSaveEvent and GetAfterTriggersTransitionTable in
src/backend/commands/trigger.c; src/backend/executor/nodeNamedtuplestorescan.c

**It runs with the rights of whoever writes,** as the one that notifies does. With those of whoever
has installed it, a writer would need none on the log; but what a column's type does to become JSON
is up to the owners of the type and of the table, and they could then act as whoever that was.
"""

from __future__ import annotations

import json
import shlex
from typing import Final

from pgnotifybus.core.names import SCHEMA, literal, quote
from pgnotifybus.core.trigger_body import HEAD, Definition

BATCH_BYTES: Final = 1_048_576
"""About how many bytes of payloads are appended at once: an array cannot hold a gigabyte."""


def log_body(definition: Definition) -> str:
    """The body of the function, in PL/pgSQL; search_path must be pg_catalog while it runs.

    Args:
        definition: What is logged; it has a log.
    """
    parts = _Parts(definition)
    return parts.of_rows() if definition.key else parts.of_statements()


class _Parts:
    """The statements that depend on the definition.

    A condition may hold text of several lines, so nothing is indented once it is in there. It sees
    nothing but the columns of the table: whatever else is needed stands one level above it.
    """

    def __init__(self, definition: Definition) -> None:
        assert definition.log is not None
        self._definition = definition
        self._table = quote(definition.table)
        self._log = definition.log
        self._schema = quote(definition.log)
        self._channel = f"{literal(definition.channel)}::text"

    def of_rows(self) -> str:
        """One event for each row."""
        return f"""
#variable_conflict use_column
-- Made by pgnotifybus. `pgnotifybus trigger install` replaces it, `... remove` drops it.
-- Variables begin with _, so that none is taken for a column that has gone.
DECLARE
  _head text := {HEAD};
  _batches refcursor;
  _names text[];
  _payloads text[];
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
{self._append("reread")}
    RETURN NULL;
  END IF;
  LOOP
  BEGIN
    IF _batches IS NOT NULL THEN
      NULL;
    ELSIF TG_OP = 'INSERT' THEN
      OPEN _batches NO SCROLL FOR {self._batches(self._one_sided("key", "changed"))};
    ELSIF TG_OP = 'DELETE' THEN
      OPEN _batches NO SCROLL FOR {self._batches(self._one_sided("old_key", "old"))};
    ELSE
      IF (SELECT count(*) FROM old_rows) <> (SELECT count(*) FROM new_rows) THEN
        RAISE 'a BEFORE trigger has let a row vanish on its way to another partition';
      END IF;
      OPEN _batches NO SCROLL FOR {self._batches(self._paired())};
    END IF;
    FETCH _batches INTO _names, _payloads;
{self._handler()}
  END;
  EXIT WHEN _payloads IS NULL;
  PERFORM {self._schema}.append_many(
    array_fill({self._channel}, ARRAY[cardinality(_payloads)]), _payloads, _names,
    array_fill(NULL::jsonb, ARRAY[cardinality(_payloads)]));
  END LOOP;
  CLOSE _batches;
  RETURN NULL;
END
"""

    def of_statements(self) -> str:
        """One event for each statement that changes rows, if these have no key."""
        return f"""
#variable_conflict use_column
-- Made by pgnotifybus. `pgnotifybus trigger install` replaces it, `... remove` drops it.
-- Variables begin with _, so that none is taken for a column that has gone.
DECLARE
  _head text := {HEAD};
  _count bigint;
BEGIN
  BEGIN
    IF TG_OP = 'UPDATE' THEN
      IF {self._any("old_rows")}
         OR {self._any("new_rows")} THEN
        SELECT count(*) INTO _count FROM new_rows;
      END IF;
    ELSIF TG_OP <> 'TRUNCATE' THEN
      IF {self._any("changed")} THEN
        SELECT count(*) INTO _count FROM changed;
      END IF;
    END IF;
{self._handler()}
  END;
  IF _count IS NOT NULL OR TG_OP = 'TRUNCATE' THEN
{self._append("reread", "count")}
  END IF;
  RETURN NULL;
END
"""

    # -- what both need ---------------------------------------------------------------------------

    def _handler(self) -> str:
        """What asks for another try goes through as it is; all else says where it happened."""
        words = ["--channel", self._definition.channel, "--log"]
        if self._log != SCHEMA:
            words += ["--schema", self._log]
        return f"""\
  EXCEPTION
    WHEN transaction_rollback THEN
      RAISE;
    WHEN OTHERS OR assert_failure THEN  -- which OTHERS leaves out
      RAISE EXCEPTION 'pgnotifybus cannot log what has changed in %.% for channel %: %',
        TG_TABLE_SCHEMA, TG_TABLE_NAME, {self._channel}, SQLERRM
        USING ERRCODE = SQLSTATE,
          HINT = format('If columns were renamed, dropped or changed, install it again, with the '
            'columns, condition and key that it is to have (`pgnotifybus trigger list` shows those '
            'of now): pgnotifybus trigger install %I.%I %s', TG_TABLE_SCHEMA, TG_TABLE_NAME,
            {literal(shlex.join(words))});"""

    def _append(self, *fields: str) -> str:
        more = {
            "reread": """ || ',"reread":true'""",
            "count": """ || coalesce(',"count":' || _count::text, '')""",
        }
        told = "".join(more[field] for field in fields)
        return (
            f"    PERFORM {self._schema}.append(\n"
            f"      {self._channel}, _head{told} || '}}', NULL::text, NULL::jsonb);"
        )

    def _any(self, transition: str) -> str:
        when = self._definition.when
        where = "" if when is None else f" WHERE (\n{when}\n)"
        return f"EXISTS (SELECT 1 FROM {transition} AS {self._table}{where})"

    # -- rows -------------------------------------------------------------------------------------

    def _batches(self, rows: str) -> str:
        """The names and payloads of events, in their order, in batches."""
        return f"""
      SELECT array_agg(sized.name ORDER BY sized.number),
             array_agg(sized.payload ORDER BY sized.number)
        FROM (
          SELECT told.number, told.name, told.payload,
                 sum(octet_length(told.payload)) OVER (
                   ORDER BY told.number ROWS UNBOUNDED PRECEDING) / {BATCH_BYTES} AS batch
            FROM ({rows}) AS told
        ) AS sized
       GROUP BY sized.batch ORDER BY sized.batch"""

    def _one_sided(self, key: str, values: str) -> str:
        """The events of an INSERT or a DELETE."""
        columns = self._definition.values
        told = f""" || ',"{values}":' || {self._object("value", columns)}""" if columns else ""
        return f"""
              SELECT each.number, {self._name()} AS name,
                     _head || ',"{key}":' || {self._object("part", self._definition.key)}{told}
                       || '}}' AS payload
                FROM {self._rows("changed")}
            """

    def _paired(self) -> str:
        """The events of an UPDATE: the rows that are not as they were, in what is looked at."""
        values = range(len(self._definition.values))
        differs = [
            f"{each} IS DISTINCT FROM {each.replace('before.', 'after.')}"
            for each in ("before.key", *(f"before.value_{n}" for n in values))
        ]
        matters = f" WHERE {' OR '.join(differs)}" if self._definition.columns is not None else ""
        changed, old = (
            f"""|| coalesce(',"{field}":{{' || {self._changes(side)} || '}}', '')
                       """
            if values
            else ""
            for field, side in (("changed", "after"), ("old", "before"))
        )
        return f"""
              SELECT coalesce(after.number, before.number) AS number,
                     CASE WHEN after.key IS NULL THEN before.name ELSE after.name END AS name,
                     _head || coalesce(',"key":' || after.key, '')
                       || CASE WHEN before.key IS DISTINCT FROM after.key
                               THEN coalesce(',"old_key":' || before.key, '') ELSE '' END
                       {changed}{old}|| '}}' AS payload
                FROM ({self._side("old_rows")}) AS before
                FULL JOIN ({self._side("new_rows")}) AS after ON after.number = before.number
               {matters}
            """

    def _changes(self, side: str) -> str:
        """The members of an object that has the values that differ; NULL if there is none."""
        members = ", ".join(
            f"CASE WHEN before.value_{n} IS DISTINCT FROM after.value_{n}"
            f" THEN {literal(_member(name))} || {side}.value_{n} END"
            for n, name in enumerate(self._definition.values)
        )
        return f"nullif(array_to_string(ARRAY[{members}], ','), '')"

    def _side(self, transition: str) -> str:
        """The rows before or after: no value is NULL, so that NULL means that there is no row."""
        values = "".join(
            f",\n                       {_json(f'each.value_{n}')} AS value_{n}"
            for n in range(len(self._definition.values))
        )
        return f"""
                SELECT each.number, {self._name()} AS name,
                       {self._object("part", self._definition.key)} AS key{values}
                  FROM {self._rows(transition)}
                """

    def _rows(self, transition: str) -> str:
        """The rows of a transition table that meet the condition, with their places in it."""
        when = self._definition.when
        told = "" if when is None else f", CASE WHEN (\n{when}\n) THEN true END AS told"
        columns = "".join(
            f", {self._table}.{quote(name)} AS {what}_{n}"
            for what, names in (("part", self._definition.key), ("value", self._definition.values))
            for n, name in enumerate(names)
        )
        return (
            f"(SELECT row_number() OVER () AS number{columns}{told}"
            f" FROM {transition} AS {self._table}) AS each{' WHERE each.told' if told else ''}"
        )

    def _name(self) -> str:
        """The key as the text of the event's key; it is spelled as in the payload."""
        parts = [f"each.part_{n}" for n in range(len(self._definition.key))]
        if len(parts) == 1:
            return f"json_build_array({parts[0]}) ->> 0"
        return f"'[' || array_to_string(ARRAY[{', '.join(map(_json, parts))}], ',') || ']'"

    def _object(self, what: str, names: tuple[str, ...]) -> str:
        columns = ", ".join(f"each.{what}_{n} AS {quote(name)}" for n, name in enumerate(names))
        # The .* keeps a column of the name "named" from being taken for the row.
        return f"(SELECT row_to_json(named.*)::text FROM (SELECT {columns}) AS named)"


def _json(column: str) -> str:
    return f"coalesce(to_json({column})::text, 'null')"


def _member(name: str) -> str:
    """The name of a member of an object, as `row_to_json` writes it."""
    return f"{json.dumps(name, ensure_ascii=False)}:"
