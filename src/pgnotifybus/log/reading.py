"""The queries that read the log, and what they answer. Layer: log.

They are scripts: the same for a connection of ours and for one of the caller's. What has been read
is said by snapshots, see `core/position.py`; the rules that are SQL here are:

- an event is *new since* a snapshot if its transaction had not ended then, or it was written in a
  later era;
- it is *in* a snapshot if its transaction had ended then. Events of foreign eras (of a database
  that this one was restored from) were there before all.

A read that finds few new events is answered through the index on transactions, in one statement. A
longer one goes on by ids, in statements of bounded length, up to the snapshot of its first.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from pgnotifybus.core.names import quote
from pgnotifybus.core.position import (
    EPOCH_BYTES,
    Instant,
    Position,
    behind,
    first_era,
    last_era,
)
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.database.queries import Query, Script, array
from pgnotifybus.errors import CursorExpired, EpochMismatch, EventLogError, LinkLost, SchemaMissing
from pgnotifybus.links.base import Rows
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event import NO_HEADERS, Event, Headers
from pgnotifybus.log.start import Start

WINDOW: Final = 100_000
"""How many ids one statement looks at, whether they are of the channels or not."""
PAGE_BYTES: Final = 8 * 1024 * 1024
"""How many bytes of payload one statement answers, if it is more than one event."""

# One row, in the snapshot of the statement. What a standby cannot answer, it is not asked.
_HERE: Final = """\
SELECT NULL::text, log.epoch::text, pg_catalog.pg_current_snapshot()::text,
       pg_catalog.concat_ws(' ', log.floor_era, log.floor),
       pg_catalog.concat_ws(' ', log.floor_id,
                            (SELECT pg_catalog.max(events.id) FROM {schema}.events AS events)),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.concat_ws(' ', {schema}.era(),
                                      pg_catalog.pg_current_wal_insert_lsn(),
                                      pg_catalog.pg_current_wal_flush_lsn()) END
  FROM {schema}.log AS log"""

# `to_json` writes a time in the same form whatever DateStyle and TimeZone are.
_COLUMNS: Final = """\
new.id::text, new.channel, new.key, new.payload, new.headers::text,
       pg_catalog.to_json(new.created_at AT TIME ZONE 'UTC')::text"""

_TEXT: Final = "CAST(${} AS text)"
_CHANNELS: Final = "new.channel = ANY (CAST(CAST($1 AS text) AS text[]))"

# `id + 0`: ordered by the index of the primary key, all of the log would be looked through.
_FIRST_PAGE: Final = """\
{here}
UNION ALL
(SELECT {columns} FROM (SELECT new.*, {running} FROM (SELECT new.*
   FROM (SELECT * FROM {schema}.events AS new
          WHERE new.era = {since_era}
            AND new.xid >= pg_catalog.pg_snapshot_xmax(CAST(CAST($2 AS text) AS pg_snapshot))
            AND {channels}
         UNION ALL
         SELECT * FROM {schema}.events AS new
          WHERE new.era = {since_era}
            AND new.xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(
                                              CAST(CAST($2 AS text) AS pg_snapshot))))
            AND {channels}
         UNION ALL
         SELECT * FROM {schema}.events AS new
          WHERE new.era > {since_era} AND new.era <= {last_era}
            AND {channels}) AS new
  WHERE {until} AND {time}
  ORDER BY new.id + 0 LIMIT {limit}) AS new) AS new WHERE {bounded} ORDER BY new.id)"""

_NEXT_PAGE: Final = """\
{here}
UNION ALL
(SELECT {columns} FROM (SELECT new.*, {running} FROM (SELECT new.*
   FROM {schema}.events AS new
  WHERE new.id > {after} AND new.id <= {window_end} AND {channels}
    AND {since} AND {until} AND {time}
  ORDER BY new.id LIMIT {limit}) AS new) AS new WHERE {bounded} ORDER BY new.id)"""

_RUNNING: Final = (
    "pg_catalog.sum(pg_catalog.octet_length(new.payload)) "
    "OVER (ORDER BY new.id ROWS UNBOUNDED PRECEDING) AS running"
)
_BOUNDED: Final = f"new.running - pg_catalog.octet_length(new.payload) < {PAGE_BYTES}"

_SEES: Final = "pg_catalog.pg_visible_in_snapshot(new.xid, CAST(CAST(${} AS text) AS pg_snapshot))"

# Whatever was seen by the snapshot of a segment was appended before that was closed.
_BEFORE: Final = """\
SELECT segment.era::text, segment.snapshot::text FROM {schema}.segments AS segment
 WHERE segment.closed_at < CAST('epoch' AS timestamptz) + {time} * interval '1 microsecond'
 ORDER BY segment.id DESC LIMIT 1"""

_LAG: Final = """\
SELECT pg_catalog.count(*)::text,
       extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.min(new.created_at))::text
  FROM {schema}.events AS new WHERE {channels} AND {since}"""


class Here(NamedTuple):
    """The log at one moment."""

    epoch: bytes
    now: Instant
    """What can be seen."""
    floor: Instant | None
    """What retention has deleted: events in this snapshot, up to `floor_id`."""
    floor_id: int
    highest: int
    """The largest id that can be seen."""
    inserted: str
    """The end of the write-ahead log."""
    durable: bool
    """Whether all of it is on disk, and with it all that `now` has seen."""

    @property
    def oldest(self) -> Position:
        """The place in front of everything that is kept."""
        floor = self.floor if self.floor is not None and self.knows(self.floor.era) else None
        return Position(self.epoch, self.now.era, floor)

    def knows(self, era: int) -> bool:
        """Whether an era is of this server."""
        return first_era(era) == first_era(self.now.era)

    def check(self, position: Position) -> None:
        """See that reading can go on from a position with nothing lost.

        Raises:
            EpochMismatch: If it is of another log, or of what this server has never seen.
            CursorExpired: If retention has deleted what lies behind it.
        """
        if position.epoch != self.epoch:
            raise EpochMismatch(
                "the cursor is of another event log: the log was removed and made anew, or this is "
                "another database"
            )
        if not self.knows(position.era):
            raise EpochMismatch(
                "the cursor is of the same event log on another server or database: this one was "
                "restored from a dump, or copied"
            )
        newest = position.newest
        if position.era > self.now.era or not (newest is None or self.now.covers(newest)):
            raise EpochMismatch(
                "the cursor is ahead of this server: it was restored to an earlier time, or the "
                "cursor is of a primary that has been replaced"
            )
        if self.floor is None or not self.knows(self.floor.era):
            return
        if position.since is not None and position.since.covers(self.floor):
            return
        if position.until is not None and position.after >= self.floor_id:
            return
        raise CursorExpired(
            "retention has deleted events behind this cursor: go on after `.oldest`, or keep "
            "events longer (`schema.install(event_retention=...)`)",
            Cursor.at(self.oldest),
        )


class Lag(NamedTuple):
    """How much lies behind a cursor."""

    events: int
    seconds: float
    """How long ago the oldest of them was appended; 0 if there is none."""


class Page(NamedTuple):
    """What one statement has read."""

    here: Here
    rows: Rows
    start: Position
    target: Instant
    end: Position
    """The place behind them."""
    more: bool
    """Whether there may be more on the same way."""

    @property
    def events(self) -> list[Event[str]]:
        """The events; made of the rows each time that one asks."""
        events = events_of(self.rows, self.start, self.target)
        if events and not self.more:
            events[-1] = events[-1]._replace(cursor=Cursor.at(self.end))
        return events


def look(schema: str) -> Script[Here]:
    """Ask how the log is now.

    Raises:
        SchemaMissing, LinkLost: As for `read`.
    """
    rows = yield Query(_HERE.format(schema=quote(schema)), ())
    return _here(rows, schema)


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
    since = here.oldest.since
    if start.microseconds is not None:
        rows = yield Query(_BEFORE.format(schema=quote(schema), time=start.microseconds), ())
        for era, snapshot in rows:
            if here.knows(int(era or 0)):
                since = Instant(int(era or 0), Snapshot.parse(snapshot or ""))
    return here.oldest._replace(since=since, time=start.microseconds)


def lag(schema: str, position: Position, channels: Collection[str]) -> Script[Lag]:
    """Count what lies behind a position.

    Raises:
        EpochMismatch, CursorExpired, SchemaMissing, LinkLost: As for `read`.
    """
    here = yield from look(schema)
    here.check(position)
    parameters = [array(list(channels))]
    since = "true"
    if position.since is not None:
        parameters.append(str(position.since.snapshot))
        since = _new_since(position.since, len(parameters))
    if position.time is not None:
        since += f" AND {_not_before(position.time)}"
    if position.until is not None:  # what is left of the way, and whatever came later
        parameters.append(str(position.until.snapshot))
        later = _new_since(position.until, len(parameters))
        since = f"(({since} AND new.id > {position.after}) OR {later})"
    sql = _LAG.format(schema=quote(schema), channels=_CHANNELS, since=since)
    [(count, seconds)] = yield Query(sql, tuple(parameters))
    return Lag(int(count or 0), float(seconds or 0))


def is_durable(inserted: str) -> Query:
    """Ask whether the write-ahead log is on disk up to a place."""
    sql = "SELECT (pg_catalog.pg_current_wal_flush_lsn() >= CAST(CAST($1 AS text) AS pg_lsn))::text"
    return Query(sql, (inserted,))


FLUSH: Final = """\
BEGIN; SET LOCAL synchronous_commit = 'local';
SELECT pg_catalog.pg_logical_emit_message(true, 'pgnotifybus', ''); COMMIT"""
"""Have the write-ahead log written to disk: a commit waits for it, if it has written anything."""


# -- inside ---------------------------------------------------------------------------------------


def _first_page(
    schema: str,
    position: Position,
    channels: Collection[str],
    limit: int,
    target: Instant | None,
) -> Script[Page]:
    assert position.since is not None
    since_era, snapshot = position.since
    parameters = [array(list(channels)), str(snapshot)]
    until = "true"
    if target is not None:
        until = _in(target, 3)
        parameters.append(str(target.snapshot))
    rows = yield Query(
        _FIRST_PAGE.format(
            here=_HERE.format(schema=quote(schema)),
            columns=_COLUMNS,
            schema=quote(schema),
            since_era=since_era,
            last_era=last_era(since_era),
            channels=_CHANNELS,
            until=until,
            time="true" if position.time is None else _not_before(position.time),
            limit=limit,
            running=_RUNNING,
            bounded=_BOUNDED,
        ),
        tuple(parameters),
    )
    here = _here(rows, schema)
    here.check(position)
    target = target or here.now
    return _page(here, rows, position, target, limit, end=None)


def _next_page(
    schema: str, position: Position, channels: Collection[str], limit: int
) -> Script[Page]:
    assert position.until is not None
    parameters = [array(list(channels)), str(position.until.snapshot)]
    since = time = "true"
    if position.since is not None:
        since = _new_since(position.since, 3)
        parameters.append(str(position.since.snapshot))
    if position.time is not None:
        time = _not_before(position.time)
    window_end = position.after + WINDOW
    rows = yield Query(
        _NEXT_PAGE.format(
            here=_HERE.format(schema=quote(schema)),
            columns=_COLUMNS,
            schema=quote(schema),
            after=position.after,
            window_end=window_end,
            channels=_CHANNELS,
            since=since,
            until=_in(position.until, 2),
            time=time,
            limit=limit,
            running=_RUNNING,
            bounded=_BOUNDED,
        ),
        tuple(parameters),
    )
    here = _here(rows, schema)
    here.check(position)
    end = None if window_end >= here.highest else window_end
    return _page(here, rows, position, position.until, limit, end)


def _new_since(since: Instant, parameter: int) -> str:
    """That an event is new since a snapshot."""
    era = since.era
    return (
        f"((new.era > {era} AND new.era <= {last_era(era)}) OR "
        f"(new.era >= {first_era(era)} AND new.era <= {era} AND NOT {_SEES.format(parameter)}))"
    )


def _not_before(microseconds: int) -> str:
    """That an event was not appended before a time."""
    return (
        "new.created_at >= CAST('epoch' AS timestamptz) "
        f"+ {microseconds} * interval '1 microsecond'"
    )


def _in(target: Instant, parameter: int) -> str:
    """That an event is in a snapshot."""
    first, last = first_era(target.era), last_era(target.era)
    return (
        f"(new.era < {first} OR new.era > {last} OR "
        f"(new.era <= {target.era} AND {_SEES.format(parameter)}))"
    )


def _here(rows: Rows, schema: str) -> Here:
    header = next((row for row in rows if row[0] is None), None)
    if header is None:
        raise SchemaMissing(
            f"the table log of the schema {schema!r} is empty, so the log cannot be told from "
            "others: INSERT INTO it DEFAULT VALUES"
        )
    _, epoch, snapshot, floor, ids, server = header
    if not server:
        raise LinkLost("the server is a standby")
    floor_era, _, floor_snapshot = (floor or "").partition(" ")
    floor_id, _, highest = (ids or "").partition(" ")
    era, inserted, flushed = server.split(" ")
    return Here(
        epoch=UUID(epoch).bytes[:EPOCH_BYTES],
        now=Instant(int(era), Snapshot.parse(snapshot or "")),
        floor=Instant(int(floor_era), Snapshot.parse(floor_snapshot)) if floor else None,
        floor_id=int(floor_id),
        highest=int(highest or 0),
        inserted=inserted,
        durable=_lsn(flushed) >= _lsn(inserted),
    )


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def _page(
    here: Here, rows: Rows, start: Position, target: Instant, limit: int, end: int | None
) -> Page:
    """Make events of rows.

    Args:
        here: What stood beside them.
        rows: Them, and a header.
        start: Where they were read from.
        target: What they were read up to.
        limit: How many there may be.
        end: The id up to which was looked; None for all.
    """
    found = [row for row in rows if row[0] is not None]
    # As the server counts the bytes, and we the characters, of at most 4 bytes each.
    cut = 4 * sum([len(payload) for _, _, _, payload, _, _ in found if payload]) >= PAGE_BYTES
    if len(found) < limit and not cut and end is None:
        return Page(here, found, start, target, behind(here.epoch, target), False)
    after = int(found[-1][0]) if len(found) == limit or cut else end  # type: ignore[arg-type]
    assert after is not None
    return Page(here, found, start, target, start.on_the_way(target, after), True)


def events_of(rows: Rows, start: Position, target: Instant) -> list[Event[str]]:
    """Make events of rows, with cursors on the way from one place to another.

    Args:
        rows: Their columns, as the queries here have them; only headers and key may be null.
        start: Where they were read from.
        target: What they were read up to.

    Raises:
        EventLogError: If one cannot be read.
    """
    try:
        return _events_of(rows, start, target)
    except ValueError as error:
        raise EventLogError(
            f"a row of the event log, that `append` has not written, cannot be read: {error}. "
            "Delete it, or follow after a later place"
        ) from error


def _events_of(rows: Rows, start: Position, target: Instant) -> list[Event[str]]:
    parse, cursor = datetime.fromisoformat, Cursor.on_the_way
    new = tuple.__new__  # what Event(...) does, without the call
    return [
        new(
            Event,
            (
                number := int(id_),  # type: ignore[arg-type]
                channel,
                key,
                payload,
                NO_HEADERS if headers is None else Headers(headers),
                parse(f"{created[1:-1]}+00:00"),  # type: ignore[index]
                cursor(start, target, number),
            ),
        )
        for id_, channel, key, payload, headers, created in rows
    ]
