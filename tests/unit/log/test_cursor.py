"""Cursors: places that are texts, however they came about."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable

import pytest

from pgnotifybus.core.position import TIMELINE_BITS, Instant, Position, behind, decode, encode
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.errors import CursorExpired, EventLogError, InvalidCursor
from pgnotifybus.log.cursor import Cursor

EPOCH = b"\xfe\xff345678"
ERA = 5 << TIMELINE_BITS | 3
SINCE = Instant(ERA - 1, Snapshot(20, (11, 15)))
UNTIL = Instant(ERA, Snapshot(30, (28,)))

SHAPES = {
    "the beginning": Position(EPOCH, ERA, None),
    "a time": Position(EPOCH, ERA, None, time=1_700_000_000_000_000),
    "between two reads": behind(EPOCH, SINCE),
    "on the way": Position(EPOCH, ERA, SINCE, UNTIL, 42),
    "on the first way": Position(EPOCH, ERA, None, UNTIL, 42),
    "all there is": Position(EPOCH, ERA, SINCE, UNTIL, 42, 7),
}
shapes = pytest.mark.parametrize("position", SHAPES.values(), ids=SHAPES)


# -- one place, one cursor ------------------------------------------------------------------------


@shapes
def test_read_from_its_text_it_is_the_same(position: Position) -> None:
    made = Cursor.at(position)
    read = Cursor(str(made))
    assert read == made
    assert hash(read) == hash(Cursor.at(position)) == hash(made)
    assert read.position == made.position == position
    assert str(read) == str(made) == encode(position)
    assert {made: "found"}[read] == "found"


def test_texts_that_were_stored_stay_readable() -> None:
    """As version 1 writes them; a version 2 would have to read these as well."""
    texts = {
        "F_7_MzQ1Njc4g4CAKAEUAgQDHgEBKgcJA5GZ": SHAPES["all there is"],
        "Ef7_MzQ1Njc4g4CAKADoBwD3pTBQ": behind(EPOCH, Instant(ERA, Snapshot(1000))),
    }
    for text, position in texts.items():
        assert Cursor(text).position == position
        assert str(Cursor.at(position)) == text


def test_places_that_differ_anywhere_are_not_equal() -> None:
    position = SHAPES["all there is"]
    others = [
        *SHAPES.values(),
        position._replace(epoch=b"12345678"),
        position._replace(era=ERA + 1, until=Instant(ERA + 1, UNTIL.snapshot)),
        position._replace(since=Instant(ERA, SINCE.snapshot)),
        position._replace(since=Instant(ERA - 1, Snapshot(20, (11,)))),
        position._replace(until=Instant(ERA, Snapshot(31, (28,)))),
        position._replace(after=43),
        position._replace(time=0),
    ]
    cursors = [Cursor.at(each) for each in others]
    assert len(set(cursors)) == len(others)
    assert sum(cursor == Cursor.at(position) for cursor in cursors) == 1
    assert len({str(cursor) for cursor in cursors}) == len(others)


@pytest.mark.parametrize("convert", [str, lambda cursor: cursor.position, lambda _: None])
def test_it_equals_nothing_that_is_no_cursor(convert: Callable[[Cursor], object]) -> None:
    cursor = Cursor.at(SHAPES["on the way"])
    assert cursor != convert(cursor)
    assert convert(cursor) != cursor


@shapes
def test_it_is_written_as_code_that_makes_it(position: Position) -> None:
    cursor = Cursor.at(position)
    assert eval(repr(cursor), {"Cursor": Cursor}) == cursor
    assert f"{cursor}" == str(cursor)


def test_its_text_has_some_40_characters() -> None:
    """That of an installation of some age, as the documentation says it."""
    era = 7_300_000_000_000_000_000 >> TIMELINE_BITS << TIMELINE_BITS | 1
    quiet = Instant(era, Snapshot(5_000_000))
    assert 30 <= len(str(Cursor.at(behind(EPOCH, quiet)))) <= 45
    busy = Instant(era, Snapshot(5_000_000, (4_999_990, 4_999_997)))
    assert len(str(Cursor.at(behind(EPOCH, busy)))) <= 50


# -- worked out late ------------------------------------------------------------------------------


@shapes
def test_behind_an_event_it_is_the_place_on_the_way(position: Position) -> None:
    """The start says where the way began and from which time on; the end is what is read up to."""
    until = Instant(ERA + 1, Snapshot(90, (80,)))
    late = Cursor.on_the_way(position, until, 1234)
    expected = Position(EPOCH, ERA + 1, position.since, until, 1234, position.time)
    assert late == Cursor.at(expected)
    assert hash(late) == hash(Cursor.at(expected))
    assert Cursor(str(late)) == late


@pytest.mark.parametrize("after", [0, 1, 2**63 - 1])
def test_it_is_behind_the_event_of_any_id(after: int) -> None:
    late = Cursor.on_the_way(SHAPES["the beginning"], UNTIL, after)
    assert late.position == Position(EPOCH, ERA, None, UNTIL, after)


@pytest.mark.parametrize("ask", [str, repr, hash, copy.copy, lambda cursor: cursor == cursor])
def test_what_is_asked_first_makes_no_difference(ask: Callable[[Cursor], object]) -> None:
    late = Cursor.on_the_way(SHAPES["between two reads"], UNTIL, 42)
    ask(late)
    assert late.position == SHAPES["on the way"]
    assert str(late) == encode(SHAPES["on the way"])


def test_it_is_worked_out_once() -> None:
    late = Cursor.on_the_way(SHAPES["between two reads"], UNTIL, 42)
    assert late.position is late.position
    assert str(late) is str(late)


# -- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "cursor",
    [
        Cursor.at(SHAPES["all there is"]),
        Cursor(encode(SHAPES["on the way"])),
        Cursor.on_the_way(SHAPES["a time"], UNTIL, 42),
    ],
    ids=["made", "read", "worked out late"],
)
def test_it_goes_to_other_processes(cursor: Cursor, protocol: int) -> None:
    there = pickle.loads(pickle.dumps(cursor, protocol))
    assert type(there) is Cursor
    assert (there, str(there)) == (cursor, str(cursor))
    assert copy.copy(cursor) == copy.deepcopy(cursor) == cursor


def test_an_error_takes_its_cursor_along() -> None:
    expired = CursorExpired("gone", Cursor.at(SHAPES["between two reads"]))
    there = pickle.loads(pickle.dumps(expired))
    assert there.oldest == expired.oldest
    assert str(there) == "gone"


def test_nothing_can_be_hung_on_it() -> None:
    with pytest.raises(AttributeError):
        Cursor.at(SHAPES["on the way"]).note = "mine"  # type: ignore[attr-defined]


# -- what is none ---------------------------------------------------------------------------------

TEXT = encode(SHAPES["on the way"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cut off, or has been changed"),
        ("beginning", "is no cursor"),
        ("42", "cut off, or has been changed"),
        (TEXT[:-1], "is no cursor"),
        (TEXT[1:], "is no cursor"),
        (TEXT.swapcase(), "cut off, or has been changed"),
        (TEXT + "\n", "is no cursor"),
        (f" {TEXT}", "is no cursor"),
        (f"{TEXT}=", "is no cursor"),
        (f"{TEXT},{TEXT}", "not base64"),
        ("é" * 30, "not base64"),
        ("\ud800", "not base64"),
        ("\0", "not base64"),
    ],
)
def test_garbage_is_refused_with_what_to_do(text: str, why: str) -> None:
    with pytest.raises(InvalidCursor, match=why) as refused:
        Cursor(text)
    message = str(refused.value)
    assert "is no cursor of an event log: it is " in message
    assert message.endswith(". Pass `str(event.cursor)` exactly as it was")
    message.encode()  # it can be printed and logged
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, EventLogError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("x" * 59 + "!", "x" * 59 + "!"), ("x" * 60 + "!", "x" * 57 + "...")],
    ids=["just short enough", "too long"],
)
def test_a_message_shows_no_more_of_it_than_fits_a_line(text: str, shown: str) -> None:
    with pytest.raises(InvalidCursor) as refused:
        Cursor(text)
    assert str(refused.value).startswith(f"'{shown}' is no cursor")


def test_a_traceback_shows_the_message_only() -> None:
    with pytest.raises(InvalidCursor) as refused:
        Cursor("garbage")
    shown = "".join(traceback.format_exception(refused.value))
    assert "During handling" not in shown
    assert "direct cause" not in shown


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (TEXT.encode(), "bytes"),
        (None, "NoneType"),
        (42, "int"),
        (decode(TEXT), "Position"),
        (Cursor(TEXT), "Cursor"),
    ],
)
def test_only_a_str_is_read(value: object, kind: str) -> None:
    with pytest.raises(InvalidCursor, match=f"read from a str, not from {kind}$"):
        Cursor(value)  # type: ignore[arg-type]
