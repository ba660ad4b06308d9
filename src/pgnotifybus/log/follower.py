"""Following the log: first what was missed, then what comes. Layer: log.

A follower joins the live tail first, at a snapshot, and then reads from the table what lies between
its cursor and that snapshot. What the tail has handed to it meanwhile comes behind: there is no
seam at which anything could be missing or come twice. One that falls so far behind that the tail
has overwritten what it had not read begins again in the same way, from its own cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from pgnotifybus.core.position import Position, behind
from pgnotifybus.errors import Closed, CursorExpired, EpochMismatch, EventLogError, Lagged
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.engine import Engine
from pgnotifybus.log.event import Event
from pgnotifybus.log.rows import Page
from pgnotifybus.log.start import Start
from pgnotifybus.log.tail import Seat
from pgnotifybus.messages import Gap, GapReason
from pgnotifybus.typed import Channel

Item = TypeVar("Item")


class Follower(Generic[Item]):
    """Events of some channels, from a cursor on, for ever; and gaps, if they were asked for.

    An iterator and no generator: the loop may be left and entered again, and after an error it goes
    on where it was. `async with` joins at once, rather than at the first event, which matters after
    `"now"`. One that is garbage-collected leaves as if it were closed.
    """

    def __init__(
        self,
        engine: Engine,
        channels: Sequence[str],
        start: Start,
        *,
        gaps: bool,
        live: bool,
        decode: Callable[[str], Any] | None,
    ) -> None:
        self._engine = engine
        self._channels = channels
        self._start: Start | None = start
        self._gaps = gaps
        self._waits = live
        self._decode = decode
        self._seat: Seat | None = None
        self._position: Position | None = None
        self._events: list[Event[str]] = []
        self._index = 0
        self._pending: list[Gap] = []
        self._closed = False
        self._live = False
        self._page: Page | None = None
        self._ahead: asyncio.Task[Page] | None = None
        self._before: Cursor | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "live" if self._live else "catching up"
        return f"<Follower of {', '.join(self._channels)}: {state}>"

    async def __aenter__(self) -> Follower[Item]:
        """Join: what commits from now on is delivered.

        Raises:
            EpochMismatch, CursorExpired, SchemaMissing, SchemaError: As when iterating.
        """
        if self._seat is None:
            await self._join()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Follower[Item]:
        return self

    async def __anext__(self) -> Item:
        """The next event; waits for one. The loop ends when the log is closed.

        Raises:
            CursorExpired: If retention has deleted what comes next. Follow anew after `.oldest`.
            EpochMismatch: If the cursor is of another log, or the log was made anew meanwhile.
            SchemaMissing, SchemaError: If the log is not there, or may not be read; the message
                names the GRANT.
            ConnectError, FatalLinkError: If there is no connection to catch up over: go on
                iterating, it tries again.
            Malformed: If the payload is not of the type of the channel: go on iterating.

        Cancel safety: cancelling loses nothing; the event is there for the next step.
        """
        while self._index == len(self._events):
            if self._pending:
                return cast(Item, self._pending.pop(0))
            try:
                await self._fill()
            except Closed:
                raise StopAsyncIteration from None
        event = self._events[self._index]
        self._index += 1
        if self._decode is None:
            return cast(Item, event)
        return cast(Item, event._replace(payload=self._decode(event.payload)))

    async def recv_many(self, limit: int | None = None) -> list[Item]:
        """All events that are there, at least one; waits for the first. The fast way to read.

        Args:
            limit: The longest list wanted; at least 1.

        Raises:
            Closed: If the log, or this follower, is closed.
            ValueError: If the limit is below 1; or if gaps were asked for, which are no events.
            Exception: Otherwise as iterating. With a typed channel, `Malformed` for the first.

        Cancel safety: cancelling loses nothing.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if self._gaps:
            raise ValueError("a follower with gaps=True is read by iterating over it")
        while self._index == len(self._events):
            await self._fill()
        end = len(self._events) if limit is None else self._index + limit
        events = self._events[self._index : end]
        if self._decode is None:
            self._index += len(events)
            return cast(list[Item], events)
        decoded: list[Item] = []
        for event in events:
            try:
                payload = self._decode(event.payload)
            except Exception:
                if decoded:
                    break
                self._index += 1
                raise
            decoded.append(cast(Item, event._replace(payload=payload)))
            self._index += 1
        return decoded

    @property
    def cursor(self) -> Cursor | None:
        """The place behind what was handed out; None before it has joined, if that was no cursor.

        Newer than the cursor of the last event, where nothing came since: a follower of a quiet
        channel that stores it now and then is never overtaken by retention. Still there when the
        follower is closed.
        """
        if self._pending:  # until the gap is handed out, who goes on from here is to hear of it
            return self._before
        if 0 < self._index < len(self._events):
            return self._events[self._index - 1].cursor
        if self._index == 0 and self._events:
            return self._before
        if self._position is not None:
            return Cursor.at(self._position)
        return self._start.cursor if self._start is not None else None

    def close(self) -> None:
        """Leave. Twice is harmless; who waits for an event is told `Closed`, the loop ends."""
        cursor = self.cursor
        if cursor is not None:
            self._position = cursor.position
        self._closed = True
        self._events, self._index, self._pending = [], 0, []
        self._leave()

    # -- inside -----------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Get more events, or be it a step nearer to them."""
        self._check_open()
        try:
            if self._page is not None:
                self._take(self._page.events, self._page.end)
                self._page = None
            elif self._seat is None:
                await self._join()
            elif self._live:
                if not self._waits:
                    self.close()
                    raise Closed("this follower has read what there was")
                await self._receive(self._seat)
            else:
                await self._catch_up(self._seat)
        except CursorExpired as error:
            self._leave()
            if not self._gaps:
                raise
            self._gap("expired", error.oldest.position)
        except EpochMismatch:
            self._leave()
            if not self._gaps:
                raise
            self._gap("epoch", None)
        except EventLogError:
            # A row that cannot be read, say: what lies in front of it and behind is read anew.
            self._leave()
            raise

    async def _catch_up(self, seat: Seat) -> None:
        """Take the next page, and have the one behind it read while this one is handed out."""
        assert self._position is not None
        ahead = self._ahead = self._ahead or self._read_ahead(self._position, seat)
        await asyncio.wait({ahead})  # cancelled, it is there for the next step
        self._check_open()
        self._ahead = None
        page = self._page = ahead.result()
        self._live = page.end == behind(seat.epoch, seat.instant)
        if page.more and page.rows:
            self._ahead = self._read_ahead(page.end, seat)
            await asyncio.sleep(0)  # it is asked for now, before the rows keep us busy

    def _read_ahead(self, position: Position, seat: Seat) -> asyncio.Task[Page]:
        read = self._engine.read(position, self._channels, seat)
        task = asyncio.create_task(read, name="pgnotifybus catching up")
        # If nobody comes for it any more, nobody need know how it ended.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _join(self) -> None:
        seat = await self._engine.join(self._channels)
        try:
            self._check_open()
            if self._position is None:
                position = await self._begin(seat)
                self._check_open()
                self._position = position
                self._start = None
        except BaseException:
            seat.receiver.close()
            raise
        self._seat = seat
        # Any other place is looked at first, also one that would be ahead: is it of this log?
        self._live = self._position == behind(seat.epoch, seat.instant)

    async def _begin(self, seat: Seat) -> Position:
        if self._start is None or self._start.is_now:
            return behind(seat.epoch, seat.instant)
        if self._start.cursor is not None:
            return self._start.cursor.position
        return await self._engine.begin(self._start, seat)

    async def _receive(self, seat: Seat) -> None:
        try:
            batch = await seat.receiver.recv()
        except Lagged:
            # Overrun: read it from the table, up to where it joins the tail anew.
            self._leave()
        except Closed:
            if seat.ring.error is None or self._closed:
                raise
            self._leave()
            raise seat.ring.error from None
        else:
            self._take(batch.events, batch.end)

    def _take(self, events: list[Event[str]], end: Position) -> None:
        # Nothing is awaited in between: either all of this has happened or nothing.
        assert self._position is not None
        self._before = Cursor.at(self._position)
        self._events, self._index, self._position = events, 0, end

    def _leave(self) -> None:
        seat, self._seat = self._seat, None
        self._live, self._page = False, None
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        if seat is not None:
            seat.receiver.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this follower is closed")

    def _gap(self, reason: GapReason, position: Position | None) -> None:
        self._before = self.cursor
        self._position = position
        self._start = None
        self._events, self._index = [], 0
        generation = self._engine.generation
        self._pending = [Gap(reason, name, generation, None) for name in self._channels]


def names_of(channels: Sequence[str | Channel[Any]]) -> list[str]:
    """The names of channels, typed or not."""
    return [each.name if isinstance(each, Channel) else each for each in channels]
