"""What may be passed as `after`, and cursors as texts."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from pgnotifybus.core.position import Instant, Position, behind, encode
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.errors import InvalidCursor
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.start import Start, start


class _Nowhere(tzinfo):
    """A time zone that does not know how far it is from UTC."""

    def utcoffset(self, when: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


INSTANT = Instant(7, Snapshot(20, (11, 15)))
POSITION = behind(b"12345678", INSTANT)
CURSOR = Cursor.at(POSITION)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (CURSOR, Start(CURSOR)),
        (str(CURSOR), Start(CURSOR)),
        ("beginning", Start()),
        ("now", Start(is_now=True)),
        (datetime(1970, 1, 1, 0, 0, 1, 5, UTC), Start(microseconds=1_000_005)),
        (datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), Start(microseconds=0)),
        (datetime(1900, 1, 1, tzinfo=UTC), Start(microseconds=0)),
    ],
)
def test_where_reading_may_begin(after: Any, expected: Start) -> None:
    assert start(after) == expected


@pytest.mark.parametrize(
    ("after", "error", "why"),
    [
        ("", InvalidCursor, "no cursor"),
        ("yesterday", InvalidCursor, "no cursor"),
        (str(CURSOR)[:-1], InvalidCursor, "exactly as it was"),
        ("x" * 5000, InvalidCursor, r"'x{57}\.\.\.' is no cursor"),
        (datetime(2026, 1, 1), ValueError, "time zone"),  # noqa: DTZ001 - that is the point
        (datetime(2026, 1, 1, tzinfo=_Nowhere()), ValueError, "time zone"),
        (None, TypeError, "NoneType"),
        (7, TypeError, "int"),
        (b"now", TypeError, "bytes"),
    ],
)
def test_what_is_no_place_is_refused(after: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why) as refused:
        start(after)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_cursor_is_its_place() -> None:
    same, text = Cursor(str(CURSOR)), encode(POSITION)
    assert (same, hash(same), str(same), repr(same)) == (
        CURSOR,
        hash(CURSOR),
        text,
        f"Cursor({text!r})",
    )
    assert str(CURSOR) != CURSOR
    assert Cursor.at(POSITION._replace(era=8)) != CURSOR
    for copied in (copy.copy(CURSOR), copy.deepcopy(CURSOR), pickle.loads(pickle.dumps(CURSOR))):
        assert copied == CURSOR


def test_the_cursor_of_an_event_is_worked_out_when_it_is_wanted() -> None:
    until = Instant(7, Snapshot(30))
    lazy = Cursor.on_the_way(POSITION, until, 5)
    assert lazy == Cursor.at(Position(POSITION.epoch, 7, INSTANT, until, 5))
    assert Cursor(str(lazy)) == lazy


def test_only_a_text_is_read() -> None:
    with pytest.raises(InvalidCursor, match="not from bytes"):
        Cursor(b"x")  # type: ignore[arg-type]
