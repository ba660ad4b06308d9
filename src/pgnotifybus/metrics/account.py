"""What is exported of one bus or event log, and the accounts that one exporter keeps.
Layer: metrics. No I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, NamedTuple, get_args

from pgnotifybus.bus import ChannelStatistics, Health, PgNotifyBus
from pgnotifybus.channels import Totals
from pgnotifybus.core.health import STATES
from pgnotifybus.core.load import Belief
from pgnotifybus.log.event_log import EventLog
from pgnotifybus.metrics import definition
from pgnotifybus.metrics.definition import Metric
from pgnotifybus.metrics.tally import Histogram, OnDuration, Tally

BELIEFS: Final[tuple[Belief, ...]] = get_args(Belief)


class Sample(NamedTuple):
    """One value of a counter or gauge."""

    metric: Metric
    labels: tuple[str, ...]
    """The values of its labels, `bus` in front."""
    value: float


class Account:
    """The numbers of one bus or log. Made in its event loop, read by any thread."""

    def __init__(
        self,
        subject: PgNotifyBus | EventLog,
        name: str,
        *,
        channels: bool = True,
        run_time_channels: bool = True,
        on_duration: OnDuration | None = None,
    ) -> None:
        """Begin to count.

        Raises:
            TypeError: If it is neither a bus nor a log, or the name is no text.
            ValueError: If the name is empty.
        """
        if not isinstance(subject, PgNotifyBus | EventLog):
            raise TypeError(
                f"only a PgNotifyBus or an EventLog has metrics, not a {type(subject).__name__}"
            )
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        if not name:
            raise ValueError("name must not be empty: it tells this bus from others")
        self.name = name
        self._subject = subject
        self._channels = channels
        self._run_time_channels = run_time_channels
        self._tally = Tally(on_duration)
        self._remove = subject.add_observer(self._tally)

    @property
    def stopped(self) -> bool:
        """Whether what it tells of has ended."""
        return self._subject.health().state == "stopped"

    def close(self) -> None:
        """Count no more. Twice is harmless."""
        self._remove()

    def samples(self) -> Iterator[Sample]:
        """Every counter and gauge, as it is now."""
        subject = self._subject
        for metric, labels, value in self._of_the_connection(subject.health()):
            yield Sample(metric, (self.name, *labels), value)
        own = self._of_a_bus(subject) if isinstance(subject, PgNotifyBus) else _of_a_log(subject)
        for metric, labels, value in own:
            yield Sample(metric, (self.name, *labels), value)

    def histograms(self) -> Iterator[tuple[Metric, Histogram]]:
        """Every histogram. All have the one label `bus`."""
        is_bus = isinstance(self._subject, PgNotifyBus)
        for metric, histogram in self._tally.histograms.items():
            if is_bus or metric in definition.OF_THE_CONNECTION:
                yield metric, histogram

    # -- inside -----------------------------------------------------------------------------------

    def _of_the_connection(self, health: Health) -> Iterator[Sample]:
        for state in STATES:
            yield Sample(definition.STATE, (state,), health.state == state)
        yield Sample(definition.GENERATION, (), health.generation)
        if health.queue_usage is not None:
            yield Sample(definition.QUEUE_USAGE, (), health.queue_usage)
        if health.last_message_at is not None:
            yield Sample(definition.LAST_MESSAGE, (), health.last_message_at.timestamp())
        if health.last_probe_at is not None:
            yield Sample(definition.LAST_PROBE, (), health.last_probe_at.timestamp())
        for metric, label, value in self._tally.counts():
            yield Sample(metric, (label,), value)

    def _of_a_bus(self, bus: PgNotifyBus) -> Iterator[Sample]:
        statistics = bus.statistics()
        yield Sample(definition.UNROUTED, (), statistics.unrouted)
        yield Sample(definition.CHANNELS, (), len(statistics.channels))
        left = dict(statistics.channels)
        configured = {name: left.pop(name) for name in bus.channels() if name in left}
        if self._channels:
            for name, channel in configured.items():
                yield from _of_channels(name, [channel])
        together = [*([] if self._channels else configured.values())]
        if self._run_time_channels:
            together += left.values()
        if self._run_time_channels or not self._channels:
            label = definition.RUN_TIME if self._channels else definition.ALL
            former = statistics.former if self._run_time_channels else Totals()
            yield from _of_channels(label, together, former)


def _of_channels(
    label: str, channels: Iterable[ChannelStatistics], former: Totals | None = None
) -> Iterator[Sample]:
    """Those of some channels together."""
    former = former or Totals()
    each = [*channels]
    values: dict[Metric, int] = {
        definition.RECEIVED: former.received + sum(one.received for one in each),
        definition.DELIVERED: former.deliveries + sum(one.deliveries for one in each),
        definition.SKIPPED: former.skipped + sum(one.skipped for one in each),
        definition.RING_MESSAGES: sum(one.kept for one in each),
        definition.RING_CAPACITY: sum(one.capacity for one in each),
        definition.RING_UNREAD: max((one.unread for one in each), default=0),
        definition.RECEIVERS: sum(one.receivers for one in each),
    }
    for metric, value in values.items():
        yield Sample(metric, (label,), value)


def _of_a_log(log: EventLog) -> Iterator[Sample]:
    statistics = log.statistics()
    yield Sample(definition.LOG_READS, (), statistics.reads)
    yield Sample(definition.LOG_CATCH_UP_READS, (), statistics.catch_up_reads)
    yield Sample(definition.LOG_PACEMAKER_POLLS, (), statistics.pacemaker_polls)
    for belief in BELIEFS:
        yield Sample(definition.LOG_PACEMAKER, (belief,), statistics.pacemaker == belief)


class Accounts:
    """The accounts of one exporter, by name."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._lock = threading.Lock()

    def check(self, name: str) -> None:
        """See that a name is free: nobody has it, or one that has ended.

        Raises:
            ValueError: If it is not.
        """
        known = self._accounts.get(name)
        if known is not None and not known.stopped:
            raise ValueError(
                f"there are metrics of a bus or log named {name!r} already: give each its own "
                "name=, or close the instrumentation of the other"
            )

    def add(self, account: Account) -> None:
        """Keep an account, in place of one of the same name that has ended.

        Raises:
            ValueError: If there is one that has not.
        """
        with self._lock:
            self.check(account.name)
            former = self._accounts.pop(account.name, None)
            self._accounts[account.name] = account
        if former is not None:
            former.close()

    def remove(self, account: Account) -> None:
        """Keep it no more. Twice is harmless."""
        with self._lock:
            if self._accounts.get(account.name) is account:
                del self._accounts[account.name]
        account.close()

    def __iter__(self) -> Iterator[Account]:
        with self._lock:
            return iter([*self._accounts.values()])


class Instrumentation:
    """What `instrument` returns: metrics are exported until it is closed. Also a `with` block."""

    def __init__(self, accounts: Accounts, account: Account) -> None:
        self._accounts = accounts
        self._account = account

    def __repr__(self) -> str:
        return f"<Instrumentation {self._account.name!r}>"

    def close(self) -> None:
        """Export nothing more of it, and let go of it. Twice is harmless."""
        self._accounts.remove(self._account)

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
