"""What `pgnotifybus log` is told, understood."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgnotifybus.cli.log.places import beginning_there, parsed_headers, parsed_place
from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem
from pgnotifybus.core.position import Instant, Position
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.errors import CursorExpired, EpochMismatch
from pgnotifybus.log.cursor import Cursor

CURSOR = Cursor.at(Position(b"8 bytes.", 1 << 24, Instant(1 << 24, Snapshot(700))))


def test_words_and_cursors_are_places() -> None:
    assert parsed_place("beginning", "--after") == "beginning"
    assert parsed_place("now", "--after") == "now"
    assert parsed_place(str(CURSOR), "--after") == CURSOR


def test_a_time_has_a_zone_or_is_local() -> None:
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parsed_place("2026-01-31T12:00:00Z", "--after") == noon
    assert parsed_place("2026-01-31 14:00:00.000000+02:00", "--after") == noon
    local = datetime(2026, 1, 31, 12).astimezone()
    assert parsed_place("2026-01-31T12:00", "--after") == local


def test_a_duration_is_so_long_ago() -> None:
    before = datetime.now(UTC)
    place = parsed_place("15m", "--after")
    assert isinstance(place, datetime)
    assert before <= place + timedelta(minutes=15) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "text", ["", "Now", "yesterday", "15", "-1h", "999999d", str(CURSOR)[:-1], "10000-01-01T00:00"]
)
def test_anything_else_is_refused_and_it_is_said_what_there_is(text: str) -> None:
    with pytest.raises(UsageProblem, match="--after must be beginning, now, a time"):
        parsed_place(text, "--after")


def test_what_is_refused_is_not_repeated_at_length() -> None:
    with pytest.raises(UsageProblem) as caught:
        parsed_place("x" * 10_000, "WHERE")
    assert len(str(caught.value)) < 300


def test_headers_are_names_and_texts() -> None:
    assert parsed_headers([]) is None
    assert parsed_headers(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize("bad", ["s3same", "=s3same", ""])
def test_a_bad_header_is_named_by_its_number_and_not_repeated(bad: str) -> None:
    with pytest.raises(UsageProblem, match="number 2 does not") as caught:
        parsed_headers(["a=1", bad])
    assert "s3same" not in str(caught.value)


def test_a_header_has_one_value() -> None:
    with pytest.raises(UsageProblem, match="--header a is given twice"):
        parsed_headers(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CursorExpired("use .oldest", CURSOR), "retention has deleted .* lost to it: do this"),
        (EpochMismatch("it is of another log"), "it is of another log: do this"),
    ],
)
def test_a_cursor_of_no_use_is_an_error_that_says_what_to_do(error: Exception, said: str) -> None:
    with pytest.raises(CommandFailed, match=said) as caught, beginning_there("do this"):
        raise error
    assert ".oldest" not in str(caught.value)
