"""Every interleaving of the quiet wake-ups, with the real state machine of the pacemaker.

What must hold: when all has come to rest, the follower has read every event. And since a proof by
going through everything proves nothing if the model cannot fail, the protocol is broken in each way
that seems to matter, and the model must find the event that is stranded.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pgnotifybus.core.pacemaker import REST, Pacemaker, Stage
from pgnotifybus.core.snapshot import Snapshot
from support.pacemaker_model import ACTS, Process, Rules, State, Writer, explore

HERE = Process()
TO_COME = Process("to come", hears=False)

BOTH = frozenset({0, 1})


# -- as it is -------------------------------------------------------------------------------------

SETTLED = [
    pytest.param(State(3, (HERE,), wishes=1), Rules(ambitious=BOTH), 5_000, id="three writers"),
    pytest.param(
        State(2, (HERE,), deaths=1, wishes=2), Rules(ambitious=BOTH), 5_000, id="wanted again"
    ),
    pytest.param(State(2, (HERE, HERE), deaths=1, wishes=1), Rules(), 20_000, id="a successor"),
    pytest.param(
        State(1, (HERE, HERE), deaths=1, wishes=2), Rules(ambitious=BOTH), 5_000, id="two rivals"
    ),
    pytest.param(
        State(1, (HERE, HERE), deaths=2, wishes=1), Rules(), 5_000, id="the successor dies too"
    ),
    pytest.param(State(2, (TO_COME, HERE), wishes=1), Rules(), 10_000, id="one comes, none dies"),
]


@pytest.mark.parametrize(("start", "rules", "at_least"), SETTLED)
def test_no_event_is_stranded(start: State, rules: Rules, at_least: int) -> None:
    """Nor is there a way into a state from which all cannot come to rest."""
    explored = explore(start, rules)
    assert explored.stranded is None, str(explored)
    assert explored.stuck is None, str(explored)
    assert explored.states > at_least
    assert explored.quiescent > 0
    assert explored.quiet > 100


# -- broken in each way that matters --------------------------------------------------------------


class Broken(Pacemaker):
    """A pacemaker of another kind: it stays of its kind when it is elected."""

    def elect(self, *, drain_only: bool) -> Pacemaker:
        return type(self)(*super().elect(drain_only=drain_only))


class NoDrain(Broken):
    """Once writers notify for themselves again, it is gone."""

    def released(self) -> Pacemaker:
        return self._replace(stage=Stage.RESIGN)


class MarkFirst(Broken):
    """It asks who is running while writers may still become quiet."""

    def polled(self, *, sleepy: bool) -> Pacemaker:
        return self._replace(stage=Stage.MARK if sleepy else Stage.POLL)

    def marked(self, running: Iterable[int]) -> Pacemaker:
        return self._replace(stage=Stage.RELEASE, waiting=frozenset(running))

    def released(self) -> Pacemaker:
        return self._replace(stage=Stage.DRAIN)


class NeverAnnounced(Broken):
    """Nobody knows of it."""

    def looked(self) -> Pacemaker:
        return self._replace(stage=Stage.ACQUIRE)


class AnnouncedTooLate(Broken):
    """Writers are quiet before anybody knows of it."""

    def looked(self) -> Pacemaker:
        return self._replace(stage=Stage.ACQUIRE)

    def acquired(self) -> Pacemaker:
        return super().acquired()._replace(stage=Stage.ANNOUNCE)

    def announcing(self) -> Pacemaker:
        return super().announcing()._replace(stage=Stage.POLL)


class Impatient(Broken):
    """It looks once more, and waits for nobody."""

    def drained(self, snapshot: Snapshot, *, wanted: bool) -> Pacemaker:
        return super().drained(snapshot, wanted=wanted)._replace(stage=Stage.RESIGN)


class LooksAwake(Broken):
    """It looks from a snapshot that was taken when writers were quiet already."""

    def elected(self, got: bool) -> Pacemaker:
        return self._replace(stage=Stage.ANNOUNCE) if got else REST

    def acquired(self) -> Pacemaker:
        return super().acquired()._replace(stage=Stage.LOOK)

    def looked(self) -> Pacemaker:
        return self._replace(stage=Stage.POLL)


class LooksAnnounced(Broken):
    """It looks from a snapshot that was taken after all were told to look."""

    def elected(self, got: bool) -> Pacemaker:
        return self._replace(stage=Stage.ANNOUNCE) if got else REST

    def announcing(self) -> Pacemaker:
        return super().announcing()._replace(stage=Stage.LOOK)

    def looked(self) -> Pacemaker:
        return self._replace(stage=Stage.ACQUIRE)


class OnlyAnnounces(Broken):
    """It tells all once, and has done enough."""

    def announcing(self) -> Pacemaker:
        return super().announcing()._replace(stage=Stage.RESIGN)


ALONE = State(1, (HERE,), wishes=1)
WITH_A_DEATH = State(1, (HERE, HERE), deaths=1, wishes=1)

BROKEN = [
    pytest.param(ALONE, Rules(NoDrain(), ambitious=BOTH), id="no drain"),
    pytest.param(ALONE, Rules(MarkFirst(), ambitious=BOTH), id="mark before release"),
    pytest.param(WITH_A_DEATH, Rules(NeverAnnounced()), id="never announced"),
    pytest.param(WITH_A_DEATH, Rules(AnnouncedTooLate()), id="announced too late"),
    pytest.param(ALONE, Rules(Impatient(), ambitious=BOTH), id="waits for nobody"),
    pytest.param(
        State(1, (HERE, HERE), deaths=1, wishes=2),
        Rules(acts={**ACTS, Stage.RESIGN: ("unlock office", "tell asleep")}, ambitious=BOTH),
        id="farewell out of office",
    ),
    pytest.param(ALONE, Rules(LooksAwake(), ambitious=BOTH), id="look when awake"),
    pytest.param(WITH_A_DEATH, Rules(LooksAnnounced()), id="look when announced"),
    pytest.param(WITH_A_DEATH, Rules(successor=OnlyAnnounces()), id="a successor only tells"),
    pytest.param(
        ALONE,
        Rules(
            acts={**ACTS, Stage.RELEASE: ("tell draining", "unlock awake")},
            ambitious=BOTH,
        ),
        id="no transaction id behind the release",
    ),
    pytest.param(
        ALONE,
        Rules(acts={**ACTS, Stage.RELEASE: ("unlock awake",)}, ambitious=BOTH),
        id="drains without a word",
    ),
]


@pytest.mark.parametrize(("start", "rules"), BROKEN)
def test_each_part_is_needed(start: State, rules: Rules) -> None:
    """Without it the model finds an event that is stranded."""
    explored = explore(start, rules, to_the_end=False)
    assert explored.stranded is not None, str(explored)


def test_a_successor_is_needed() -> None:
    """Without one, who has heard of a pacemaker waits for it for ever."""
    explored = explore(WITH_A_DEATH, Rules(takes_over=False))
    assert explored.stuck is not None, str(explored)


# -- who has just come ----------------------------------------------------------------------------


class MarksAtOnce(Broken):
    """It drains in silence, whoever ended before it marked."""

    def elected(self, got: bool) -> Pacemaker:
        return self._replace(stage=Stage.MARK) if got else REST


class TellsFirst(Broken):
    """It looks only after it has told."""

    def elected(self, got: bool) -> Pacemaker:
        if got and self.drain_only:
            return self._replace(stage=Stage.RELEASE)
        return super().elected(got)


LEFT = State(0, (TO_COME,), writers=(Writer(1, "quiet"),), next_xid=2)
"""A pacemaker has died, and its process with it. It has left a quiet writer, newest of all."""
COMING = [
    pytest.param(LEFT, id="the writer is the newest"),
    pytest.param(LEFT._replace(end=3, next_xid=3), id="others came after the writer"),
    pytest.param(LEFT._replace(deaths=1), id="its connection is lost as well"),
    pytest.param(
        State(1, (TO_COME, HERE), deaths=1, wishes=1), id="another is, or was, or will be it"
    ),
    pytest.param(
        State(1, (HERE, HERE), deaths=1, outages=1, wishes=1), id="it has not heard everything"
    ),
]
"""The follower comes, or does not hear for a while: of a pacemaker it may know nothing."""


@pytest.mark.parametrize("start", COMING)
def test_no_event_is_stranded_when_one_comes(start: State) -> None:
    explored = explore(start)
    assert explored.stranded is None, str(explored)
    assert explored.stuck is None, str(explored)
    assert explored.quiescent > 0


BROKEN_COMING = [
    pytest.param(0, Rules(newcomer_drains=False), id="it does not drain"),
    pytest.param(0, Rules(MarksAtOnce()), id="it marks without having told"),
    pytest.param(1, Rules(MarksAtOnce()), id="it marks without having looked"),
    pytest.param(1, Rules(TellsFirst()), id="it looks behind what it tells"),
    pytest.param(2, Rules(stays_unsure=False), id="it tries to drain once"),
    pytest.param(3, Rules(stays_unsure=False), id="it stands for office once"),
]


@pytest.mark.parametrize(("which", "rules"), BROKEN_COMING)
def test_each_part_is_needed_when_one_comes(which: int, rules: Rules) -> None:
    """Without it the model finds an event that is stranded."""
    [start] = COMING[which].values
    assert isinstance(start, State)
    explored = explore(start, rules, to_the_end=False)
    assert explored.stranded is not None, str(explored)
