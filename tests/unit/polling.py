"""Coroutines run by hand: each step is taken by the test, so that nothing depends on time.

A polled coroutine is not a task. It stops where a task would wait, the test looks at what it
waits for, and goes on when it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Polled(Generic[T]):
    """One awaitable, run by `poll` until it waits or ends."""

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._steps: Generator[Any, None, T] | Coroutine[Any, None, T] = (
            awaitable if isinstance(awaitable, Coroutine) else _run(awaitable)
        )
        self._waits_for: asyncio.Future[object] | None = None
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def woken(self) -> bool:
        """Whether what it waits for has happened: a task would be run now."""
        return self._waits_for is not None and self._waits_for.done()

    def poll(self) -> bool:
        """Run it until it waits again (False) or ends (True)."""
        return self._step(None)

    def cancel(self) -> None:
        """What a task does when it is cancelled: the future too, then the coroutine."""
        assert self._waits_for is not None, "it does not wait"
        self._waits_for.cancel()
        self._step(asyncio.CancelledError())

    def result(self) -> T:
        """What it returned; raises what it raised. To be asked once."""
        assert self.done(), "it is still waiting"
        error, self._error = self._error, None
        if error is None:
            return self._results.pop()
        try:
            raise error
        finally:
            del error  # no cycle over the traceback, which would keep receivers alive

    def _step(self, error: BaseException | None) -> bool:
        assert not self.done(), "it has ended"
        assert error is not None or self._waits_for is None or self.woken(), "nobody woke it"
        try:
            waits_for = self._steps.send(None) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self._results.append(end.value)
        except BaseException as raised:  # noqa: BLE001 - cancellation is an outcome too
            self._error = raised
        else:
            assert isinstance(waits_for, asyncio.Future), "it yielded without a future"
            self._waits_for = waits_for
            return False
        finally:
            del error  # no cycle over the traceback, as in result
        self._done = True
        return True


async def _run(awaitable: Awaitable[T]) -> T:
    return await awaitable


def ready(awaitable: Awaitable[T]) -> T:
    """The outcome of an awaitable that must not wait."""
    polled = Polled(awaitable)
    assert polled.poll(), "it waits"
    return polled.result()


def parked(awaitable: Awaitable[T]) -> Polled[T]:
    """An awaitable that must wait."""
    polled = Polled(awaitable)
    assert not polled.poll(), "it does not wait"
    return polled
