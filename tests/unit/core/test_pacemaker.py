"""The way of a pacemaker, stage by stage; what it is good for, a simulation shows."""

from __future__ import annotations

import pytest

from pgnotifybus.core.pacemaker import REST, Pacemaker, Stage
from pgnotifybus.core.snapshot import Snapshot

AWAKE = REST.elect(drain_only=False).elected(True).looked().announcing().acquired()


def draining(*running: int, drain_only: bool = False) -> Pacemaker:
    """One that drains, while these may hold writers that have kept quiet."""
    if drain_only:
        released = REST.elect(drain_only=True).elected(True).looked().released()
    else:
        released = AWAKE.polled(sleepy=True).released()
    return released.marked(running)


# -- into office ----------------------------------------------------------------------------------


def test_whoever_stands_for_office_has_told_nobody_yet() -> None:
    assert REST.elect(drain_only=False) == Pacemaker(Stage.ELECT)
    assert REST.elect(drain_only=True) == Pacemaker(Stage.ELECT, drain_only=True)


@pytest.mark.parametrize("drain_only", [False, True])
def test_whoever_is_not_elected_rests(*, drain_only: bool) -> None:
    assert REST.elect(drain_only=drain_only).elected(False) == REST


@pytest.mark.parametrize("stage", [each for each in Stage if each is not Stage.REST])
def test_only_one_at_rest_stands_for_office(stage: Stage) -> None:
    with pytest.raises(AssertionError):
        Pacemaker(stage).elect(drain_only=False)


def test_it_looks_before_it_announces_and_announces_before_it_is_awake() -> None:
    elected = REST.elect(drain_only=False).elected(True)
    assert elected == Pacemaker(Stage.LOOK)
    assert elected.looked() == Pacemaker(Stage.ANNOUNCE)
    assert elected.looked().announcing() == Pacemaker(Stage.ACQUIRE, announced=True)
    assert elected.looked().announcing().acquired() == Pacemaker(Stage.POLL, announced=True)


# -- awake ----------------------------------------------------------------------------------------


def test_it_polls_until_it_is_sleepy() -> None:
    assert AWAKE.polled(sleepy=False).polled(sleepy=False) == AWAKE
    assert AWAKE.polled(sleepy=True) == Pacemaker(Stage.RELEASE, announced=True)


def test_it_marks_what_runs_only_after_writers_notify_again() -> None:
    released = AWAKE.polled(sleepy=True).released()
    assert released == Pacemaker(Stage.MARK, announced=True)
    marked = released.marked(iter([9, 4, 9]))
    assert marked == Pacemaker(Stage.DRAIN, announced=True, waiting=frozenset({4, 9}))


# -- draining -------------------------------------------------------------------------------------


def test_it_drains_until_all_that_ran_have_ended() -> None:
    """However late each ends, and whatever has begun since: 10 to 12 began after the mark."""
    pacemaker = draining(4, 9)
    for snapshot, left in [
        (Snapshot(10, (4, 9)), {4, 9}),
        (Snapshot(11, (4, 10)), {4}),
        (Snapshot(13, (4, 12)), {4}),
    ]:
        pacemaker = pacemaker.drained(snapshot, wanted=False)
        assert pacemaker == Pacemaker(Stage.DRAIN, announced=True, waiting=frozenset(left))
    assert pacemaker.drained(Snapshot(13, (10, 12)), wanted=False).stage is Stage.RESIGN


def test_it_waits_for_a_transaction_that_a_snapshot_does_not_know_yet() -> None:
    """One from the end of the snapshot on has not ended, though it is not listed as running."""
    pacemaker = draining(12).drained(Snapshot(12), wanted=False)
    assert pacemaker == Pacemaker(Stage.DRAIN, announced=True, waiting=frozenset({12}))


def test_it_polls_once_more_even_if_nothing_runs() -> None:
    """What had ended by the mark is seen by no poll before."""
    pacemaker = draining()
    assert pacemaker.stage is Stage.DRAIN
    assert pacemaker.drained(Snapshot(9), wanted=False).stage is Stage.RESIGN


def test_whoever_resigns_says_farewell_and_rests() -> None:
    resigning = draining(4).drained(Snapshot(9), wanted=False)
    assert resigning == Pacemaker(Stage.RESIGN, announced=True)
    assert resigning.resigned() == REST


# -- wanted again ---------------------------------------------------------------------------------


def test_one_that_is_wanted_again_announces_itself_and_keeps_what_it_waits_for() -> None:
    """It may fail to get awake: then those that kept quiet before must still be waited for."""
    wanted = draining(4, 9).drained(Snapshot(10, (4,)), wanted=True)
    assert wanted == Pacemaker(Stage.ANNOUNCE, announced=True, waiting=frozenset({4}))
    assert wanted.announcing() == wanted._replace(stage=Stage.ACQUIRE)


def test_one_that_is_awake_again_waits_for_nobody() -> None:
    """Its polls see them; and the next mark has those that still run."""
    awake = draining(4, 9).drained(Snapshot(10, (4,)), wanted=True).announcing().acquired()
    assert awake == AWAKE
    again = awake.polled(sleepy=True).released().marked([4, 17])
    assert again.waiting == {4, 17}


def test_one_that_is_wanted_does_not_resign_though_all_have_ended() -> None:
    wanted = draining(4).drained(Snapshot(9), wanted=True)
    assert wanted == Pacemaker(Stage.ANNOUNCE, announced=True)


# -- only to drain --------------------------------------------------------------------------------


def test_one_that_only_drains_is_never_awake() -> None:
    """It looks, and tells all; it has no `awake` to give up, but is announced from then on."""
    looked = REST.elect(drain_only=True).elected(True).looked()
    assert looked == Pacemaker(Stage.RELEASE, drain_only=True)
    assert looked.released() == Pacemaker(Stage.MARK, announced=True)
    drained = draining(4, drain_only=True).drained(Snapshot(9), wanted=False)
    assert drained == Pacemaker(Stage.RESIGN, announced=True)


def test_one_that_only_drains_may_be_wanted_meanwhile() -> None:
    """From then on it goes the way of all, and ends like all."""
    wanted = draining(4, drain_only=True).drained(Snapshot(9, (4,)), wanted=True)
    assert wanted == Pacemaker(Stage.ANNOUNCE, announced=True, waiting=frozenset({4}))
    awake = wanted.announcing().acquired()
    assert awake == AWAKE
    assert awake.polled(sleepy=True).released().stage is Stage.MARK
