"""`pgnotifybus listen`: one line a message. Layer: cli."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgnotifybus import observe
from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.cli import render
from pgnotifybus.cli.outcomes import FAILED, OK, UsageProblem, say
from pgnotifybus.cli.output import Output
from pgnotifybus.core.names import SCHEMA
from pgnotifybus.links.sources import Driver
from pgnotifybus.messages import Gap, Notification
from pgnotifybus.subscription import Subscription

# Much more than a burst has: only who stops reading our output lags.
CAPACITY = 65_536

_LARGEST_BATCH = 1_000  # lines written at once


@dataclass(slots=True)
class Request:
    """What to listen to, and for how long."""

    channels: Sequence[str]
    driver: Driver | None = None
    json: bool = False
    count: int | None = None
    """How many messages end it; gaps do not count. None for no limit."""
    timeout: float | None = None
    """How many seconds of listening end it."""
    schema: str = SCHEMA
    """The schema of the table for large payloads."""


def check_stdout() -> None:
    """Make sure that there is a place for messages.

    Raises:
        UsageProblem: If stdout is closed.
    """
    if sys.stdout is None:  # closed at the start
        raise UsageProblem("stdout is closed: there is nowhere to write messages to")


async def listen(dsn: str, request: Request) -> int:
    """Write messages to stdout until enough has come or nobody reads them any more.

    Returns:
        The exit code: 1 if the time was over before the count was reached.

    Raises:
        ConnectError, FatalLinkError: If there is no connection at the start.
        CommandFailed: If stdout cannot be written to.

    Cancel safety: it ends, and leaves nothing running.
    """
    async with Output() as output:
        return await _Listening(request, output).run(dsn)


class _Listening:
    def __init__(self, request: Request, output: Output) -> None:
        self._request = request
        self._output = output
        self._render: render.Renderer = render.Json() if request.json else render.Plain()
        self._left = request.count
        self._enough = asyncio.Event()

    async def run(self, dsn: str) -> int:
        bus = PgNotifyBus(
            dsn,
            self._request.channels,
            capacity=CAPACITY,
            driver=self._request.driver,
            schema=self._request.schema,
            observer=self._observe,
        )
        receivers = [rx for name in bus.channels() if (rx := bus.subscribe(name)) is not None]
        async with bus:
            work = [asyncio.create_task(self._follow(receiver)) for receiver in receivers]
            enough = asyncio.create_task(self._enough.wait())
            waited_for: set[asyncio.Future[Any]] = {*work, enough, self._output.gone}
            try:
                await asyncio.wait(
                    waited_for,
                    timeout=self._request.timeout,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                for task in (*work, enough):
                    task.cancel()
                await asyncio.gather(*work, enough, return_exceptions=True)
        for task in work:
            if not task.cancelled():
                task.result()
        if self._output.gone.done():
            self._output.gone.result()
            return OK  # the reader has had what it wanted
        return OK if self._enough.is_set() or self._request.count is None else FAILED

    async def _follow(self, receiver: Subscription) -> None:
        """Write what one channel brings, in its order."""
        events = receiver.events()
        async for item in events:
            batch = [item]
            while len(receiver) and len(batch) < _LARGEST_BATCH:
                batch.append(await anext(events))
            lines = [self._render.item(each) for each in batch if self._wanted(each)]
            await self._output.write(lines)
            if self._left == 0:
                self._enough.set()
                return

    def _wanted(self, item: Notification | Gap) -> bool:
        if self._left is None:
            return True
        if self._left == 0:
            return False
        if isinstance(item, Notification):
            self._left -= 1
        return True

    def _observe(self, event: observe.Event) -> None:
        line = self._render.event(event)
        if line is None:
            return
        if self._request.json:
            self._output.put(line)
        else:
            say(line)
