"""Deleting what need not be kept: by age, by size, and never without a trace. Layer: log.

The log is cut into *segments*: now and then a snapshot is written down, with the time, and what was
new since the one before. So the age of an event is counted from when it could be read, and not from
when it was written, which may have been long before its commit. Segments are deleted from the
oldest on: first the *floor* is raised to the snapshot of the last of them, so that a cursor that
has not seen all of it is refused from then on; then the events are deleted, a thousand in a
transaction. Nothing is locked that a writer or a reader needs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pgnotifybus.core.names import literal, quote
from pgnotifybus.links.base import Runner

BATCH: Final = 1000
"""Events deleted in one transaction."""

# What an event takes beside its payload: the row, and its place in three indexes.
_EVENT_BYTES: Final = 150

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

_KEY: Final = "pg_catalog.hashtext('pgnotifybus log prune'), pg_catalog.hashtext({name})"
_TRY_TURN: Final = f"SELECT pg_catalog.pg_try_advisory_xact_lock({_KEY})::text"
_AWAIT_TURN: Final = f"SELECT (pg_catalog.pg_advisory_xact_lock({_KEY}) IS NOT NULL)::text"

# Eras of other servers come first, whatever their number: those events were there before all.
_IS_NEW: Final = """\
(last.id IS NULL
 OR (new.era > last.era AND new.era >> 24 = last.era >> 24)
 OR (new.era <= last.era AND new.era >> 24 = last.era >> 24
     AND NOT pg_catalog.pg_visible_in_snapshot(new.xid, last.snapshot))
 OR (here.era >> 24 <> last.era >> 24 AND new.era >> 24 = here.era >> 24))"""

_DUE: Final = """\
WITH last AS (SELECT * FROM {schema}.segments ORDER BY id DESC LIMIT 1)
SELECT (EXISTS (SELECT 1 FROM {schema}.events
                 WHERE id > coalesce((SELECT last_id FROM last), 0))
        OR EXISTS (SELECT 1 FROM {schema}.events AS new, last
                    WHERE new.era = last.era
                      AND new.xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(last.snapshot)
                                                 FROM last))))::text,
       EXISTS (SELECT 1 FROM {schema}.segments AS segment
                WHERE segment.closed_at <= pg_catalog.clock_timestamp()
                                           - log.keep_seconds * interval '1 second')::text,
       (coalesce((SELECT pg_catalog.sum(segment.bytes) FROM {schema}.segments AS segment), 0)
        > log.keep_bytes)::text,
       log.keep_seconds::text
  FROM {schema}.log AS log"""

_CLOSE_SEGMENT: Final = """\
WITH last AS MATERIALIZED (SELECT * FROM {schema}.segments ORDER BY id DESC LIMIT 1),
here AS MATERIALIZED (SELECT {schema}.era() AS era),
added AS MATERIALIZED (
  SELECT pg_catalog.count(*) AS events,
         pg_catalog.sum(pg_catalog.pg_column_size(new.payload) + {event_bytes}) AS bytes,
         pg_catalog.max(new.id) AS last_id
    FROM {schema}.events AS new CROSS JOIN here LEFT JOIN last ON true
   WHERE {is_new}
)
INSERT INTO {schema}.segments (era, snapshot, events, bytes, last_id)
SELECT here.era, pg_catalog.pg_current_snapshot(), added.events, added.bytes,
       greatest(added.last_id, (SELECT last_id FROM last))
  FROM here, added WHERE added.events > 0"""

_RAISE_FLOOR: Final = """\
WITH log AS MATERIALIZED (SELECT * FROM {schema}.log),
kept AS MATERIALIZED (
  SELECT segment.*,
         pg_catalog.sum(segment.bytes) OVER (ORDER BY segment.id DESC) - segment.bytes AS later
    FROM {schema}.segments AS segment
),
total AS MATERIALIZED (SELECT pg_catalog.sum(bytes) AS bytes FROM kept),
gone AS MATERIALIZED (
  SELECT kept.* FROM kept, log, total
   WHERE kept.closed_at <= pg_catalog.clock_timestamp() - {age}
      OR (total.bytes > log.keep_bytes AND kept.later + kept.bytes > log.keep_bytes)
   ORDER BY kept.id DESC LIMIT 1
),
raised AS (
  UPDATE {schema}.log AS log
     SET floor_era = gone.era, floor = gone.snapshot,
         floor_id = greatest(log.floor_id, gone.last_id)
    FROM gone RETURNING 1
)
DELETE FROM {schema}.segments AS segment USING gone WHERE segment.id <= gone.id"""

_DELETE: Final = """\
WITH old AS MATERIALIZED (
  SELECT events.id FROM {schema}.events AS events, {schema}.log AS log
   WHERE events.id <= log.floor_id
     AND (events.era >> 24 <> log.floor_era >> 24
          OR (events.era <= log.floor_era
              AND pg_catalog.pg_visible_in_snapshot(events.xid, log.floor)))
   ORDER BY events.id LIMIT {limit}
), gone AS (
  DELETE FROM {schema}.events AS events USING old WHERE events.id = old.id RETURNING 1
)
SELECT pg_catalog.count(*)::text FROM gone"""


class Due(NamedTuple):
    """What there is to do."""

    new: bool
    """There are events that are in no segment."""
    old: bool
    """There are segments that need not be kept."""
    keep_seconds: float | None


async def due(runner: Runner, schema: str) -> Due:
    """Ask what there is to do; writes nothing."""
    [(new, aged, large, seconds)] = await runner.fetch(_DUE.format(schema=quote(schema)))
    keep = None if seconds is None else float(seconds)
    return Due(new == "true", aged == "true" or large == "true", keep)


async def cut(
    runner: Runner, schema: str, *, older_than: float | None = None, wait: bool = False
) -> bool:
    """Close a segment, and raise the floor over those that need not be kept.

    Args:
        runner: A connection that is in no transaction.
        schema: The schema of the log.
        older_than: Keep what could be read so many seconds ago or later, whatever the retention
            says; None for the retention.
        wait: Whether to wait while somebody else does it.

    Returns:
        Whether it was done: False if somebody else is doing it.
    """
    name = quote(schema)
    age = "log.keep_seconds * interval '1 second'"
    if older_than is not None:
        age = f"{older_than!r} * interval '1 second'"
    await runner.execute(_BEGIN)
    try:
        turn = _AWAIT_TURN if wait else _TRY_TURN
        [(ours,)] = await runner.fetch(turn.format(name=literal(schema)))
        if ours == "true":
            await runner.execute(
                _CLOSE_SEGMENT.format(schema=name, event_bytes=_EVENT_BYTES, is_new=_IS_NEW)
            )
            await runner.execute(_RAISE_FLOOR.format(schema=name, age=age))
    finally:
        await runner.execute("COMMIT")  # or ROLLBACK, if a statement has failed
    return ours == "true"


async def delete_some(runner: Runner, schema: str) -> int:
    """Delete some of what is below the floor; how many."""
    [(count,)] = await runner.fetch(_DELETE.format(schema=quote(schema), limit=BATCH))
    return int(count or 0)
