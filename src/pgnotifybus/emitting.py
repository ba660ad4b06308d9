"""Who is told what happens: the log, in words, and the observers. Layer: leaf, above observe."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from pgnotifybus.core.repetition import Repetition
from pgnotifybus.observe import (
    ChannelsChanged,
    ConnectFailed,
    DeliveryUnproven,
    Event,
    LinkDown,
    LinkUp,
    ListenRefused,
    LogDelayed,
    MessagesTimed,
    Observer,
    PacemakerChanged,
    PayloadsLost,
    ProbeAnswered,
    ProbeRefused,
    PublishDelayed,
    PublishRefused,
    ReceiversLagged,
    StateChanged,
    Stopped,
    TurnedToDirect,
    Undecodable,
)

logger = logging.getLogger("pgnotifybus")


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
