"""Whether reading can go on from a place, by what the log is at this moment."""

from __future__ import annotations

import pytest

from pgnotifybus.core.position import TIMELINE_BITS, Instant, Position, behind
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.errors import CursorExpired, EpochMismatch
from pgnotifybus.log.here import Here

EPOCH = b"12345678"
ERA = 5 << TIMELINE_BITS | 3
FLOOR = Instant(ERA - 1, Snapshot(50, (44,)))
HERE = Here(EPOCH, Instant(ERA, Snapshot(100, (90, 95))), FLOOR, 1000, 2000, "0/10", True)

GONE_PAST = Instant(ERA, Snapshot(60))
SHORT_OF = Instant(ERA - 1, Snapshot(40))


@pytest.mark.parametrize(
    "position",
    [
        behind(EPOCH, HERE.now),
        behind(EPOCH, FLOOR),
        behind(EPOCH, GONE_PAST),
        Position(EPOCH, ERA, SHORT_OF, GONE_PAST, after=1000),
        Position(EPOCH, ERA, None, GONE_PAST, after=1500),
        HERE.oldest,
    ],
    ids=["now", "the floor", "past it", "on the way", "on the first way", "the oldest"],
)
def test_from_here_it_can(position: Position) -> None:
    HERE.check(position)


@pytest.mark.parametrize(
    ("position", "why"),
    [
        (behind(b"another!", HERE.now), "another event log"),
        (behind(EPOCH, Instant(6 << TIMELINE_BITS, Snapshot(50))), "another server"),
        (behind(EPOCH, Instant(ERA + 1, Snapshot(50))), "ahead"),
        (behind(EPOCH, Instant(ERA, Snapshot(101))), "ahead"),
        (behind(EPOCH, Instant(ERA, Snapshot(96, (90,)))), "ahead"),
        (Position(EPOCH, ERA, FLOOR, Instant(ERA, Snapshot(101)), 1500), "ahead"),
    ],
    ids=["log", "server", "timeline", "later", "saw what runs here", "on a way that is ahead"],
)
def test_what_this_log_has_never_been_is_noticed(position: Position, why: str) -> None:
    with pytest.raises(EpochMismatch, match=why):
        HERE.check(position)


@pytest.mark.parametrize(
    "position",
    [
        behind(EPOCH, SHORT_OF),
        behind(EPOCH, Instant(ERA - 1, Snapshot(50, (44, 45)))),
        Position(EPOCH, ERA, None),
        Position(EPOCH, ERA, SHORT_OF, GONE_PAST, after=999),
    ],
    ids=["before", "all but one", "the beginning of old", "on the way"],
)
def test_what_was_deleted_is_told_with_the_oldest_that_is_left(position: Position) -> None:
    with pytest.raises(CursorExpired) as expired:
        HERE.check(position)
    assert expired.value.oldest.position == HERE.oldest
    HERE.check(expired.value.oldest.position)


RESTORED = HERE._replace(floor=Instant(9 << TIMELINE_BITS, Snapshot(50)))


@pytest.mark.parametrize(
    "position",
    [
        RESTORED.oldest,
        behind(EPOCH, SHORT_OF),
        Position(EPOCH, ERA, SHORT_OF, GONE_PAST, after=5),
        Position(EPOCH, ERA, None, GONE_PAST, after=1000),
    ],
    ids=["the oldest", "of this server", "on the way from there", "behind what was deleted"],
)
def test_what_was_deleted_of_another_server_lies_in_front_of(position: Position) -> None:
    RESTORED.check(position)


@pytest.mark.parametrize(
    "position",
    [Position(EPOCH, ERA, None), Position(EPOCH, ERA, None, GONE_PAST, after=999)],
    ids=["the beginning of old", "on the first way"],
)
def test_who_reads_what_was_restored_is_told_what_was_deleted_of_it(position: Position) -> None:
    with pytest.raises(CursorExpired) as expired:
        RESTORED.check(position)
    assert expired.value.oldest.position == Position(EPOCH, ERA, None, HERE.now, 1000)


def test_one_waits_no_longer_than_a_third_of_what_is_kept() -> None:
    assert HERE.idle == 90
    assert HERE._replace(keep_seconds=3600.0).idle == 90
    assert HERE._replace(keep_seconds=6.0).idle == 2
