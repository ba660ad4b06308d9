"""The one read that all live followers of a process share. Layer: log.

It reads what is new on all followed channels together, and hands it to rings, one for each set of
channels; how many follow a ring costs the database nothing. A ring carries batches: what one
statement has read, with the place behind it.

A snapshot is used to go on from only once everything that it has seen is on disk, see `durable`
(tests/integration/test_log_crash.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, NamedTuple

from pgnotifybus import observe
from pgnotifybus.broadcast import Receiver, Shared
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.position import Instant, Position, behind
from pgnotifybus.database.plans import Plans
from pgnotifybus.database.queries import run
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import Closed, EventLogError, FatalLinkError, LinkError, PgNotifyBusError
from pgnotifybus.links.base import ServerError
from pgnotifybus.log import reading
from pgnotifybus.log.durable import make_durable
from pgnotifybus.log.event import Event
from pgnotifybus.log.here import IDLE, Here, look
from pgnotifybus.log.refusals import refusal
from pgnotifybus.log.rows import Page
from pgnotifybus.log.wakes import Wakes

PAGE: Final = 500
"""The most events in a batch."""


class Batch(NamedTuple):
    """What one statement has read of the channels of a ring."""

    events: list[Event[str]]
    end: Position
    """The place behind them."""


class Ring:
    """What is handed to the followers of one set of channels."""

    def __init__(self, channels: frozenset[str], capacity: int) -> None:
        self.channels = channels
        self.shared: Shared[Batch] = Shared(capacity)
        self.error: PgNotifyBusError | None = None
        self.told_at = 0.0

    def fail(self, error: PgNotifyBusError) -> None:
        """End, with an error that followers raise once they have read what was handed to them."""
        self.error = error
        self.shared.close()


class Seat(NamedTuple):
    """Where a follower has joined: what is not in the snapshot comes through the receiver."""

    ring: Ring
    receiver: Receiver[Batch]
    instant: Instant
    epoch: bytes


class _Joiner(NamedTuple):
    channels: frozenset[str]
    seat: asyncio.Future[Seat]


class Tail:
    """Reads what is new, for all who follow."""

    def __init__(
        self, side: SideLink, schema: str, wakes: Wakes, emit: Emitter, capacity: int
    ) -> None:
        self._side = side
        self._schema = schema
        self._wakes = wakes
        self._emit = emit
        self._capacity = capacity
        self._rings: dict[frozenset[str], Ring] = {}
        self._joiners: list[_Joiner] = []
        self._listener = wakes.join(())
        self._position: Position | None = None
        self._closed = False
        self._plans = Plans()
        self._idle = IDLE
        self.reads = 0

    async def join(self, channels: Collection[str]) -> Seat:
        """Join those who follow these channels, at a snapshot that is taken now.

        Raises:
            EventLogError, SchemaError, LinkError, FatalLinkError: If the log cannot be read, and
                waiting will not help.
            Closed: If the log was closed.

        Cancel safety: nothing is left behind.
        """
        if self._closed:
            raise Closed("the event log is closed")
        joiner = _Joiner(frozenset(channels), asyncio.get_running_loop().create_future())
        self._joiners.append(joiner)
        self._listener.event.set()
        return await joiner.seat

    async def run(self) -> None:
        """Read whenever there may be something new, until cancelled."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(0.1, 5.0)
        while True:
            await self._wait()
            began = loop.time()
            try:
                await self._read_all()
                backoff.lived(60.0)
            except (EventLogError, FatalLinkError) as error:
                self._fail(error)
            except (ServerError, LinkError) as error:
                if isinstance(error, ServerError) and error.for_good:
                    self._fail(refusal(error, self._schema, "read the event log"))
                    continue
                delay = backoff.next_delay()
                self._emit(observe.LogDelayed("reading the event log", error, delay))
                backoff.lived(loop.time() - began)
                await asyncio.sleep(delay)
                self._listener.event.set()

    def close(self) -> None:
        """End: followers get what they were handed, and then `Closed`."""
        self._closed = True
        self._wakes.leave(self._listener)
        rings, self._rings = self._rings, {}
        for ring in rings.values():
            ring.shared.close()
        for joiner in self._taken_joiners():
            joiner.seat.set_exception(Closed("the event log is closed"))

    # -- inside -----------------------------------------------------------------------------------

    async def _wait(self) -> None:
        if self._position is None and not self._joiners:
            self._listener.event.clear()
        until_check = self._wakes.check_in() if self._rings else float("inf")
        timeout = min(self._idle, max(until_check, 0.01)) if self._rings else None
        try:
            async with asyncio.timeout(timeout):
                await self._listener.event.wait()
        except TimeoutError:
            pass
        self._listener.event.clear()

    async def _read_all(self) -> None:
        """Read what is new, hand it on, and let those in who wait."""
        self._forget_empty()
        # Who joins while it is looked may have read further than that look.
        waiting = len(self._joiners)
        if self._position is None:
            if waiting:
                here = await self._look()
                self._position = behind(here.epoch, here.now)
                self._let_in(waiting)
            return
        if self._position.until is not None:  # an error came in between: to the end of that first
            while await self._read_page(fresh=False):
                pass
        waiting = len(self._joiners)
        more = await self._read_page(fresh=True, wanted=waiting > 0)
        while more:
            await asyncio.sleep(0)  # those who follow take what was handed to them
            more = await self._read_page(fresh=False)
        self._let_in(waiting)

    async def _look(self) -> Here:
        async with self._side.use() as runner:
            self.reads += 1
            here = await run(look(self._schema), runner)
            await make_durable(runner, here)
            self._idle = here.idle
            return here

    async def _read_page(self, *, fresh: bool, wanted: bool = False) -> bool:
        """Read a page and hand it on; whether there is more to read at once."""
        assert self._position is not None
        script = reading.read(self._schema, self._position, self._listener.channels, PAGE)
        async with self._side.use() as runner:
            self.reads += 1
            page = await run(script, self._plans.over(runner))
            if fresh and (page.rows or page.more or wanted):
                await make_durable(runner, page.here)
            elif fresh and not page.here.durable:
                return False  # nothing is lost by going on from where it was
        self._idle = page.here.idle
        self._hand_on(page)
        return page.more

    def _hand_on(self, page: Page) -> None:
        now = asyncio.get_running_loop().time()
        self._position = page.end
        everything = page.events
        for ring in self._rings.values():
            events = everything
            if len(self._rings) > 1:
                events = [event for event in everything if event.channel in ring.channels]
            # A place goes stale by retention: those who hear nothing are given a newer one.
            if events or now - ring.told_at >= self._idle / 2:
                ring.told_at = now
                ring.shared.publish((Batch(events, page.end),))

    def _let_in(self, count: int) -> None:
        """Let in the first of those who wait: those who did when the read began."""
        if not count:
            return
        position = self._position
        assert position is not None
        assert position.since is not None
        joiners = self._taken_joiners(count)
        now = asyncio.get_running_loop().time()
        for joiner in joiners:
            ring = self._rings.get(joiner.channels)
            if ring is None:
                ring = self._rings[joiner.channels] = Ring(joiner.channels, self._capacity)
                ring.told_at = now
            seat = Seat(ring, Receiver(ring.shared), position.since, position.epoch)
            joiner.seat.set_result(seat)
        if joiners:
            self._listener.channels = frozenset().union(*self._rings)

    def _taken_joiners(self, count: int | None = None) -> list[_Joiner]:
        taken = self._joiners if count is None else self._joiners[:count]
        self._joiners = [] if count is None else self._joiners[count:]
        if self._joiners:
            self._listener.event.set()
        return [joiner for joiner in taken if not joiner.seat.done()]

    def _forget_empty(self) -> None:
        left = {key: ring for key, ring in self._rings.items() if ring.shared.receivers}
        if len(left) < len(self._rings):
            self._rings = left
            self._listener.channels = frozenset().union(*left)
        if not left:
            self._position = None

    def _fail(self, error: PgNotifyBusError) -> None:
        """Give up what cannot be mended by waiting: who follows is told, and may follow anew."""
        rings, self._rings = self._rings, {}
        self._position = None
        for ring in rings.values():
            ring.fail(error)
        for joiner in self._taken_joiners():
            joiner.seat.set_exception(error)
