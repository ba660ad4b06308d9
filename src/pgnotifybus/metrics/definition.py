"""Every metric: its name, kind, unit, labels, and what it says. Layer: metrics.

No I/O, no clock, and nothing of Prometheus or OpenTelemetry but the rules for names. Both exporters
are made from this, and the table in docs/howto/metrics.md is held to it by a test.

Labels have few values, which are known beforehand: names that were given at construction, states,
classes of errors and events. None is ever free text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

BUS: Final = "bus"
"""The label that every metric has: the name under which the bus or log was instrumented."""

RUN_TIME: Final = "(run-time)"
"""The `channel` of all that were listened to at run time, together."""

ALL: Final = "(all)"
"""The `channel` of all together, where they are not told apart."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
_SUFFIXES: Final = {"s": "_seconds"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    """Without the name of the library; dots between its parts."""
    kind: Kind
    unit: str
    """As UCUM writes it; in braces what is counted; empty for none."""
    help: str
    labels: tuple[str, ...] = ()
    """Beside `BUS`."""
    buckets: tuple[float, ...] = ()
    """The upper bounds of a histogram."""

    @property
    def opentelemetry(self) -> str:
        """Its name in OpenTelemetry."""
        return f"pgnotifybus.{self.name}"

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus; the same that comes out of OpenTelemetry on the way there."""
        suffix = "_total" if self.kind == "counter" else ""
        return f"pgnotifybus_{self.name.replace('.', '_')}{_SUFFIXES.get(self.unit, '')}{suffix}"


# -- the connection: of a bus, and of an event log ------------------------------------------------

STATE: Final = Metric(
    "state",
    "gauge",
    "",
    "1 for the state that it is in, 0 for the others; see Health",
    ("state",),
)
GENERATION: Final = Metric("generation", "gauge", "{link}", "How many links there have been")
RECONNECTS: Final = Metric(
    "reconnects",
    "counter",
    "{link}",
    "Links that were made again, by why the one before was lost",
    ("cause",),
)
CONNECT_FAILURES: Final = Metric(
    "connect.failures",
    "counter",
    "{attempt}",
    "Attempts to bring a link up that have failed, by why",
    ("cause",),
)
PROBE_DURATION: Final = Metric(
    "probe.duration",
    "histogram",
    "s",
    "How long the server takes to answer a probe, which it is sent in silence only",
    buckets=_SECONDS,
)
QUEUE_USAGE: Final = Metric(
    "queue.usage_ratio",  # exporters of OpenTelemetry differ in whether they add it
    "gauge",
    "1",
    "How full the server's notification queue was at the last connect or probe; absent if unknown",
)
LAST_MESSAGE: Final = Metric(
    "last_message.timestamp",
    "gauge",
    "s",
    "When the newest message came, in Unix time; absent before the first",
)
LAST_PROBE: Final = Metric(
    "last_probe.timestamp",
    "gauge",
    "s",
    "When the server last answered a probe, in Unix time; absent before the first",
)
EVENTS: Final = Metric(
    "events",
    "counter",
    "{event}",
    "What observers are told, by the class of the event in pgnotifybus.observe",
    ("event",),
)

# -- the messages: of a bus -----------------------------------------------------------------------

RECEIVED: Final = Metric(
    "messages.received", "counter", "{message}", "Messages that have come in", ("channel",)
)
DELIVERED: Final = Metric(
    "messages.delivered",
    "counter",
    "{message}",
    "Messages times the receivers that each was handed to",
    ("channel",),
)
SKIPPED: Final = Metric(
    "messages.skipped",
    "counter",
    "{message}",
    "Messages that receivers have been told they have missed, as they were too slow",
    ("channel",),
)
UNROUTED: Final = Metric(
    "messages.unrouted",
    "counter",
    "{message}",
    "Messages for a channel that was just being left",
)
LATENCY: Final = Metric(
    "message.latency",
    "histogram",
    "s",
    "From sending, by the sender's clock, until handed on, of messages whose envelope is timed",
    buckets=_SECONDS,
)
RING_MESSAGES: Final = Metric(
    "ring.messages",
    "gauge",
    "{message}",
    "Messages that are kept for receivers that are behind",
    ("channel",),
)
RING_CAPACITY: Final = Metric(
    "ring.capacity", "gauge", "{message}", "How many messages can be kept", ("channel",)
)
RING_UNREAD: Final = Metric(
    "ring.unread",
    "gauge",
    "{message}",
    "Messages that the receiver that is furthest behind has not read; above the capacity, some are "
    "lost",
    ("channel",),
)
RECEIVERS: Final = Metric(
    "receivers", "gauge", "{receiver}", "Receivers that there are now", ("channel",)
)
CHANNELS: Final = Metric(
    "channels", "gauge", "{channel}", "Channels that there are now, of construction and run time"
)

# -- the event log --------------------------------------------------------------------------------

LOG_READS: Final = Metric(
    "log.reads", "counter", "{statement}", "Statements that read the log for all who follow live"
)
LOG_CATCH_UP_READS: Final = Metric(
    "log.catch_up_reads", "counter", "{statement}", "Statements that read it for one follower"
)
LOG_PACEMAKER_POLLS: Final = Metric(
    "log.pacemaker.polls", "counter", "{statement}", "Times this process has looked for all others"
)
LOG_PACEMAKER: Final = Metric(
    "log.pacemaker",
    "gauge",
    "",
    "1 for what is known of the pacemaker of the database, 0 for the others",
    ("state",),
)

OF_THE_CONNECTION: Final = (
    STATE,
    GENERATION,
    RECONNECTS,
    CONNECT_FAILURES,
    PROBE_DURATION,
    QUEUE_USAGE,
    LAST_MESSAGE,
    LAST_PROBE,
    EVENTS,
)
OF_A_BUS: Final = (
    RECEIVED,
    DELIVERED,
    SKIPPED,
    UNROUTED,
    LATENCY,
    RING_MESSAGES,
    RING_CAPACITY,
    RING_UNREAD,
    RECEIVERS,
    CHANNELS,
)
OF_A_LOG: Final = (LOG_READS, LOG_CATCH_UP_READS, LOG_PACEMAKER_POLLS, LOG_PACEMAKER)

METRICS: Final = (*OF_THE_CONNECTION, *OF_A_BUS, *OF_A_LOG)
"""All of them, in the order in which they are shown."""
