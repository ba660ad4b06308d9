"""Where those wait who have something to publish and no room for it. Layer: publish.

First come, first served. Each that has got in wakes the next one, so that room for ten does not
wake a thousand. One that was woken and still does not fit, as it is large, keeps its place at the
front, and newcomers wait behind it: small ones must not keep it out for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Room:
    """A queue of tasks."""

    __slots__ = ("_queue", "taken")

    def __init__(self) -> None:
        self._queue: deque[asyncio.Future[None]] = deque()
        self.taken = False
        """Whether somebody has a claim to what becomes free, and newcomers have to wait."""

    async def wait(self, *, in_front: bool) -> None:
        """Wait to be woken; then try, and wait again or wake the next.

        Args:
            in_front: Whether this one was woken before and has found no room: it has a claim.

        Cancel safety: whoever is next has the turn.
        """
        future = asyncio.get_running_loop().create_future()
        if in_front:
            self.taken = True
            self._queue.appendleft(future)
        else:
            self._queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                with contextlib.suppress(ValueError):
                    self._queue.remove(future)
            if in_front or not future.cancelled():
                self.wake()
            raise

    def wake(self) -> None:
        """There may be room: it is the turn of the first."""
        self.taken = False
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(None)
                return

    def wake_all(self) -> None:
        """There will be no room any more: let all find out."""
        while self._queue:
            self.wake()
