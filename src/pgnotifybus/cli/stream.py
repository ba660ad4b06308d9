"""`pgnotifybus notify CHANNEL -`: each line of stdin is a notification. Layer: cli.

Lines are handed to a publisher as they come, which sends them in batches. While the server is away
they wait, and what comes on stdin waits with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, TextIO

import typer

from pgnotifybus import observe
from pgnotifybus.cli.lines import KeyOf, Line, Lines, bad_line, key_field, no_key, one_key
from pgnotifybus.cli.notify import CONNECT_TIMEOUT, TIMEOUT
from pgnotifybus.cli.outcomes import (
    FAILED,
    OK,
    USAGE,
    CommandFailed,
    Signals,
    UsageProblem,
    say,
)
from pgnotifybus.cli.progress import progress
from pgnotifybus.cli.sent import Sent
from pgnotifybus.cli.stdin import Stdin
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import Closed, PublishFailed
from pgnotifybus.links.sources import Connector
from pgnotifybus.publish.publisher import Publisher
from pgnotifybus.publish.settings import Settings

_PATIENCE: Final = 60.0
"""The seconds for which the end waits for a server that takes nothing: as long as a failover."""
_DRAIN: Final = 3.0
"""The seconds for which it waits after a signal: who stops a service kills it after ten."""
_HELD_BYTES: Final = 32 * 1024 * 1024
"""How much is read ahead of the server, as the publisher only counts messages."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to send where, and what to say about it."""

    stdin: Stdin
    channel: str
    schema: str
    settings: Settings
    key_of: KeyOf
    json: bool
    verbose: bool


def settings(batch: int, linger: float, *, durable: bool) -> Settings:
    """How the publisher of a stream works.

    Args:
        batch: How many lines may go into one commit.
        linger: The seconds for which a line may wait for others.
        durable: Whether commits wait for the disk.

    Raises:
        UsageProblem: If a number is out of range.
    """
    try:
        return Settings(
            batch_size=batch,
            linger=linger,
            capacity=max(Settings().capacity, 2 * batch),
            durable=durable,
            drain_timeout=_DRAIN,
        )
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def keys(key: str | None, field: str | None) -> KeyOf:
    """What tells the keys of lines.

    Raises:
        UsageProblem: If both are given.
    """
    if key is not None and field is not None:
        raise UsageProblem("--key and --key-field exclude each other")
    if key is not None:
        return one_key(key)
    return no_key if field is None else key_field(field)


def stream(connector: Connector, request: Request, signals: Signals) -> int:
    """Send the lines of stdin, and say what has become of them.

    Returns:
        The exit code.

    Raises:
        ConnectError, FatalLinkError: If there is no connection at the start; nothing was read.
        Signalled: If it was interrupted twice, or before anything was read.
    """
    sending = _Streaming(connector, request)
    try:
        signals.run(sending.run(), ask=sending.stop.set)
    finally:
        if sending.begun:
            sending.tell(signals.received)
    return 128 + signals.received if signals.received else sending.code


class _Streaming:
    def __init__(self, connector: Connector, request: Request) -> None:
        self._request = request
        self._side = SideLink(
            connector, part="publisher", connect_timeout=CONNECT_TIMEOUT, timeout=TIMEOUT
        )
        self._publisher = Publisher(
            self._side,
            request.schema,
            request.settings,
            Emitter(self._observe),
            on_start=lambda _: None,
            on_end=lambda _: None,
        )
        self._sent = Sent(request.channel)
        self._unflushed = 0
        """Bytes that were taken since all were settled."""
        self._problem: UsageProblem | CommandFailed | None = None
        """Why the input was not read to its end."""
        self._delayed_at = -1
        """After how many commits it was last said that it cannot send."""
        self._refused = False
        """Whether it was said that some are refused."""
        self._ending = False
        """Whether nothing more is sent but what waits; what is given up then is told at the end."""
        self.begun = False
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Send all that comes, or what has come until `stop` is set.

        Raises:
            ConnectError, FatalLinkError: If there is no connection at the start.

        Cancel safety: what has not been sent is given up, and counted.
        """
        try:
            if not await self._unless_stopped(self._connect()):
                return
            self.begun = True
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                async with self._shown(), self._publisher:
                    try:
                        if await self._unless_stopped(self._feed()):
                            await self._unless_stopped(self._settle())
                    finally:
                        self._ending = True
            except PublishFailed as failure:
                self._sent.fail(failure)
            finally:
                self._sent.seconds = loop.time() - began
                self._count()
        finally:
            await self._side.close()

    @property
    def code(self) -> int:
        """The exit code, if no signal was received."""
        if not self._sent.ok or isinstance(self._problem, CommandFailed):
            return FAILED
        return OK if self._problem is None else USAGE

    def tell(self, signal_number: int | None) -> None:
        """Say what has become of the lines."""
        sent, request = self._sent, self._request
        whole = sent.ok and self._problem is None and signal_number is None
        if not request.json and (request.verbose or not whole or _is_terminal(sys.stderr)):
            say(sent.summary())
        if signal_number is not None:
            name = signal.Signals(signal_number).name
            say(f"stopped by {name}: nothing behind line {sent.accepted:,} was taken")
        if isinstance(self._problem, UsageProblem):
            say(f"error: {self._problem}; neither it nor what follows it was sent")
        elif self._problem is not None:
            say(f"error: {self._problem}")
        if not sent.ok:
            say(f"error: {sent.failure()}")
        if request.json:
            typer.echo(sent.json())

    # -- inside -----------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Fail at once where waiting would be in vain; the publisher would try again for ever."""
        async with self._side.use():
            pass

    async def _feed(self) -> None:
        """Hand the publisher all lines, up to the first that cannot be sent."""
        lines = Lines()
        try:
            while data := await self._request.stdin.read():
                await self._publish(lines.feed(data))
            await self._publish(lines.end())
        except (UsageProblem, CommandFailed) as problem:
            self._problem = problem
        except Closed as closed:  # the publisher has given up for good
            self._problem = CommandFailed(str(closed))

    async def _publish(self, lines: Iterator[Line]) -> None:
        for line in lines:
            await self._take(line)
            self._sent.bytes += line.size
            self._unflushed += line.size
            if self._unflushed > _HELD_BYTES:
                await self._flush()

    async def _take(self, line: Line) -> None:
        key = self._request.key_of(line)
        while True:
            try:
                await self._publisher.publish(self._request.channel, line.text, key)
            except PublishFailed as failure:  # of many earlier ones; this one has not been taken
                self._sent.fail(failure)
            except ValueError as error:
                raise bad_line(line.number, f"cannot be sent: {error}") from None
            else:
                return

    async def _settle(self) -> None:
        """Wait until all is sent, unless the server takes nothing for too long."""
        with contextlib.suppress(TimeoutError, Closed):  # what is not sent is told at the end
            while True:
                waiting = self._publisher.statistics().waiting
                try:
                    async with asyncio.timeout(_PATIENCE):
                        await self._flush()
                    return
                except TimeoutError:
                    if self._publisher.statistics().waiting == waiting:
                        raise

    async def _flush(self) -> None:
        try:
            await self._publisher.flush()
        except PublishFailed as failure:
            self._sent.fail(failure)
        self._unflushed = 0

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do something, or give it up as soon as `stop` is set; whether it was done."""
        if self.stop.is_set():
            work.close()
            return False
        tasks = {doing := asyncio.create_task(work), asyncio.create_task(self.stop.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if doing.cancelled():
            return False
        doing.result()
        return True

    # -- what people see --------------------------------------------------------------------------

    def _shown(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Show how far it is, where somebody looks on and does not type."""
        quiet = self._request.verbose or self._request.json or _is_terminal(sys.stdin)
        if quiet or not _is_terminal(sys.stderr):
            return contextlib.nullcontext()
        return progress(self._progress)

    def _progress(self) -> str:
        self._count()
        return self._sent.progress()

    def _count(self) -> None:
        self._sent.count(self._publisher.statistics())

    def _observe(self, event: observe.Event) -> None:
        """Say once in each outage that lines wait, and once that some are refused."""
        if self._request.verbose:
            return  # it is in the log
        match event:
            case observe.PublishDelayed():
                commits = self._publisher.statistics().commits
                if commits != self._delayed_at:
                    self._delayed_at = commits
                    say(f"-- cannot send: {event.error}; {event.waiting} waiting, trying again")
            case observe.PublishRefused() if not self._refused and not self._ending:
                self._refused = True
                say(f"-- refused: {event.reason}; going on with the others")


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None if it was closed from the start
