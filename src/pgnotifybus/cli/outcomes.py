"""How a command ends: errors a person can act on, exit codes, signals. Layer: cli.

=====  ============================================================================
code   meaning
=====  ============================================================================
0      done
1      it did not work: no connection, the server refused, a count not reached
2      it was asked for wrongly: bad channel, payload or DSN, a package is missing
128+n  ended by signal n: 130 Ctrl-C, 143 SIGTERM, 129 the terminal was closed
=====  ============================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

import typer

from pgnotifybus.cli.render import printable
from pgnotifybus.errors import InvalidChannel, MissingExtra, PayloadTooLarge, PgNotifyBusError

T = TypeVar("T")

OK = 0
FAILED = 1
USAGE = 2

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class UsageProblem(PgNotifyBusError):
    """The user asked for something that cannot be; the message says what to write instead."""


class CommandFailed(PgNotifyBusError):
    """The command could not do its work; the message says why, and what to do."""


class Signalled(BaseException):
    """A signal asks to leave. Not an Exception: nothing but the outermost may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns signals into an orderly end.

    The first one interrupts what runs, or asks it to end; one more is ignored, as cleaning up is
    under way and bounded; the third leaves at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Whoever started us with nohup wants SIGHUP ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.getsignal(number)
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # Who presses Ctrl-C once more while Python ends must not get a traceback for it.
            signal.signal(number, handler if self.received is None else signal.SIG_IGN)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let no signal interrupt what is inside; it takes effect afterwards."""
        before, self._deferred = self._deferred, True
        count = self._count
        try:
            yield
        finally:
            self._deferred = before
        if self._count > count and self.received is not None:
            raise Signalled(self.received)

    def run(self, main: Coroutine[Any, Any, T], *, ask: Callable[[], object] | None = None) -> T:
        """Run a coroutine in an event loop of its own.

        Args:
            main: What to run.
            ask: Called in the loop at the first signal, for a coroutine that ends by itself when
                asked; None cancels it.

        Raises:
            Signalled: If it was cancelled because of a signal.
        """
        with asyncio.Runner() as runner:
            try:
                return runner.run(self._watched(main, ask))
            except asyncio.CancelledError:
                if self.received is None:
                    raise
                raise Signalled(self.received) from None

    async def _watched(self, main: Coroutine[Any, Any, T], ask: Callable[[], object] | None) -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def handle(number: int) -> None:
            self._count_signal(number)
            if self._count == 1:
                (ask or task.cancel)()
            elif self._count == 2 and ask is not None:
                task.cancel()

        for number in self._before:
            loop.add_signal_handler(number, handle, number)
        try:
            return await main
        finally:
            for number in self._before:
                loop.remove_signal_handler(number)
            self._install()

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count_signal(number)
        if self._count == 1 and not self._deferred:
            raise Signalled(number)

    def _count_signal(self, number: int) -> None:
        self.received = number
        self._count += 1
        if self._count > 2:
            os._exit(128 + number)


@contextlib.contextmanager
def reported() -> Iterator[Signals]:
    """Run the body of a command: its errors become one line on stderr, and an exit code."""
    try:
        with Signals() as signals:
            yield signals
    except Signalled as signalled:
        raise typer.Exit(128 + signalled.number) from None
    except MissingExtra as error:
        say(f"error: a package is missing: {error}")
        raise typer.Exit(USAGE) from None
    except (InvalidChannel, PayloadTooLarge, UsageProblem) as error:
        say(f"error: {error}")
        raise typer.Exit(USAGE) from None
    except PgNotifyBusError as error:
        say(f"error: {error}")
        raise typer.Exit(FAILED) from None


def say(text: str) -> None:
    """Write a line for people: to stderr, without what could disturb a terminal."""
    lines = [printable(line) for line in text.splitlines()] or [""]
    if sys.stderr is None:  # closed at the start: print would take stdout instead
        return
    # A closed stderr is no reason to fail: there is nobody to tell.
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)
