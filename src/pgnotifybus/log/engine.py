"""What runs while a log is open, and what followers ask of it. Layer: log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, TypeVar

from pgnotifybus import observe
from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.names import log_channel
from pgnotifybus.core.position import Position
from pgnotifybus.database.queries import Script, run
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter, logger
from pgnotifybus.errors import Closed, LinkError
from pgnotifybus.links.base import Connector, Runner, ServerError
from pgnotifybus.log import reading
from pgnotifybus.log.here import look
from pgnotifybus.log.maintenance import Maintenance
from pgnotifybus.log.pacing import Pacing
from pgnotifybus.log.refusals import refusal
from pgnotifybus.log.rows import Page
from pgnotifybus.log.start import Start
from pgnotifybus.log.tail import Seat, Tail
from pgnotifybus.log.wakes import Wakes
from pgnotifybus.schema.checking import check_version
from pgnotifybus.subscription import Subscription

R = TypeVar("R")

_TIMEOUT: Final = 10.0
PRUNE_TIMEOUT: Final = 300.0
"""The seconds that one statement may take that counts all events."""
_PAGE: Final = 4000


@dataclass(frozen=True, slots=True)
class Settings:
    """What the parts are told."""

    schema: str
    capacity: int
    """How many batches a ring keeps."""
    pacemaker: bool
    prune: bool
    connect_timeout: float


class Engine:
    """The listening connection, the shared read, the pacemaker and the pruning of one log."""

    def __init__(
        self, source: Connector, bus: PgNotifyBus, settings: Settings, emit: Emitter
    ) -> None:
        self._source = source
        self._bus = bus
        self._settings = settings
        self._schema = settings.schema
        self._emit = emit
        self._reader = self.side("reader")
        self._tail_side = self.side("tail")
        self._parts: Parts | None = None
        self._ended = False
        self.catch_up_reads = 0

    @property
    def state(self) -> str:
        """Whether it is new, open or closed."""
        return "closed" if self._ended else "open" if self._parts is not None else "new"

    @property
    def generation(self) -> int:
        """How many listening connections there have been."""
        return self._bus.health().generation

    @property
    def parts(self) -> Parts | None:
        """What there is while it runs; None before, and what there was afterwards."""
        return self._parts

    def running(self) -> Parts:
        """What there is while it runs.

        Raises:
            Closed: If it has ended.
            RuntimeError: If it does not run, or not here.
        """
        if self._ended:
            raise Closed("the event log is closed")
        if self._parts is None:
            raise RuntimeError("the event log is not running: enter it with `async with`")
        if self._parts.process != os.getpid():
            raise RuntimeError(
                "the event log was entered in another process: make one after forking"
            )
        if self._parts.loop is not asyncio.get_running_loop():
            raise RuntimeError("the event log runs in another event loop: make one for each loop")
        return self._parts

    async def start(self) -> None:
        """Start; see `EventLog.__aenter__`."""
        if self._parts is not None or self._ended:
            raise RuntimeError("an event log is entered once: make a new one")
        await self._bus.__aenter__()
        try:
            async with self._reader.use() as runner:
                await self._check(runner)
            subscription = self._bus.subscribe(log_channel(self._schema))
            assert subscription is not None
            self._parts = self._start(asyncio.get_running_loop(), subscription)
        except BaseException:
            self._ended = True
            await self._reader.close()
            await self._bus.__aexit__(None, None, None)
            raise

    async def stop(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End; cancelling ends it all the same, and then raises."""
        parts, self._ended = self._parts, True
        if parts is None:
            return
        parts.tail.close()
        for task in parts.tasks:
            task.cancel()
        try:
            await asyncio.wait(parts.tasks)
        finally:
            try:
                await asyncio.gather(self._reader.close(), self._tail_side.close())
            finally:
                await self._bus.__aexit__(kind, error, traceback)

    # -- for followers ----------------------------------------------------------------------------

    async def join(self, channels: Sequence[str]) -> Seat:
        """Join the live tail."""
        return await self.running().tail.join(channels)

    async def read(self, position: Position, channels: Sequence[str], seat: Seat) -> Page:
        """Read from the table, up to where it was joined. Waits while there is no connection."""
        script = reading.read  # a script runs once: each attempt has one of its own
        return await self._patiently(
            lambda: script(self._schema, position, channels, _PAGE, seat.instant)
        )

    async def begin(self, begin: Start, seat: Seat) -> Position:
        """The position of a time, or of the beginning."""
        position = await self._patiently(lambda: reading.begin(self._schema, begin))
        return position._replace(epoch=seat.epoch)

    # -- for what is asked once -------------------------------------------------------------------

    async def errand(self, script: Script[R]) -> R:
        """Run a script once, over the reader's connection."""
        self.running()
        try:
            async with self._reader.use() as runner:
                return await run(script, runner)
        except ServerError as error:
            raise refusal(error, self._schema, "read the event log") from error

    def side(self, part: str, timeout: float = _TIMEOUT) -> SideLink:
        """A connection of its own for some part."""
        return SideLink(
            self._source,
            part=part,
            connect_timeout=self._settings.connect_timeout,
            timeout=timeout,
        )

    # -- inside -----------------------------------------------------------------------------------

    async def _check(self, runner: Runner) -> None:
        try:
            await check_version(runner, self._schema)
            await run(look(self._schema), runner)
        except ServerError as error:
            raise refusal(error, self._schema, "read the event log") from error

    def _start(self, loop: asyncio.AbstractEventLoop, subscription: Subscription) -> Parts:
        settings = self._settings
        wakes = Wakes(loop.time)
        tail = Tail(self._tail_side, self._schema, wakes, self._emit, settings.capacity)
        pacing = Pacing(
            self._source,
            self._schema,
            wakes,
            self._emit,
            connect_timeout=settings.connect_timeout,
            may_be_awake=settings.pacemaker,
        )
        work: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("wakes", lambda: wakes.run(subscription)),
            ("tail", tail.run),
            ("pacemaker", pacing.run),
        ]
        if settings.prune:
            side = self.side("maintenance", timeout=PRUNE_TIMEOUT)
            maintenance = Maintenance(side, self._schema)
            work.append(("maintenance", maintenance.run))
        tasks = [
            loop.create_task(self._keep_running(name, run), name=f"pgnotifybus {name}")
            for name, run in work
        ]
        return Parts(loop, os.getpid(), wakes, tail, pacing, tasks)

    async def _keep_running(self, part: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part, and again after an error that nobody foresaw: others wait for its work."""
        backoff = Backoff(0.1, 5.0)
        while True:
            try:
                return await run()
            except Exception as error:  # noqa: BLE001 - it is told, and the next turn may do
                delay = backoff.next_delay()
                logger.exception("the %s of the event log has failed", part)
                self._emit(observe.LogDelayed(f"the {part}", error, delay))
                await asyncio.sleep(delay)

    async def _patiently(self, script: Callable[[], Script[R]]) -> R:
        """Run a script over the reader's connection, and again for as long as there is none."""
        backoff = Backoff(0.1, 5.0)
        while True:
            self.running()
            try:
                async with self._reader.use() as runner:
                    self.catch_up_reads += 1
                    return await run(script(), runner)
            except ServerError as error:
                if error.for_good:
                    raise refusal(error, self._schema, "read the event log") from error
                failure: Exception = error
            except LinkError as error:
                failure = error
            delay = backoff.next_delay()
            self._emit(observe.LogDelayed("catching up", failure, delay))
            await asyncio.sleep(delay)


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is while it runs."""

    loop: asyncio.AbstractEventLoop
    process: int
    wakes: Wakes
    tail: Tail
    pacing: Pacing
    tasks: list[asyncio.Task[None]]
