"""Events become numbers, and labels are of a set that is known beforehand."""

from __future__ import annotations

import inspect

import pytest

from pgnotifybus import errors, observe
from pgnotifybus.errors import (
    ConnectError,
    ConnectionProblem,
    LinkError,
    LinkLost,
    PgNotifyBusError,
    ProbeTimeout,
)
from pgnotifybus.metrics.definition import (
    CONNECT_FAILURES,
    EVENTS,
    LATENCY,
    PROBE_DURATION,
    RECONNECTS,
    Metric,
)
from pgnotifybus.metrics.tally import CAUSES, COUNTED, Histogram, Tally, cause_of


def counted(tally: Tally, metric: Metric) -> dict[str, int]:
    """What is not 0 of a metric."""
    return {label: value for each, label, value in tally.counts() if each == metric and value}


def up(generation: int) -> observe.LinkUp:
    return observe.LinkUp(generation, 1, "18.0", 1, 0.1)


def test_a_reconnect_counts_under_why_the_link_before_was_lost() -> None:
    tally = Tally()
    for event in (
        up(1),
        observe.LinkDown(1, ProbeTimeout("silence"), 1.0, 0.5),
        observe.ConnectFailed(1, ConnectError("refused"), 1.0),
        observe.ConnectFailed(2, ConnectError("refused"), 1.0),
    ):
        tally(event)
    assert counted(tally, RECONNECTS) == {}, "not yet"
    tally(up(2))
    tally(observe.LinkDown(2, LinkLost("terminated"), 1.0, 0.5))
    tally(up(3))
    assert counted(tally, RECONNECTS) == {"probe timeout": 1, "link lost": 1}
    assert counted(tally, CONNECT_FAILURES) == {"connect error": 2}
    assert counted(tally, EVENTS) == {"LinkUp": 3, "LinkDown": 2, "ConnectFailed": 2}


def test_who_comes_when_the_link_is_down_does_not_know_why() -> None:
    tally = Tally()
    tally(up(4))
    assert counted(tally, RECONNECTS) == {"other": 1}


def test_everything_that_can_be_counted_is_there_from_the_start() -> None:
    zero = {(metric, label) for metric, label, value in Tally().counts() if value == 0}
    assert {label for metric, label in zero if metric == RECONNECTS} == set(CAUSES)
    assert {label for metric, label in zero if metric == EVENTS} == set(COUNTED)


def every_error() -> list[type[PgNotifyBusError]]:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    return [each for each in classes if issubclass(each, ConnectionProblem)]


def test_every_class_of_connection_problem_has_its_own_cause() -> None:
    named = [each for each in every_error() if each is not ConnectionProblem]
    causes = [cause_of(each("a text with s3cret in it")) for each in named]
    assert sorted(causes) == sorted(set(CAUSES) - {"other"})


def test_what_nobody_foresaw_is_one_of_the_known_too() -> None:
    class OurOwn(LinkError):
        """Of a later version, or somebody else's."""

    assert cause_of(OurOwn("new")) == "link error"
    assert cause_of(ValueError("s3cret")) == "other"


@pytest.mark.parametrize(
    ("value", "bucket"), [(0.0, 0), (0.5, 0), (1.0, 0), (1.1, 1), (2.0, 1), (2.1, 2), (99.0, 2)]
)
def test_a_bound_belongs_to_its_bucket(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.note(value)
    counts, total = histogram.read()
    assert (counts.index(1), sum(counts), total) == (bucket, 1, value)


def test_durations_are_noted_and_passed_on() -> None:
    passed: list[tuple[Metric, float]] = []
    tally = Tally(lambda metric, seconds: passed.append((metric, seconds)))
    tally(observe.ProbeAnswered(1, 0.25))
    tally(observe.MessagesTimed("orders", (0.5, -3.0)))
    # The clock of that sender is ahead: a sum that shrinks would read as a restart.
    assert passed == [(PROBE_DURATION, 0.25), (LATENCY, 0.5), (LATENCY, 0.0)]
    assert [tally.histograms[each].read()[1] for each in (PROBE_DURATION, LATENCY)] == [0.25, 0.5]
    assert counted(tally, EVENTS) == {"ProbeAnswered": 1}
