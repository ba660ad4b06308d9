"""Events, gaps and tables are lines, whatever is in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifybus.cli.log.show import duration, event_line, gap_line, moment, size, table
from pgnotifybus.core.position import Instant, Position
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event import Event

ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
CURSOR = Cursor.at(Position(b"8 bytes.", 1 << 24, Instant(1 << 24, Snapshot(700))))
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def event(channel: str, key: str | None, payload: str) -> Event[str]:
    return Event(7, channel, key, payload, {"a": [1]}, NOON, CURSOR)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_a_line_for_people_is_one_line_of_five_fields(channel: str, key: str, payload: str) -> None:
    line = event_line(event(channel, key, payload), json=False)
    assert len(line.splitlines()) == 1
    assert line.count("\t") == 4
    assert line.startswith("2026-01-31T12:00:00.000000Z\t")


@given(ANYTHING, st.none() | ANYTHING, ANYTHING)
def test_json_is_one_ascii_line_that_has_all_of_it(
    channel: str, key: str | None, payload: str
) -> None:
    line = event_line(event(channel, key, payload), json=True)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {
        "type": "event",
        "id": 7,
        "channel": channel,
        "key": key,
        "payload": payload,
        "headers": {"a": [1]},
        "created_at": "2026-01-31T12:00:00+00:00",
        "cursor": str(CURSOR),
    }


def test_a_gap_has_no_tab_and_says_what_is_missing() -> None:
    expired = gap_line("a\tb", "expired", "c", json=False)
    assert expired.startswith("-- gap in a\\tb: retention has deleted events")
    assert "\t" not in expired
    assert "of another log" in gap_line("a", "epoch", "c", json=False)
    assert json.loads(gap_line("a", "epoch", "c", json=True)) == {
        "type": "gap",
        "reason": "epoch",
        "channel": "a",
        "cursor": "c",
    }


def test_columns_stand_below_each_other_also_with_wide_letters() -> None:
    assert table(("NAME", "N"), [("日本", "1"), ("a\x1b[2J", "22")]) == [
        "NAME      N",
        "日本      1",
        "a\\x1b[2J  22",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (604_800, "7 d")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (10_239, "10,239 B"), (10_240, "10 kB"), (2**40, "1,024 GB")]
)
def test_sizes_are_short(count: int, said: str) -> None:
    assert size(count) == said


def test_a_moment_is_utc_and_of_one_width() -> None:
    assert moment(NOON) == "2026-01-31T12:00:00.000000Z"
