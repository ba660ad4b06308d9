"""What happens to a bus, as one stream of frozen events. Layer: leaf.

An observer is any callable that takes an event. The same stream feeds the log, the metrics and the
tests: what counts reconnects in production is what a test waits for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pgnotifybus.core.health import State
from pgnotifybus.core.repetition import Repetition
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


class Emitter:
    """Tells the log and the observers, and lets none of them disturb the bus."""

    __slots__ = ("_clock", "_observers", "_repetition")

    def __init__(
        self,
        observers: Observer | Iterable[Observer] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make one.

        Raises:
            TypeError: If an observer cannot be called.
        """
        self._observers = several(observers)
        self._clock = clock
        self._repetition = Repetition()

    def add(self, observer: Observer) -> Callable[[], None]:
        """Tell one more, from now on; what is returned ends that, and does nothing the next time.

        Raises:
            TypeError: If it cannot be called.
        """
        handle = _Added(_checked(observer))
        self._observers = (*self._observers, handle)

        def remove() -> None:
            self._observers = tuple(each for each in self._observers if each is not handle)

        return remove

    @property
    def observed(self) -> bool:
        """Whether anybody but the log is told."""
        return bool(self._observers)

    def __call__(self, event: Event) -> None:
        self._log(event)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("the observer failed on %r", event)

    def _log(self, event: Event) -> None:
        match event:
            case LinkUp():
                self._repetition.forget()
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
                    self._level(event, str(event.error)),
                    "attempt %d to connect failed: %s; next in %.1f s",
                    event.attempt,
                    event.error,
                    event.retry_in,
                )
            case ProbeRefused():
                logger.log(
                    self._level(event, event.reason),
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
                    self._level(event, event.reason),
                    "payloads could not be fetched from the spill table: %s",
                    event.reason,
                )
            case PublishDelayed():
                logger.log(
                    self._level(event, str(event.error)),
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
                    self._level(event, str(event.error)),
                    "%s failed: %s; trying again in %.1f s",
                    event.doing,
                    event.error,
                    event.retry_in,
                )
            case DeliveryUnproven():
                logger.log(
                    self._level(event, event.reason),
                    "a pooler is in between, and whether it delivers notifications could not be "
                    "tried: %s",
                    event.reason,
                )
            case TurnedToDirect():
                logger.warning("%s: connecting to direct_dsn from now on", event.error.cause)
            case StateChanged(new="lagging"):
                logger.log(
                    self._level(event, event.cause or ""),
                    "lagging: %s. %s",
                    event.cause,
                    event.advice,
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
            case MessagesTimed():
                pass  # for metrics: it comes with the messages, which nobody logs either

    def _level(self, event: Event, failure: str) -> int:
        """A warning the first time; the same again and again is only told to who debugs."""
        news = self._repetition.is_news(type(event).__name__, failure, self._clock())
        return logging.WARNING if news else logging.DEBUG


class _Added:
    """One observer that was added: the same one may be added twice, and removed once."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __call__(self, event: Event, /) -> None:
        self._observer(event)


def several(observers: Observer | Iterable[Observer] | None) -> tuple[Observer, ...]:
    """What was given as `observer=`, as a tuple.

    Raises:
        TypeError: If one of them cannot be called.
    """
    if observers is None:
        return ()
    each = observers if isinstance(observers, Iterable) and not callable(observers) else [observers]
    return tuple(map(_checked, each))


def _checked(observer: Any) -> Observer:
    if not callable(observer):
        raise TypeError(
            f"an observer must be something to call with an event, not {type(observer).__name__}"
        )
    called: Observer = observer
    return called
