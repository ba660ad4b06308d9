"""Where tasks wait for a change, and how they are woken. Layer: asyncio over core.

Each waiting task has a future of its own: cancelling a task cancels the future that it awaits, so
with a shared one a single cancelled receiver would wake, and cancel, all the others. Receivers
that are behind do not wait and cost nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib


class Parking:
    """The tasks that wait for the next change of one channel."""

    __slots__ = ("_ended", "_loop", "_parked")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # A dict because it keeps the order (first come, first woken) and forgets one in O(1).
        self._parked: dict[asyncio.Future[None], None] = {}
        self._ended = False

    def __len__(self) -> int:
        return len(self._parked)

    async def park(self) -> None:
        """Wait until `wake` is called; returns at once after `end_from_anywhere`.

        Raises:
            RuntimeError: If tasks of another event loop wait here.

        Cancel safety: nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._enter(loop)
        future = loop.create_future()
        self._parked[future] = None
        try:
            # Asked only now that it is parked: the end may come from another thread while this
            # task is on its way, and would find nobody to wake.
            if not self._ended:
                await future
        finally:
            self._parked.pop(future, None)

    def wake(self) -> None:
        """Wake all that wait now."""
        if not self._parked:
            return
        parked, self._parked = self._parked, {}
        try:
            for future in parked:
                if not future.done():
                    future.set_result(None)
        except RuntimeError:
            if not self._abandoned():
                raise

    def end_from_anywhere(self) -> None:
        """Wake all for good; for a finalizer, which may run in any thread, at any moment.

        What the tasks are to find out when they wake must be settled before.
        """
        self._ended = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self.wake)

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the tasks of this loop wait here."""
        if self._parked and not self._abandoned():
            raise RuntimeError(
                "this channel is in use in another event loop: give each loop a bus or a "
                "channel of its own"
            )
        self._parked.clear()
        self._loop = loop

    def _abandoned(self) -> bool:
        """Whether the loop was closed under its tasks, so that none of them can ever run."""
        return self._loop is not None and self._loop.is_closed()
