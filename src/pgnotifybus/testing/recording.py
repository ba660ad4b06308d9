"""An observer that remembers what a bus told it, and lets a test wait for it. Layer: testing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, overload

from pgnotifybus import observe
from pgnotifybus._parking import Parking

E = TypeVar("E")


class RecordingObserver:
    """Pass it as `observer=`; then `await observer.wait_for(observe.LinkUp)`.

    For one event loop at a time, as a bus is.

    Attributes:
        events: Every event so far, in their order.
    """

    def __init__(self) -> None:
        self.events: list[observe.Event] = []
        self._parking = Parking()

    def __call__(self, event: observe.Event) -> None:
        """Remember an event; the bus calls this."""
        self.events.append(event)
        self._parking.wake()

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in their order."""
        return [event for event in self.events if isinstance(event, kind)]

    def count(self, kind: type[object]) -> int:
        """How many events of one kind there have been."""
        return len(self.of(kind))

    @overload
    async def wait_for(  # type: ignore[overload-overlap]  # a class may be called as well
        self,
        what: type[E],
        count: int = 1,
        *,
        where: Callable[[E], bool] | None = None,
        timeout: float = 20.0,
    ) -> E: ...
    @overload
    async def wait_for(
        self, what: Callable[[observe.Event], bool], count: int = 1, *, timeout: float = 20.0
    ) -> observe.Event: ...
    async def wait_for(
        self,
        what: type[Any] | Callable[[observe.Event], bool],
        count: int = 1,
        *,
        where: Callable[[Any], bool] | None = None,
        timeout: float = 20.0,
    ) -> Any:
        """Wait until there are so many events of a kind, and return the last of those.

        Those that were there before count too, so nothing can be missed.

        Args:
            what: The class of the event, or a function that says whether an event is meant.
            count: How many there must have been since the observer was made; at least 1.
            where: Which events of the class count; None for all.
            timeout: The seconds to wait at the most.

        Raises:
            TimeoutError: If they do not come in time; the message says what came instead.

        Cancel safety: nothing is left behind.
        """
        try:
            async with asyncio.timeout(timeout):
                while len(self._find(what, where)) < count:
                    await self._parking.park()
        except TimeoutError:
            name = getattr(what, "__qualname__", repr(what))
            came = len(self._find(what, where))
            raise TimeoutError(
                f"{came} of {count} {name} came within {timeout:g} s; in all, {self._summary()}"
            ) from None
        return self._find(what, where)[count - 1]

    def _find(
        self,
        what: type[Any] | Callable[[observe.Event], bool],
        where: Callable[[Any], bool] | None,
    ) -> list[Any]:
        if isinstance(what, type):
            found: list[Any] = self.of(what)
            return found if where is None else [event for event in found if where(event)]
        return [event for event in self.events if what(event)]

    def _summary(self) -> str:
        counts = Counter(type(event).__name__ for event in self.events)
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none at all"
