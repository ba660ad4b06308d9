"""Places in the event log, and their texts."""

from __future__ import annotations

import contextlib
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgnotifybus.core.position import (
    EPOCH_BYTES,
    MAX_TIME,
    TIMELINE_BITS,
    Instant,
    Position,
    behind,
    decode,
    encode,
    first_era,
    last_era,
)
from pgnotifybus.core.snapshot import MAX_XID, Snapshot

EPOCH = bytes(range(EPOCH_BYTES))
SERVER = 0x5A << TIMELINE_BITS

ids = st.integers(0, 2**63 - 1)
eras = st.integers(0, 2**63 - 1)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    end = draw(st.integers(3, MAX_XID))
    span = min(end, 10_000)
    running = draw(st.sets(st.integers(max(end - span, 1), end - 1), max_size=20))
    return Snapshot(end, tuple(sorted(running)))


@st.composite
def positions(draw: st.DrawFn) -> Position:
    era = draw(eras)
    since = draw(st.none() | st.builds(Instant, st.integers(first_era(era), era), snapshots()))
    until = draw(st.none() | st.builds(Instant, st.just(era), snapshots()))
    after = draw(ids) if until is not None else 0
    time = draw(st.none() | st.integers(0, MAX_TIME))
    epoch = draw(st.binary(min_size=EPOCH_BYTES, max_size=EPOCH_BYTES))
    return Position(epoch, era, since, until, after, time)


@given(positions())
def test_its_text_is_read_back_and_may_stand_in_a_url(position: Position) -> None:
    text = encode(position)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert decode(text) == position


QUIET = Instant(SERVER, Snapshot(20, (11,)))
BUSY = Instant(SERVER, Snapshot(20))


@pytest.mark.parametrize(
    "position",
    [
        behind(EPOCH, Instant(SERVER, Snapshot(0))),
        behind(EPOCH, Instant(SERVER, Snapshot(20, (0, 11)))),
        Position(EPOCH, SERVER, QUIET, Instant(SERVER, Snapshot(0)), 7),
        Position(EPOCH, SERVER, QUIET, BUSY, 2**63),
        Position(EPOCH, SERVER, None, time=MAX_TIME + 1),
        Position(EPOCH, 2**63, None),
        Position(EPOCH, SERVER, Instant(SERVER - 1, Snapshot(20))),
        Position(EPOCH, 0, Instant(-1, Snapshot(20))),
    ],
    ids=repr,
)
def test_a_text_of_what_cannot_be_is_refused(position: Position) -> None:
    """Made up, sum and all: the server would refuse it, and that would look like a broken log."""
    with pytest.raises(ValueError, match="as this library writes them"):
        decode(encode(position))


def test_its_text_is_short() -> None:
    """With the largest numbers that there are, and nothing that runs; then with 20 that run."""
    quiet = Instant(2**63 - 1, Snapshot(MAX_XID))
    assert len(encode(behind(EPOCH, quiet))) <= 52
    busy = Instant(SERVER, Snapshot(10**9, tuple(range(10**9 - 40, 10**9, 2))))
    assert len(encode(behind(EPOCH, busy))) <= 80


@given(positions(), st.data())
def test_a_text_that_was_changed_is_refused(position: Position, data: st.DataObject) -> None:
    """Any one character, any cut, anything added: never read as another place."""
    text = encode(position)
    index = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_=+/ \n\0é"))
    for changed in (
        text[:index] + other + text[index + 1 :],
        text[:index],
        text[:index] + other + text[index:],
        text + other,
    ):
        if changed != text:
            with pytest.raises(ValueError):  # noqa: PT011 - of whatever wording
                decode(changed)


@given(st.text() | st.text(alphabet=string.ascii_letters + string.digits + "-_"))
@example("")
@example("é" * 40)
@example("A" * 100_000)
def test_whatever_else_is_refused_with_one_kind_of_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert encode(decode(text)) == text


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        (Instant(SERVER + 1, Snapshot(9)), Instant(SERVER + 1, Snapshot(9)), True),
        (Instant(SERVER + 1, Snapshot(9)), Instant(SERVER + 1, Snapshot(10)), False),
        (Instant(SERVER + 2, Snapshot(3)), Instant(SERVER + 1, Snapshot(99)), True),
        (Instant(SERVER + 1, Snapshot(99)), Instant(SERVER + 2, Snapshot(3)), False),
        (Instant(first_era(7), Snapshot(99)), Instant(SERVER, Snapshot(3)), False),
    ],
    ids=["the same", "later", "after a failover", "before a failover", "another server"],
)
def test_an_instant_covers_earlier_ones_of_its_server(
    one: Instant, other: Instant, *, covers: bool
) -> None:
    assert one.covers(other) == covers


@given(eras)
def test_the_eras_of_a_server_are_its_timelines(era: int) -> None:
    first, last = first_era(era), last_era(era)
    assert first <= era <= last
    assert first_era(first) == first_era(last) == first
    assert first_era(last + 1) == last + 1
