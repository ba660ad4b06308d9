"""The one read that all live followers of a process share. Layer: log.

It reads what is new on all followed channels together, and hands it to rings, one for each set of
channels; how many follow a ring costs the database nothing. A ring carries batches: what one
statement has read, with the place behind it.

A snapshot is used to go on from only once everything that it has seen is on disk. A server that
crashes gives the ids of transactions that were not on disk to others: behind a snapshot that had
seen such a one, the event of another would count as read (tests/integration/test_log_crash.py). A
commit is on disk before others see it, but a rollback is not, nor is a commit with
synchronous_commit=off.
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
from pgnotifybus.errors import Closed, EventLogError, FatalLinkError, LinkError, PgNotifyBusError
from pgnotifybus.links.base import Runner, ServerError
from pgnotifybus.log import reading
from pgnotifybus.log.event import Event
from pgnotifybus.log.refusals import refusal
from pgnotifybus.log.wakes import Wakes

PAGE: Final = 500
"""The most events in a batch."""
IDLE: Final = 90.0
"""The seconds after which is looked, although nothing was heard."""
_FLUSH_WAITS: Final = (0.001, 0.002, 0.004)


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
        self, side: SideLink, schema: str, wakes: Wakes, emit: observe.Emitter, capacity: int
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
        timeout = min(IDLE, max(until_check, 0.01)) if self._rings else None
        try:
            async with asyncio.timeout(timeout):
                await self._listener.event.wait()
        except TimeoutError:
            pass
        self._listener.event.clear()

    async def _read_all(self) -> None:
        """Read what is new, hand it on, and let those in who wait."""
        self._forget_empty()
        if self._position is None:
            if self._joiners:
                here = await self._look()
                self._position = behind(here.epoch, here.now)
                self._let_in(len(self._joiners))
            return
        if self._position.until is not None:  # an error came in between: to the end of that first
            while await self._read_page(fresh=False):
                pass
        waiting = len(self._joiners)
        more = await self._read_page(fresh=True, joiners=waiting)
        while more:
            await asyncio.sleep(0)  # those who follow take what was handed to them
            more = await self._read_page(fresh=False)
        self._let_in(waiting)

    async def _look(self) -> reading.Here:
        async with self._side.use() as runner:
            self.reads += 1
            here = await run(reading.look(self._schema), runner)
            await self._durable(runner, here, write=True)
            return here

    async def _read_page(self, *, fresh: bool, joiners: int = 0) -> bool:
        """Read a page and hand it on; whether there is more to read at once."""
        assert self._position is not None
        script = reading.read(self._schema, self._position, self._listener.channels, PAGE)
        async with self._side.use() as runner:
            self.reads += 1
            page = await run(script, self._plans.over(runner))
            needed = bool(page.rows or joiners)
            if fresh and not await self._durable(runner, page.here, write=needed):
                return False  # nothing is lost by going on from where it was
        self._hand_on(page)
        return page.more

    async def _durable(self, runner: Runner, here: reading.Here, *, write: bool) -> bool:
        """Wait until all that was seen is on disk; whether it is.

        Args:
            runner: The connection to ask over.
            here: What was seen.
            write: Whether to have it written, if nobody else does.
        """
        if here.durable or not write:
            return here.durable
        for wait in _FLUSH_WAITS:  # others commit, or will soon
            await asyncio.sleep(wait)
            query = reading.is_durable(here.inserted)
            [(answer,)] = await runner.fetch(query.sql, *query.parameters)
            if answer == "true":
                return True
        await runner.execute(reading.FLUSH)
        return True

    def _hand_on(self, page: reading.Page) -> None:
        now = asyncio.get_running_loop().time()
        self._position = page.end
        everything = page.events
        for ring in self._rings.values():
            events = everything
            if len(self._rings) > 1:
                events = [event for event in everything if event.channel in ring.channels]
            # A place goes stale by retention: those who hear nothing are given a newer one.
            if events or now - ring.told_at >= IDLE / 2:
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
