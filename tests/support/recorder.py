"""An observer that remembers what a bus told it, and lets a test wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pgnotifybus import observe

E = TypeVar("E")


class Recorder:
    """Pass it as `observer=`; then `await recorder.wait_for(observe.LinkUp)`."""

    def __init__(self) -> None:
        self.events: list[observe.Event] = []
        self._changed: asyncio.Event = asyncio.Event()

    def __call__(self, event: observe.Event) -> None:
        self.events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in their order."""
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for(
        self,
        kind: type[E],
        count: int = 1,
        *,
        where: Callable[[E], bool] = lambda _: True,
        within: float = 20.0,
    ) -> E:
        """Wait until there are so many events of a kind, and return the last of those.

        Args:
            kind: The class of the event.
            count: How many there must have been since the recorder was made.
            where: Which of them count.
            within: The seconds after which the test fails instead.
        """
        async with asyncio.timeout(within):
            while len(found := [event for event in self.of(kind) if where(event)]) < count:
                await self._changed.wait()
        return found[count - 1]
