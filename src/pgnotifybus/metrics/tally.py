"""The observer that counts what happens. Layer: metrics. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final, get_args

from pgnotifybus import observe
from pgnotifybus.errors import (
    AuthenticationFailed,
    BehindPooler,
    ConnectError,
    FatalLinkError,
    LinkError,
    LinkLost,
    ListenRejected,
    PgNotifyBusError,
    PoolTooSmall,
    ProbeTimeout,
    Standby,
)
from pgnotifybus.metrics.definition import (
    CONNECT_FAILURES,
    EVENTS,
    LATENCY,
    PROBE_DURATION,
    RECONNECTS,
    Metric,
)

OnDuration = Callable[[Metric, float], None]
"""Told of each value of a histogram, in seconds."""

_CAUSES: Final[dict[type[PgNotifyBusError], str]] = {
    ProbeTimeout: "probe timeout",
    LinkLost: "link lost",
    Standby: "standby",
    ConnectError: "connect error",
    LinkError: "link error",
    AuthenticationFailed: "authentication failed",
    BehindPooler: "behind a pooler",
    ListenRejected: "listen rejected",
    PoolTooSmall: "pool too small",
    FatalLinkError: "fatal",
}
_OTHER: Final = "other"

CAUSES: Final = (*_CAUSES.values(), _OTHER)
"""Every value of the label `cause`."""

COUNTED: Final = tuple(
    kind.__name__ for kind in get_args(observe.Event) if kind is not observe.MessagesTimed
)
"""Every value of the label `event`. Messages have counters of their own."""


def cause_of(error: BaseException) -> str:
    """The value of the label `cause`: of the class of the error, never of its text."""
    return next((_CAUSES[each] for each in type(error).__mro__ if each in _CAUSES), _OTHER)


class Histogram:
    """How many values there were up to each bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def note(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> tuple[list[int], float]:
        """How many values lay in each bucket, the last one without a bound, and their sum."""
        return self._counts.copy(), self._sum


class Tally:
    """Counts the events of one bus or log. Written by its loop alone, read by any thread."""

    def __init__(self, on_duration: OnDuration | None = None) -> None:
        self._on_duration = on_duration
        # All that there can be, from the start: a rate over what first appears as 1 misses it.
        self._counts = {
            RECONNECTS: dict.fromkeys(CAUSES, 0),
            CONNECT_FAILURES: dict.fromkeys(CAUSES, 0),
            EVENTS: dict.fromkeys(COUNTED, 0),
        }
        self.histograms = {each: Histogram(each.buckets) for each in (PROBE_DURATION, LATENCY)}
        self._lost_by = _OTHER

    def __call__(self, event: observe.Event, /) -> None:
        """Count an event."""
        match event:
            case observe.LinkDown():
                self._lost_by = cause_of(event.error)
            case observe.LinkUp() if event.generation > 1:
                self._counts[RECONNECTS][self._lost_by] += 1
                self._lost_by = _OTHER
            case observe.ConnectFailed():
                self._counts[CONNECT_FAILURES][cause_of(event.error)] += 1
            case observe.ProbeAnswered():
                self._note(PROBE_DURATION, event.seconds)
            case observe.MessagesTimed():
                for seconds in event.seconds:
                    # Clocks differ; what came before it was sent has taken no time.
                    self._note(LATENCY, max(0.0, seconds))
                return
        counted = self._counts[EVENTS]
        kind = type(event).__name__
        if kind in counted:
            counted[kind] += 1

    def counts(self) -> Iterator[tuple[Metric, str, int]]:
        """Every counter, with the value of its one label."""
        for metric, values in self._counts.items():
            for label, value in values.items():
                yield metric, label, value

    def _note(self, metric: Metric, seconds: float) -> None:
        self.histograms[metric].note(seconds)
        if self._on_duration is not None:
            self._on_duration(metric, seconds)
