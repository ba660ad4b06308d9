"""How the log is at one moment, and whether one can go on from a place then. Layer: log."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from pgnotifybus.core.names import quote
from pgnotifybus.core.position import EPOCH_BYTES, Instant, Position, first_era
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.database.queries import Query, Script
from pgnotifybus.errors import CursorExpired, EpochMismatch, LinkLost, SchemaMissing
from pgnotifybus.links.base import Rows
from pgnotifybus.log.cursor import Cursor

IDLE: Final = 90.0
"""The seconds after which one looks, although nothing was heard."""

# One row, in the snapshot of the statement. What a standby cannot answer, it is not asked.
_HERE: Final = """\
SELECT NULL::text, log.epoch::text, pg_catalog.pg_current_snapshot()::text,
       pg_catalog.concat_ws(' ', log.floor_era, log.floor),
       pg_catalog.concat_ws(' ', log.floor_id, coalesce(
           (SELECT pg_catalog.max(events.id) FROM {schema}.events AS events), 0),
         {extra}, log.keep_seconds),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.concat_ws(' ', {schema}.era(),
                                      pg_catalog.pg_current_wal_insert_lsn(),
                                      pg_catalog.pg_current_wal_flush_lsn(),
                                      pg_catalog.pg_current_xact_id_if_assigned()) END
  FROM {schema}.log AS log"""


class Here(NamedTuple):
    """The log at one moment."""

    epoch: bytes
    now: Instant
    """What can be seen."""
    floor: Instant | None
    """What retention has deleted: events in this snapshot, up to `floor_id`. One of a foreign
    server: all events of foreign servers up to there."""
    floor_id: int
    highest: int
    """The largest id that can be seen."""
    inserted: str
    """The end of the write-ahead log."""
    durable: bool
    """Whether all of it is on disk, and with it all that `now` has seen."""
    keep_seconds: float | None = None
    """How long events are kept; None for ever."""
    extra: int = 0
    """What else the statement was asked for."""

    @property
    def oldest(self) -> Position:
        """The place in front of everything that is kept."""
        if self.floor is None:
            return Position(self.epoch, self.now.era, None)
        if self.knows(self.floor.era):
            return Position(self.epoch, self.now.era, self.floor)
        return Position(self.epoch, self.now.era, None, self.now, self.floor_id)

    @property
    def idle(self) -> float:
        """The seconds for which one may wait without a look, and not be overtaken by retention."""
        return IDLE if self.keep_seconds is None else min(IDLE, self.keep_seconds / 3)

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
        if self.floor is None or self._is_past(self.floor, position):
            return
        raise CursorExpired(
            "retention has deleted events behind this cursor: go on after `.oldest`, or keep "
            "events longer (`schema.install(event_retention=...)`)",
            Cursor.at(self.oldest),
        )

    def _is_past(self, floor: Instant, position: Position) -> bool:
        """Whether all that was deleted lies in front of a position."""
        if position.until is not None and position.after >= self.floor_id:
            return True
        if position.since is None:
            return False
        # What was restored was there before any snapshot of this server.
        return not self.knows(floor.era) or position.since.covers(floor)


def look(schema: str) -> Script[Here]:
    """Ask how the log is now.

    Raises:
        SchemaMissing: If the log is not there.
        LinkLost: If the server is a standby.
    """
    rows = yield Query(here_sql(schema), ())
    return here_of(rows, schema)


def here_sql(schema: str, extra: str = "0") -> str:
    """The statement; `extra` is a number that is asked for as well, as SQL."""
    return _HERE.format(schema=quote(schema), extra=extra)


def here_of(rows: Rows, schema: str) -> Here:
    """Read its answer, which may stand among others; otherwise as `look`."""
    header = next((row for row in rows if row[0] is None), None)
    if header is None:
        raise SchemaMissing(
            f"the table log of the schema {schema!r} is empty, so the log cannot be told from "
            "others: INSERT INTO it DEFAULT VALUES"
        )
    _, epoch, snapshot, floor, numbers, server = header
    if not server:
        raise LinkLost("the server is a standby")
    floor_era, _, floor_snapshot = (floor or "").partition(" ")
    floor_id, highest, extra, *keep = (numbers or "").split(" ")
    era, inserted, flushed, *own = server.split(" ")
    return Here(
        epoch=UUID(epoch).bytes[:EPOCH_BYTES],
        now=Instant(int(era), _seen(Snapshot.parse(snapshot or ""), own)),
        floor=Instant(int(floor_era), Snapshot.parse(floor_snapshot)) if floor else None,
        floor_id=int(floor_id),
        highest=int(highest),
        inserted=inserted,
        durable=_lsn(flushed) >= _lsn(inserted),
        keep_seconds=float(keep[0]) if keep else None,
        extra=int(extra),
    )


def _seen(snapshot: Snapshot, own: list[str]) -> Snapshot:
    """What a snapshot has seen: not the transaction that it was taken in.

    PostgreSQL does not list that one among those that run, as its rows are visible to itself. But
    what it writes later has not been read.
    """
    running = {int(xid) for xid in own if int(xid) < snapshot.end}
    if running <= set(snapshot.running):
        return snapshot
    return Snapshot(snapshot.end, tuple(sorted(running.union(snapshot.running))))


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)
