"""Rows of the table of events, and the events that are made of them. Layer: log."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from pgnotifybus.core.position import Instant, Position, behind
from pgnotifybus.errors import EventLogError
from pgnotifybus.links.base import Rows
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event import NO_HEADERS, Event, Headers
from pgnotifybus.log.here import Here

PAGE_BYTES: Final = 8 * 1024 * 1024
"""How many bytes of payload one statement answers, if it is more than one event."""

# `to_json` writes a time in the same form whatever DateStyle and TimeZone are.
COLUMNS: Final = """\
new.id::text, new.channel, new.key, new.payload, new.headers::text,
       pg_catalog.to_json(new.created_at AT TIME ZONE 'UTC')::text"""


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


def page_of(
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
