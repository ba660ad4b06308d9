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
from pgnotifybus.core.position import TIMELINE_BITS, Instant, first_era, last_era
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.links.base import Runner, ServerError
from pgnotifybus.log.here import IDLE
from pgnotifybus.log.newer import newer

BATCH: Final = 1000
"""Events deleted in one transaction."""

# What an event takes beside its payload: the row, and its place in three indexes.
_EVENT_BYTES: Final = 150

_KEPT: Final = "log.keep_seconds * interval '1 second'"

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

_KEY: Final = "pg_catalog.hashtext('pgnotifybus log prune'), pg_catalog.hashtext({name})"
_TRY_TURN: Final = f"SELECT pg_catalog.pg_try_advisory_xact_lock({_KEY})::text"
_AWAIT_TURN: Final = f"SELECT (pg_catalog.pg_advisory_xact_lock({_KEY}) IS NOT NULL)::text"

_LAST: Final = """\
SELECT segment.era::text, segment.snapshot::text, segment.last_id::text, here.era::text
  FROM (SELECT {schema}.era() AS era) AS here
  LEFT JOIN (SELECT * FROM {schema}.segments ORDER BY id DESC LIMIT 1) AS segment ON true"""

_DUE: Final = """\
SELECT EXISTS ({new})::text,
       EXISTS (SELECT 1 FROM {schema}.segments AS segment
                WHERE segment.closed_at <= pg_catalog.clock_timestamp() - {age})::text,
       EXISTS ({too_large})::text,
       log.keep_seconds::text
  FROM {schema}.log AS log"""

_CLOSE_SEGMENT: Final = """\
INSERT INTO {schema}.segments (era, snapshot, events, bytes, last_id)
SELECT {schema}.era(), pg_catalog.pg_current_snapshot(), added.events, added.bytes,
       greatest(added.last_id, {last_id})
  FROM (SELECT pg_catalog.count(*) AS events,
               pg_catalog.sum(pg_catalog.pg_column_size(new.payload) + {event_bytes}) AS bytes,
               pg_catalog.max(new.id) AS last_id
          FROM ({new}) AS new) AS added
 WHERE added.events > 0"""

# Those who wait at a quiet channel move on every minute and a half, whatever others write.
_TOO_LARGE: Final = """\
SELECT kept.* FROM (
  SELECT segment.*, pg_catalog.sum(segment.bytes) OVER (ORDER BY segment.id DESC) AS up_to
    FROM {schema}.segments AS segment) AS kept, {schema}.log AS log
 WHERE kept.up_to > log.keep_bytes
   AND kept.closed_at <= pg_catalog.clock_timestamp() - {grace} * interval '1 second'"""

_RAISE_FLOOR: Final = """\
WITH gone AS MATERIALIZED (
  SELECT segment.* FROM {schema}.segments AS segment, {schema}.log AS log
   WHERE segment.closed_at <= pg_catalog.clock_timestamp() - {age}
      OR segment.id IN (SELECT large.id FROM ({too_large}) AS large)
   ORDER BY segment.id DESC LIMIT 1
),
raised AS (
  UPDATE {schema}.log AS log
     SET floor_era = gone.era, floor = gone.snapshot,
         floor_id = greatest(log.floor_id, gone.last_id)
    FROM gone RETURNING 1
)
DELETE FROM {schema}.segments AS segment USING gone WHERE segment.id <= gone.id"""

# Below a floor of a foreign server there is nothing of ours.
_DELETE: Final = """\
WITH old AS MATERIALIZED (
  SELECT events.id FROM {schema}.events AS events, {schema}.log AS log,
         (SELECT {schema}.era() AS era) AS here
   WHERE events.id <= log.floor_id
     AND (events.era >> {bits} <> here.era >> {bits}
          OR (log.floor_era >> {bits} = here.era >> {bits} AND events.era <= log.floor_era
              AND pg_catalog.pg_visible_in_snapshot(events.xid, log.floor)))
   ORDER BY events.id LIMIT {limit}
), gone AS (
  DELETE FROM {schema}.events AS events USING old WHERE events.id = old.id RETURNING 1
)
SELECT pg_catalog.count(*)::text FROM gone"""

GRACE: Final = 2 * IDLE
"""The seconds for which events are kept although there are too many."""


class Due(NamedTuple):
    """What there is to do."""

    new: bool
    """There are events that are in no segment."""
    old: bool
    """There are segments that need not be kept."""
    keep_seconds: float | None


class Last(NamedTuple):
    """The newest segment."""

    instant: Instant
    id: int


async def due(runner: Runner, schema: str) -> Due:
    """Ask what there is to do; writes nothing."""
    _, new = await _new(runner, schema, "1")
    sql = _DUE.format(schema=quote(schema), new=new, age=_KEPT, too_large=_too_large(schema))
    for found, aged, large, seconds in await runner.fetch(sql):
        keep = None if seconds is None else float(seconds)
        return Due(found == "true", aged == "true" or large == "true", keep)
    return Due(False, False, None)  # the row was deleted, so nobody knows what to keep


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
    await runner.execute(_BEGIN)
    try:
        turn = _AWAIT_TURN if wait else _TRY_TURN
        [(ours,)] = await runner.fetch(turn.format(name=literal(schema)))
        if ours == "true":
            await _cut(runner, schema, older_than)
    except ServerError:
        await runner.execute("ROLLBACK")
        raise
    await runner.execute("COMMIT")
    return ours == "true"


async def delete_some(runner: Runner, schema: str) -> int:
    """Delete some of what is below the floor; how many."""
    sql = _DELETE.format(schema=quote(schema), limit=BATCH, bits=TIMELINE_BITS)
    [(count,)] = await runner.fetch(sql)
    return int(count or 0)


async def _cut(runner: Runner, schema: str, older_than: float | None) -> None:
    last, new = await _new(runner, schema, "id, payload")
    await runner.execute(
        _CLOSE_SEGMENT.format(
            schema=quote(schema),
            event_bytes=_EVENT_BYTES,
            new=new,
            last_id="NULL" if last is None else last.id,
        )
    )
    age = _KEPT if older_than is None else f"{older_than!r} * interval '1 second'"
    await runner.execute(
        _RAISE_FLOOR.format(schema=quote(schema), age=age, too_large=_too_large(schema))
    )


async def _new(runner: Runner, schema: str, columns: str) -> tuple[Last | None, str]:
    """The newest segment, and SELECTs of what is in none."""
    [(era, snapshot, last_id, here)] = await runner.fetch(_LAST.format(schema=quote(schema)))
    events = f"SELECT {columns} FROM {quote(schema)}.events AS new"
    if era is None:
        return None, events
    last = Last(Instant(int(era), Snapshot.parse(snapshot or "")), int(last_id or 0))
    new = newer(schema, last.instant, columns=columns)
    first = first_era(int(here or 0))
    if first != last.instant.first_era:  # the segment was restored: here, nothing is in one
        new += f" UNION ALL {events} WHERE new.era BETWEEN {first} AND {last_era(first)}"
    return last, new


def _too_large(schema: str) -> str:
    return _TOO_LARGE.format(schema=quote(schema), grace=GRACE)
