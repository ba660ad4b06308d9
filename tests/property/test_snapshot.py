"""Snapshots, against sets of transactions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifybus.core.snapshot import Snapshot

MOST = 12
UNIVERSE = range(MOST + 3)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    end = draw(st.integers(1, MOST))
    running = draw(st.sets(st.integers(1, end - 1))) if end > 1 else set()
    return Snapshot(end, tuple(sorted(running)))


def ended(snapshot: Snapshot) -> set[int]:
    """What had ended, the long way."""
    return {xid for xid in UNIVERSE if xid < snapshot.end and xid not in snapshot.running}


@given(snapshots())
def test_it_sees_what_had_ended(snapshot: Snapshot) -> None:
    assert {xid for xid in UNIVERSE if snapshot.sees(xid)} == ended(snapshot)


@given(snapshots(), snapshots())
def test_it_covers_what_has_seen_no_more(one: Snapshot, other: Snapshot) -> None:
    assert one.covers(other) == (ended(other) <= ended(one))


@given(snapshots())
def test_its_text_is_that_of_postgresql(snapshot: Snapshot) -> None:
    start, end, running = str(snapshot).split(":")
    assert int(start) == min(snapshot.running, default=snapshot.end)
    assert int(end) == snapshot.end
    assert [int(each) for each in running.split(",") if each] == list(snapshot.running)
    assert Snapshot.parse(str(snapshot)) == snapshot


@pytest.mark.parametrize(
    "text", ["", "1", "1:2", "1:2:3,", "1:2:,", "a:b:", "1:2:3 ", "-1:2:", "1:2:3:4", "\u0661:2:"]
)
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        Snapshot.parse(text)
