"""What is in the log, for people. Layer: log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from pgnotifybus.core.names import quote
from pgnotifybus.database.queries import Query, Script
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.here import look

_LOG: Final = """\
SELECT log.epoch::text, log.keep_seconds::text, log.keep_bytes::text,
       pg_catalog.pg_total_relation_size('{events}'::regclass)::text
  FROM {schema}.log AS log"""

_CHANNELS: Final = """\
SELECT new.channel, pg_catalog.count(*)::text,
       pg_catalog.sum(pg_catalog.pg_column_size(new.payload))::text,
       pg_catalog.to_json(pg_catalog.min(new.created_at) AT TIME ZONE 'UTC')::text,
       pg_catalog.to_json(pg_catalog.max(new.created_at) AT TIME ZONE 'UTC')::text
  FROM {schema}.events AS new GROUP BY new.channel ORDER BY new.channel"""


class ChannelContents(NamedTuple):
    """What the log has of one channel."""

    events: int
    payload_bytes: int
    """As they are stored, which may be compressed."""
    oldest_at: datetime
    newest_at: datetime


class LogContents(NamedTuple):
    """What there is in the log."""

    epoch: str
    """Which log it is: another one each time that it is made."""
    keep: timedelta | None
    """How long events are kept; None for ever."""
    keep_bytes: int | None
    """How many bytes of events are kept; None for any number."""
    table_bytes: int
    """What the table of events takes on disk, with its indexes, also where it is free."""
    cursor: Cursor
    """Of now."""
    channels: dict[str, ChannelContents]

    @property
    def events(self) -> int:
        """How many there are, of all channels."""
        return sum(each.events for each in self.channels.values())


def describe(schema: str) -> Script[LogContents]:
    """Read all of the log to count what is in it."""
    here = yield from look(schema)
    name = quote(schema)
    events = f"{name}.events".replace("'", "''")
    [(epoch, seconds, size, table)] = yield Query(_LOG.format(schema=name, events=events), ())
    rows = yield Query(_CHANNELS.format(schema=name), ())
    return LogContents(
        epoch or "",
        None if seconds is None else timedelta(seconds=int(seconds)),
        None if size is None else int(size),
        int(table or 0),
        Cursor.at(here.oldest._replace(since=here.now)),
        {
            channel or "": ChannelContents(
                int(count or 0), int(bytes_ or 0), _time(oldest), _time(newest)
            )
            for channel, count, bytes_, oldest, newest in rows
        },
    )


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat((text or "")[1:-1]).replace(tzinfo=UTC)
