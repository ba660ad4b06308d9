"""What happens to a bus, as one stream of frozen events. Layer: leaf.

An observer is any callable that takes an event. The same stream feeds the log, the metrics and the
tests: what counts reconnects in production is what a test waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pgnotifybus.core.health import State
from pgnotifybus.errors import BehindPooler, PgNotifyBusError


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is listening to everything it should; its first message comes after this."""

    generation: int
    pid: int
    server_version: str
    channels: int
    seconds: float
    """From the start of the attempt to the last LISTEN acknowledged."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link that was up is lost."""

    generation: int
    error: PgNotifyBusError
    seconds: float
    """How long it lived."""
    retry_in: float


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """An attempt to bring a link up has failed."""

    attempt: int
    """1 for the first since a link was last up."""
    error: PgNotifyBusError
    retry_in: float


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    """The server has answered a probe, and the session is as it should be."""

    generation: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ProbeRefused:
    """The server has answered a probe, but refuses to tell what our session listens to."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelsChanged:
    """The server has acknowledged a change of what is listened to."""

    listened: tuple[str, ...]
    unlistened: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListenRefused:
    """The server has refused to listen to one channel; its subscribers have been told."""

    channel: str
    error: PgNotifyBusError


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Payloads that are not UTF-8 arrived; they were delivered with surrogate escapes."""

    channel: str
    count: int


@dataclass(frozen=True, slots=True)
class PayloadsLost:
    """Messages have arrived whose payloads could not be had; a `Gap` stands in their place."""

    reason: str


@dataclass(frozen=True, slots=True)
class PublishDelayed:
    """A publisher could not send a batch, and will try again."""

    error: Exception
    waiting: int
    """Messages that it holds."""
    retry_in: float


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """A publisher has given up messages, for which it will raise `PublishFailed`."""

    channel: str
    """Of the first of them."""
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogDelayed:
    """Something about the event log could not be done now, and is tried again."""

    doing: str
    error: Exception
    retry_in: float


@dataclass(frozen=True, slots=True)
class PacemakerChanged:
    """This process has begun, or ended, to tell all others of new events."""

    state: Literal["awake", "draining", "asleep"]


@dataclass(frozen=True, slots=True)
class MessagesTimed:
    """Messages have come whose envelopes say when they were sent (`bus.envelope(timed=True)`)."""

    channel: str
    seconds: tuple[float, ...]
    """How long each was under way: from when it was sent, which is before the commit, by the clock
    of the sender, until it was handed on, by ours. Below 0 if the clocks differ."""


@dataclass(frozen=True, slots=True)
class ReceiversLagged:
    """Receivers of a channel are too slow; told about once a second at the most."""

    channel: str
    receivers: int
    """How many stand at messages that are gone, and do not know it yet."""
    skipped: int
    """How many messages receivers have been told they have missed, since this was last told."""


@dataclass(frozen=True, slots=True)
class DeliveryUnproven:
    """There is a pooler in between, and it could not be tried whether it delivers."""

    reason: str


@dataclass(frozen=True, slots=True)
class TurnedToDirect:
    """There is a pooler in between that delivers nothing: from now on `direct_dsn` is used."""

    error: BehindPooler


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The bus is in another state than before; see `Health`."""

    old: State
    new: State
    cause: str | None
    advice: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The bus has ended; nothing is left running."""

    generation: int


Event = (
    LinkUp
    | LinkDown
    | ConnectFailed
    | ProbeAnswered
    | ProbeRefused
    | ChannelsChanged
    | ListenRefused
    | Undecodable
    | PayloadsLost
    | PublishDelayed
    | PublishRefused
    | LogDelayed
    | PacemakerChanged
    | MessagesTimed
    | ReceiversLagged
    | DeliveryUnproven
    | TurnedToDirect
    | StateChanged
    | Stopped
)


class Observer(Protocol):
    """Anything that can be called with an event: a function, a method, an object.

    It is called in the event loop, between two things that the bus does, so it must be quick and
    must not block. What it raises is logged, and disturbs neither the bus nor other observers.
    """

    def __call__(self, event: Event, /) -> object: ...
