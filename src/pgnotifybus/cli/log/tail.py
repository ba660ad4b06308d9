"""`pgnotifybus log tail`: one line an event, as they come. Layer: cli."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from pgnotifybus import observe
from pgnotifybus.cli.log.places import beginning_there
from pgnotifybus.cli.log.show import GapReason, event_line, gap_line, written
from pgnotifybus.cli.outcomes import OK, say
from pgnotifybus.cli.output import Output
from pgnotifybus.cli.render import Plain, printable
from pgnotifybus.errors import Closed, CursorExpired, EpochMismatch
from pgnotifybus.links.sources import Driver
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event import Event
from pgnotifybus.log.event_log import After, EventLog

_LARGEST_BATCH = 1_000  # lines written at once

_ADVICE = (
    "--after beginning begins with the oldest event that is kept; --gaps marks the place and goes "
    "on by itself"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What to follow, and for how long."""

    channels: Sequence[str]
    after: After
    schema: str
    driver: Driver | None = None
    json: bool = False
    gaps: bool = False
    """Whether a cursor that one cannot go on from is a line, and not an error."""
    count: int | None = None
    """How many events end it; gaps do not count. None for no limit."""
    follow: bool = True
    """Whether it waits for more, rather than ending with what is there now."""


async def tail(dsn: str, request: Request) -> int:
    """Write events to stdout until enough has come or nobody reads them any more.

    Returns:
        The exit code.

    Raises:
        ConnectError, FatalLinkError, SchemaError: If there is no connection, or no log.
        CommandFailed: If it cannot go on from a cursor; or if stdout cannot be written to.

    Cancel safety: it ends, and leaves nothing running.
    """
    async with Output() as output:
        tailing = _Tailing(request, output)
        log = EventLog(
            dsn, schema=request.schema, driver=request.driver, prune=False, observer=_observed
        )
        async with log:
            work = asyncio.create_task(tailing.run(log))
            try:
                await asyncio.wait({work, output.gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.cancel()
                await asyncio.wait({work})
        if not work.cancelled():
            work.result()
        if output.gone.done():
            output.gone.result()  # the reader has had what it wanted, unless this fails
    return OK


class _Tailing:
    def __init__(self, request: Request, output: Output) -> None:
        self._request = request
        self._output = output
        self._left = request.count

    async def run(self, log: EventLog) -> None:
        """Write events until enough has come; with gaps, over any place where some are missing."""
        after = self._request.after
        with beginning_there(_ADVICE):
            while True:
                try:
                    await self._follow(log, after)
                    return
                except CursorExpired as error:
                    if not self._request.gaps:
                        raise
                    after = error.oldest
                    await self._gap("expired", error.oldest)
                except EpochMismatch:
                    if not self._request.gaps:
                        raise
                    after = now = await log.cursor()
                    await self._gap("epoch", now)

    async def _follow(self, log: EventLog, after: After) -> None:
        """Write what comes, or what there is by now."""
        channels, live = self._request.channels, self._request.follow
        async with log.follow(*channels, after=after, live=live) as follower:
            if live:
                say(f"-- following {', '.join(map(printable, channels))}")
            with contextlib.suppress(Closed):
                while await self._write(await follower.recv_many(self._wanted())):
                    pass

    def _wanted(self) -> int:
        return _LARGEST_BATCH if self._left is None else min(self._left, _LARGEST_BATCH)

    async def _write(self, events: list[Event[str]]) -> bool:
        """Write some events; whether more are wanted."""
        json = self._request.json
        await written(self._output, [event_line(event, json=json) for event in events])
        if self._left is None:
            return True
        self._left -= len(events)
        return self._left > 0

    async def _gap(self, reason: GapReason, cursor: Cursor) -> None:
        json, text = self._request.json, str(cursor)
        channels = self._request.channels
        lines = [gap_line(name, reason, text, json=json) for name in channels]
        await written(self._output, lines)


_plain = Plain()


def _observed(event: observe.Event) -> None:
    """Say what delays events; none is missing because of it."""
    match event:
        case observe.LogDelayed():
            say(f"-- {event.doing}: {event.error}; trying again in {event.retry_in:.1f} s")
        case observe.LinkUp(generation=1):
            pass
        case _:
            line = _plain.event(event)
            if line is not None:
                say(line)
