"""What happens to a bus, as one stream of frozen events. Layer: leaf.

An observer is any callable that takes an event. It is called in the event loop, so it must be
quick; what it raises is logged and does no harm. The same stream feeds the log and the tests: what
counts reconnects in production is what a test waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pgnotifybus.core.health import State
from pgnotifybus.errors import BehindPooler, PgNotifyBusError

logger = logging.getLogger("pgnotifybus")


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
    | ReceiversLagged
    | DeliveryUnproven
    | TurnedToDirect
    | StateChanged
    | Stopped
)

Observer = Callable[[Event], None]


class Emitter:
    """Tells the log and the observer, and lets neither disturb the bus."""

    __slots__ = ("_last_failure", "_observer")

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._last_failure: str | None = None

    def __call__(self, event: Event) -> None:
        self._log(event)
        if self._observer is None:
            return
        try:
            self._observer(event)
        except Exception:
            logger.exception("the observer failed on %r", event)

    def _log(self, event: Event) -> None:
        match event:
            case LinkUp():
                self._last_failure = None
                logger.info(
                    "listening to %d channel(s): generation %d, server %s, PID %d",
                    event.channels,
                    event.generation,
                    event.server_version,
                    event.pid,
                )
            case LinkDown():
                logger.warning(
                    "the link is lost after %.1f s (%s); connecting again in %.1f s",
                    event.seconds,
                    event.error,
                    event.retry_in,
                )
            case ConnectFailed():
                # A server that is away for an hour is told once, not 120 times.
                logger.log(
                    self._level(str(event.error)),
                    "attempt %d to connect failed: %s; next in %.1f s",
                    event.attempt,
                    event.error,
                    event.retry_in,
                )
            case ProbeRefused():
                logger.log(
                    self._level(event.reason),
                    "the server answers probes, but refuses to say what the session listens to "
                    "(%s): grant EXECUTE on pg_listening_channels, or pass probe_interval=None",
                    event.reason,
                )
            case ListenRefused():
                logger.warning("%s", event.error)
            case Undecodable():
                logger.warning(
                    "%d payload(s) on channel %r are not UTF-8; delivered with surrogate escapes",
                    event.count,
                    event.channel,
                )
            case PayloadsLost():
                logger.log(
                    self._level(event.reason),
                    "payloads could not be fetched from the spill table: %s",
                    event.reason,
                )
            case PublishDelayed():
                logger.log(
                    self._level(str(event.error)),
                    "a publisher holds %d message(s) and will try again in %.1f s: %s",
                    event.waiting,
                    event.retry_in,
                    event.error,
                )
            case PublishRefused():
                logger.warning(
                    "a publisher has given up %d message(s), the first for channel %r: %s",
                    event.count,
                    event.channel,
                    event.reason,
                )
            case LogDelayed():
                logger.log(
                    self._level(str(event.error)),
                    "%s failed: %s; trying again in %.1f s",
                    event.doing,
                    event.error,
                    event.retry_in,
                )
            case DeliveryUnproven():
                logger.log(
                    self._level(event.reason),
                    "a pooler is in between, and whether it delivers notifications could not be "
                    "tried: %s",
                    event.reason,
                )
            case TurnedToDirect():
                logger.warning("%s: connecting to direct_dsn from now on", event.error.cause)
            case StateChanged(new="lagging"):
                logger.log(
                    self._level(event.cause or ""), "lagging: %s. %s", event.cause, event.advice
                )
            case (
                ProbeAnswered()
                | ChannelsChanged()
                | PacemakerChanged()
                | ReceiversLagged()
                | StateChanged()
                | Stopped()
            ):
                logger.debug("%r", event)

    def _level(self, failure: str) -> int:
        """A warning the first time; the same again and again is only told to who debugs."""
        level = logging.DEBUG if failure == self._last_failure else logging.WARNING
        self._last_failure = failure
        return level
