"""A watch channel: one value that changes, and receivers that want to know when.
Layer: asyncio over core.

The semantics are those of Rust's `tokio::sync::watch`: only the newest value is kept, each
receiver knows which version it has seen, and a value that nobody has seen yet is still handed
out after the sender is closed. Usable alone::

    sender, receiver = watch.channel(0)
    sender.send(1)
    await receiver.changed()
    receiver.borrow()

Not thread-safe: a channel belongs to one event loop, as all of asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pgnotifybus._parking import Parking
from pgnotifybus.core.versioned import Versioned
from pgnotifybus.errors import Closed

__all__ = ["Receiver", "Sender", "channel"]

T = TypeVar("T")


def channel(initial: T) -> tuple[Sender[T], Receiver[T]]:
    """Make a watch channel that holds `initial`, which its first receiver counts as seen."""
    shared = Shared(initial)
    return Sender(shared), Receiver(shared)


class Shared(Generic[T]):
    """The state of one channel; `Sender` and `Receiver` are handles on it."""

    __slots__ = ("closed", "held", "parking")

    def __init__(self, initial: T) -> None:
        self.held = Versioned(initial)
        self.parking = Parking()
        self.closed = False


class Sender(Generic[T]):
    """The sending side. When it is closed or garbage-collected, waiting receivers end."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared[T]) -> None:
        self._shared = shared

    def __repr__(self) -> str:
        state = "closed" if self._shared.closed else "open"
        return f"<watch.Sender version={self._shared.held.version} {state}>"

    def __del__(self) -> None:
        # Nobody can send any more, so nobody should wait for it: as in tokio, dropping is closing.
        shared = getattr(self, "_shared", None)
        if shared is not None and not shared.closed:
            shared.closed = True
            shared.parking.end_from_anywhere()

    def send(self, value: T) -> None:
        """Make `value` the newest and tell every receiver; kept also when nobody receives.

        Raises:
            Closed: If the channel has been closed.
        """
        self._check_open()
        self._shared.held.replace(value)
        self._shared.parking.wake()

    def send_modify(self, modify: Callable[[T], T]) -> None:
        """Make `modify(old value)` the newest and tell every receiver, even if nothing changed.

        If `modify` raises, the old value stays and nobody is told.

        Raises:
            Closed: If the channel has been closed.
        """
        self._check_open()
        self.send(modify(self._shared.held.value))

    def send_if_different(self, value: T) -> bool:
        """Make `value` the newest only if it is not equal to the old one; True if it was done.

        Raises:
            Closed: If the channel has been closed.
        """
        self._check_open()
        if value == self._shared.held.value:
            return False
        self.send(value)
        return True

    def borrow(self) -> T:
        """The newest value. Never raises."""
        return self._shared.held.value

    def subscribe(self) -> Receiver[T]:
        """A new receiver, for which the present value counts as seen."""
        return Receiver(self._shared)

    def close(self) -> None:
        """End the channel: receivers get the newest value if unseen, then `Closed`.

        Twice is harmless.
        """
        if not self._shared.closed:
            self._shared.closed = True
            self._shared.parking.wake()

    def _check_open(self) -> None:
        if self._shared.closed:
            raise Closed("the watch channel is closed: nothing can be sent any more")


class Receiver(Generic[T]):
    """One observer of the value, which remembers the version it has seen."""

    __slots__ = ("_seen", "_shared")

    def __init__(self, shared: Shared[T]) -> None:
        self._shared = shared
        self._seen = shared.held.version

    def __repr__(self) -> str:
        state = "closed" if self._shared.closed else "open"
        return f"<watch.Receiver version={self._shared.held.version} seen={self._seen} {state}>"

    @property
    def closed(self) -> bool:
        """Whether the sender is closed; an unseen value may still be there."""
        return self._shared.closed

    def borrow(self) -> T:
        """The newest value, without marking it as seen. Never raises."""
        return self._shared.held.value

    def borrow_and_update(self) -> T:
        """The newest value, marked as seen. Never raises."""
        self._seen = self._shared.held.version
        return self._shared.held.value

    def has_changed(self) -> bool:
        """Whether there is a value that this receiver has not seen. Never raises."""
        return self._seen != self._shared.held.version

    async def changed(self) -> None:
        """Wait for a value that this receiver has not seen, and mark it as seen.

        Values sent in quick succession are one change: only the newest is kept.

        Raises:
            Closed: If there is none and the sender is closed.

        Cancel safety: cancelling leaves an unseen value unseen.
        """
        await self._unseen()
        self.borrow_and_update()

    async def wait_for(self, predicate: Callable[[T], object]) -> T:
        """Wait until the newest value satisfies the predicate; it is marked as seen.

        The present value is asked first, even if it has been seen. A value that is replaced
        before this task runs is not asked. What the predicate raises is passed on.

        Returns:
            The value that satisfied the predicate.

        Raises:
            Closed: If the sender is closed and its last value does not satisfy the predicate.

        Cancel safety: cancelling loses nothing.
        """
        while True:
            value = self.borrow_and_update()
            if predicate(value):
                return value
            await self._unseen()

    async def _unseen(self) -> None:
        while not self.has_changed():
            if self._shared.closed:
                raise Closed("the sender of this watch channel is closed")
            await self._shared.parking.park()
