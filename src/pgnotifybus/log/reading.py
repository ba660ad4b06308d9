"""The queries that read the log. Layer: log.

They are scripts: the same for a connection of ours and for one of the caller's. What has been read
is said by snapshots, see `core/position.py`.

A read that finds few new events is answered through the index on transactions, in one statement.
Where there are many, they would all have to be sorted for the first of them: so one goes by ids,
in statements of bounded length, up to the snapshot of the first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from pgnotifybus.core.names import quote
from pgnotifybus.core.position import Instant, Position, behind
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.database.queries import Query, Script, array
from pgnotifybus.log.here import here_of, here_sql, look
from pgnotifybus.log.newer import is_in, is_newer, is_not_before, newer, parameter
from pgnotifybus.log.rows import COLUMNS, PAGE_BYTES, Page, page_of
from pgnotifybus.log.start import Start

WINDOW: Final = 100_000
"""How many ids one statement looks at, whether they are of the channels or not."""
FEW: Final = 10_000
"""How many new events, of whatever channels, are few."""

_CHANNELS: Final = "new.channel = ANY (CAST(CAST($1 AS text) AS text[]))"

_FIRST_PAGE: Final = """\
WITH looked AS MATERIALIZED (SELECT * FROM ({newer}) AS new LIMIT {few} + 1)
{here}
UNION ALL
{rows}"""

_NEXT_PAGE: Final = """\
WITH first AS MATERIALIZED (SELECT coalesce(pg_catalog.min(id), 0) AS id
                              FROM {schema}.events WHERE id > {after})
{here}
UNION ALL
{rows}"""

# The first of them; but no more bytes than are good, or one that has more.
_ROWS: Final = f"""\
(SELECT {COLUMNS} FROM (
   SELECT new.*, pg_catalog.sum(pg_catalog.octet_length(new.payload))
                 OVER (ORDER BY new.id ROWS UNBOUNDED PRECEDING) AS running
     FROM (SELECT new.* FROM {{table}} AS new WHERE {{conditions}}
            ORDER BY new.id LIMIT {{limit}}) AS new) AS new
  WHERE new.running - pg_catalog.octet_length(new.payload) < {PAGE_BYTES} ORDER BY new.id)"""

# Whatever was seen by the snapshot of a segment was appended before that was closed.
_BEFORE: Final = """\
SELECT segment.era::text, segment.snapshot::text FROM {schema}.segments AS segment
 WHERE segment.closed_at < CAST('epoch' AS timestamptz) + {time} * interval '1 microsecond'
 ORDER BY segment.id DESC LIMIT 1"""

_LAG: Final = """\
SELECT pg_catalog.count(*)::text,
       extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.min(new.created_at))::text
  FROM {table} AS new WHERE {conditions}"""


class Lag(NamedTuple):
    """How much lies behind a cursor."""

    events: int
    seconds: float
    """How long ago the oldest of them was appended; 0 if there is none."""


def read(
    schema: str,
    position: Position,
    channels: Collection[str],
    limit: int,
    target: Instant | None = None,
) -> Script[Page]:
    """Read on from a position.

    Args:
        schema: The schema of the log.
        position: Where to go on.
        channels: The channels to read; at least one.
        limit: The most events to answer; at least 1.
        target: The snapshot to read up to, if the position is not on the way to one: what is
            visible now, if None.

    Raises:
        EpochMismatch, CursorExpired: If it cannot go on from there.
        SchemaMissing: If the log is not there.
        LinkLost: If the server is a standby.
    """
    if position.until is not None:
        return (yield from _next_page(schema, position, channels, limit))
    if position.since is not None:
        return (yield from _first_page(schema, position, channels, limit, target))
    if target is None:
        here = yield from look(schema)
        here.check(position)
        target = here.now
    way = position.on_the_way(target, 0)
    return (yield from _next_page(schema, way, channels, limit))


def begin(schema: str, start: Start) -> Script[Position]:
    """The position of what was passed as `after`.

    Raises:
        EpochMismatch, CursorExpired: If it is a cursor from which one cannot go on.
        SchemaMissing, LinkLost: As for `read`.
    """
    here = yield from look(schema)
    if start.cursor is not None:
        here.check(start.cursor.position)
        return start.cursor.position
    if start.is_now:
        return behind(here.epoch, here.now)
    if start.microseconds is None:
        return here.oldest
    rows = yield Query(_BEFORE.format(schema=quote(schema), time=start.microseconds), ())
    oldest = here.oldest
    for era, snapshot in rows:
        if here.knows(int(era or 0)):
            since = Instant(int(era or 0), Snapshot.parse(snapshot or ""))
            oldest = Position(here.epoch, here.now.era, since)
    return oldest._replace(time=start.microseconds)


def lag(schema: str, position: Position, channels: Collection[str]) -> Script[Lag]:
    """Count what lies behind a position.

    Raises:
        EpochMismatch, CursorExpired, SchemaMissing, LinkLost: As for `read`.
    """
    here = yield from look(schema)
    here.check(position)
    parameters = [array(list(channels))]
    table, conditions = f"{quote(schema)}.events", [_CHANNELS]
    since = "true"
    if position.since is not None:
        parameters.append(str(position.since.snapshot))
        since = is_newer(position.since, parameter(2))
        if position.until is None:
            table = f"({newer(schema, position.since, parameter(2), 'channel, created_at')})"
    if position.until is not None:  # what is left of the way, and whatever came later
        parameters.append(str(position.until.snapshot))
        later = is_newer(position.until, parameter(len(parameters)))
        conditions.append(f"(({since} AND new.id > {position.after}) OR {later})")
    if position.time is not None:
        conditions.append(is_not_before(position.time))
    sql = _LAG.format(table=table, conditions=" AND ".join(conditions))
    [(count, seconds)] = yield Query(sql, tuple(parameters))
    return Lag(int(count or 0), float(seconds or 0))


# -- inside ---------------------------------------------------------------------------------------


def _first_page(
    schema: str,
    position: Position,
    channels: Collection[str],
    limit: int,
    target: Instant | None,
) -> Script[Page]:
    assert position.since is not None
    parameters = [array(list(channels)), str(position.since.snapshot)]
    conditions = [_CHANNELS, f"(SELECT pg_catalog.count(*) FROM looked) <= {FEW}"]
    if target is not None:
        conditions.append(is_in(target, parameter(3)))
        parameters.append(str(target.snapshot))
    if position.time is not None:
        conditions.append(is_not_before(position.time))
    sql = _FIRST_PAGE.format(
        few=FEW,
        newer=newer(schema, position.since, parameter(2)),
        here=here_sql(schema, "(SELECT pg_catalog.count(*) FROM looked)"),
        rows=_ROWS.format(table="looked", conditions=" AND ".join(conditions), limit=limit),
    )
    rows = yield Query(sql, tuple(parameters))
    here = here_of(rows, schema)
    here.check(position)
    target = target or here.now
    if here.extra > FEW:
        return Page(here, [], position, target, position.on_the_way(target, 0), True)
    return page_of(here, rows, position, target, limit, end=None)


def _next_page(
    schema: str, position: Position, channels: Collection[str], limit: int
) -> Script[Page]:
    assert position.until is not None
    parameters = [array(list(channels)), str(position.until.snapshot)]
    conditions = [
        f"new.id > {position.after} AND new.id < (SELECT id FROM first) + {WINDOW}",
        _CHANNELS,
        is_in(position.until, parameter(2)),
    ]
    if position.since is not None:
        conditions.append(is_newer(position.since, parameter(3)))
        parameters.append(str(position.since.snapshot))
    if position.time is not None:
        conditions.append(is_not_before(position.time))
    events = f"{quote(schema)}.events"
    sql = _NEXT_PAGE.format(
        schema=quote(schema),
        after=position.after,
        here=here_sql(schema, "(SELECT id FROM first)"),
        rows=_ROWS.format(table=events, conditions=" AND ".join(conditions), limit=limit),
    )
    rows = yield Query(sql, tuple(parameters))
    here = here_of(rows, schema)
    here.check(position)
    last = here.extra + WINDOW - 1  # of those that were looked at, if there was one at all
    end = last if here.extra and last < here.highest else None
    return page_of(here, rows, position, position.until, limit, end)
