"""Hearing that there may be something new, and waking those who want to know. Layer: log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from pgnotifybus.core.load import Belief, Load, check_after
from pgnotifybus.log.words import understand
from pgnotifybus.messages import Gap
from pgnotifybus.subscription import Subscription


class Listener:
    """One who wants to know of some channels. The event is set whenever one may have news."""

    __slots__ = ("channels", "event")

    def __init__(self, channels: Collection[str]) -> None:
        self.channels = frozenset(channels)
        self.event = asyncio.Event()


class Wakes:
    """What this process has heard about the log."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._listeners: dict[Listener, None] = {}
        self._load = Load(clock())
        self.belief: Belief = "asleep"
        self.believed_since = clock()
        self.heard_at = clock()
        """When anything was last heard, but for writers."""
        self.unsure = True
        """Whether there may have been a pacemaker of which nothing was heard. Until there is word
        of one, or this process has drained itself."""
        self.changed = asyncio.Event()
        """Set when a pacemaker might be wanted."""

    def join(self, channels: Collection[str]) -> Listener:
        """Want to know of some channels, until `leave`."""
        listener = Listener(channels)
        self._listeners[listener] = None
        return listener

    def leave(self, listener: Listener) -> None:
        """Want to know no more. Twice is harmless."""
        self._listeners.pop(listener, None)

    async def run(self, subscription: Subscription) -> None:
        """Hear, until the subscription ends."""
        self.missed()
        async for item in subscription.events():
            if isinstance(item, Gap):
                self.missed()
            else:
                self.hear(item.payload)

    def missed(self) -> None:
        """Take note that something may not have been heard."""
        self.unsure = True
        self.changed.set()
        self.wake(None)

    def hear(self, payload: str) -> None:
        """Take note of one notification."""
        word = understand(payload)
        now = self._clock()
        if word.from_writer:
            self._load.note(now)
            if self._load.busy(now):
                self.changed.set()
        else:
            self.heard_at = now
        if word.belief is not None:
            self.believe(word.belief)
        self.wake(word.channels)

    def believe(self, belief: Belief) -> None:
        """Take note of how the pacemaker is."""
        if belief == self.belief and not self.unsure:
            return
        if belief != self.belief:
            self.believed_since = self._clock()
        self.belief, self.unsure = belief, False
        self.changed.set()

    def busy(self) -> bool:
        """Whether writers notify so often that a pacemaker were cheaper."""
        return self._load.busy(self._clock())

    def check_in(self) -> float:
        """The seconds until one should look oneself, as the pacemaker has been silent."""
        now = self._clock()
        return self.heard_at + check_after(self.belief, now - self.believed_since) - now

    def wake(self, channels: Collection[str] | None) -> None:
        """Wake those who want to know of these channels, or all."""
        for listener in self._listeners:
            if channels is None or not listener.channels.isdisjoint(channels):
                listener.event.set()
