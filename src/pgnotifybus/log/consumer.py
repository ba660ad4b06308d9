"""Consumers: cursors with a name, moved on in the transaction of the work. Layer: log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final

from pgnotifybus import observe
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.names import check_channel
from pgnotifybus.core.position import Position
from pgnotifybus.database.queries import Script
from pgnotifybus.database.work import Transaction, Work, server_error
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import Closed, FatalLinkError, LinkError
from pgnotifybus.links.base import Lender
from pgnotifybus.log import reading
from pgnotifybus.log.event import Event
from pgnotifybus.log.ledger import DeadLetter, Dropped, Entry, Ledger
from pgnotifybus.log.rows import Page
from pgnotifybus.log.start import Start, start
from pgnotifybus.log.turn import Turn
from pgnotifybus.log.wakes import Listener, Wakes

_LONGEST_ERROR: Final = 2000
_PAGES: Final = 50
"""So many pages in which there is nothing are passed in one transaction."""

# Of these, a transaction that is tried again may succeed: it was not the event's fault.
_TRANSIENT: Final = ("40001", "40P01", "55P03")
_ABORTED: Final = "25P02"  # in_failed_sql_transaction


class Batch:
    """Events, and the transaction in which to act on them."""

    __slots__ = ("connection", "events")

    def __init__(self, events: list[Event[str]], connection: Any) -> None:
        self.events = events
        """At least one, in their order."""
        self.connection = connection
        """A connection of the source's kind (asyncpg, psycopg, SQLAlchemy), in a transaction that
        ends with the block. Do not commit or roll back yourself; savepoints are fine."""


class Consumer:
    """A cursor with a name; see `EventLog.consumer`.

    ::

        async with log.consumer("billing", "orders") as consumer:
            while True:
                async with consumer.batch(limit=100) as batch:
                    for event in batch.events:
                        await batch.connection.execute(...)

    The end of the block commits your work and the cursor together: each event takes effect exactly
    once, whatever dies and whenever. An exception in the block rolls both back and goes through;
    the next `batch` then brings the same events again, half as many until the one that fails stands
    alone. That one is tried again with backoff, and after `max_attempts` set aside as a dead
    letter, and the rest goes on. What fails because of the connection, or of other transactions
    (deadlocks, serialization), does not count.
    """

    def __init__(
        self,
        lender: Lender,
        schema: str,
        name: str,
        channels: Sequence[str],
        begin: Start,
        wakes: Wakes,
        emit: Emitter,
        *,
        max_attempts: int,
        backoff_initial: float,
        backoff_maximum: float,
        connect_timeout: float,
    ) -> None:
        check_channel(name)  # the same rules, and a clear message
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {max_attempts}")
        Backoff(backoff_initial, backoff_maximum)  # says what is wrong with them
        self._schema = schema
        self._channels = list(channels)
        self._begin = begin
        self._wakes = wakes
        self._emit = emit
        self._max_attempts = max_attempts
        self._initial, self._maximum = backoff_initial, backoff_maximum
        self._ledger = Ledger(schema, name)
        self._turn = Turn(lender, self._ledger, connect_timeout)
        self._listener: Listener | None = None
        self._batch_of: asyncio.Task[Any] | None = None
        self._stored_at = 0.0
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "active" if self.active else "standing by"
        return f"<Consumer {self._ledger.name!r} of {', '.join(self._channels)}: {state}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self._ledger.name

    @property
    def active(self) -> bool:
        """Whether it is the one of its name that works."""
        return self._turn.is_ours

    async def __aenter__(self) -> Consumer:
        """Make the consumer, if there is none of its name. Does not wait to become the active one.

        Raises:
            SchemaMissing, SchemaError: If the log is not there, or may not be used; the message
                names the GRANT.
            LinkError, FatalLinkError: If there is no connection.

        Cancel safety: nothing is left open.
        """
        if self._listener is not None or self._closed:
            raise RuntimeError("a consumer is entered once: make a new one")
        await self._turn.once(self._enter())
        self._listener = self._wakes.join(self._channels)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave: another of the same name takes over."""
        self.abandon()
        if self._listener is not None:
            self._wakes.leave(self._listener)
        await self._turn.give_up()

    def abandon(self) -> None:
        """End, because its log does: no batch begins any more; one that is open goes on."""
        self._closed = True
        self._turn.leave()
        if self._listener is not None:
            self._listener.event.set()

    def batch(self, *, limit: int = 100) -> AbstractAsyncContextManager[Batch]:
        """The next events, and a transaction; waits for the turn of this consumer, and for events.

        Args:
            limit: The most events; at least 1.

        Raises:
            CursorExpired: If retention has deleted what comes next: `seek` to `.oldest`, after
                re-reading what was lost.
            EpochMismatch: If the log was made anew, or restored elsewhere: `seek`.
            Closed: If the consumer has been left, or its log closed.
            LinkLost: If the connection breaks when the block has ended. Whether it was committed
                the database knows, and the next batch begins accordingly.
            RuntimeError: If a batch is open already, or the consumer is not entered.
            ValueError: If the limit is below 1.
            Exception: What the block raises, and the driver on commit, as it is.

        Cancel safety: the transaction is rolled back, and nothing is lost.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return _Block(self, limit)

    async def seek(self, after: Any) -> None:
        """Go on from another place: a cursor, `"beginning"`, `"now"` or a point in time.

        Waits for a batch that is open, of whichever process, but not for longer than half a minute.
        Failed attempts are forgotten.

        Raises:
            LinkLost: If a batch was open for longer: try again.
            InvalidCursor, ValueError, TypeError: If it is no place.
            EpochMismatch, CursorExpired: If one cannot go on from there.
            RuntimeError: In the block of a batch of its own, for which it would wait.
            Otherwise as entering.
        """
        begin = start(after)
        self._check_outside()

        def script() -> Script[None]:
            position = yield from reading.begin(self._schema, begin)
            yield from self._ledger.take()
            yield from self._ledger.store(position)
            yield from self._ledger.tell()

        await self._turn.once(script())

    async def reset(self) -> None:
        """Go back to the oldest event that is kept; otherwise as `seek`."""
        await self.seek("beginning")

    async def lag(self) -> reading.Lag:
        """How many events it has not consumed yet, and for how long the oldest has waited.

        Raises:
            EpochMismatch, CursorExpired: If it cannot go on from where it is.
            Otherwise as entering.
        """

        def script() -> Script[reading.Lag]:
            entry = yield from self._ledger.look()
            return (yield from reading.lag(self._schema, entry.position, self._channels))

        return await self._turn.once(script())

    async def dead_letters(self) -> list[DeadLetter]:
        """The events that were set aside, oldest first. Raises as entering."""
        return await self._turn.once(self._ledger.dead())

    async def replay(self, *ids: int) -> int:
        """Have dead letters tried again, one by one: the next batches are these.

        Those that succeed are dead letters no more; those that fail again stay.

        Args:
            ids: Of their events; none for all.

        Returns:
            How many will be tried again.
        """

        def script() -> Script[int]:
            count = yield from self._ledger.replay(ids or None)
            yield from self._ledger.tell()
            return count

        return await self._turn.once(script())

    async def drop(self) -> bool:
        """Forget the consumer and its dead letters; whether there was one.

        Waits for a batch that is open, and raises, as `seek`.
        """
        self._check_outside()
        return await self._turn.once(self._ledger.drop())

    def _check_outside(self) -> None:
        if self._batch_of is not None and self._batch_of is asyncio.current_task():
            raise RuntimeError("it would wait for the batch that is open here: do it afterwards")

    # -- inside: taking a batch --------------------------------------------------------------------

    async def _take(self, limit: int) -> _Taken:
        """Wait for events, and for the turn; returns with a transaction open."""
        if self._listener is None:
            raise RuntimeError("the consumer is not entered: use `async with`")
        backoff = Backoff(0.1, 5.0)
        while True:
            if self._closed:
                raise Closed("the consumer is closed")
            self._listener.event.clear()
            try:
                work = await self._turn.wait()
                taken = await self._try_to_take(work, limit)
            except (LinkError, FatalLinkError) as error:
                await self._turn.drop()
                if isinstance(error, FatalLinkError):
                    raise
                delay = backoff.next_delay()
                self._emit(observe.LogDelayed(f"consumer {self.name!r}", error, delay))
                await asyncio.sleep(delay)
                continue
            if isinstance(taken, _Taken):
                return taken
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(taken):
                    await self._listener.event.wait()

    async def _try_to_take(self, work: Work, limit: int) -> _Taken | float:
        """A batch in its transaction; or the seconds to wait, unless woken."""
        turn = self._turn
        transaction = await turn.begin(work)
        try:
            entry = await turn.run(work, self._ledger.take())
            if entry.replays:
                letters = await turn.run(work, self._ledger.replayed())
                return _Taken(work, transaction, letters, entry, entry.position, letters=True)
            if entry.wait > 0:
                await turn.commit(work, transaction)
                return entry.wait
            size = limit if entry.size is None else min(limit, entry.size)
            position = entry.position
            pages = 0
            while True:
                script = reading.read(self._schema, position, self._channels, size)
                page = await turn.run(work, script)
                # To the end of the way that it was on; and behind that, to what is there now.
                if page.rows or not (page.more or position.until is not None):
                    break
                position = page.end
                pages += 1
                if pages == _PAGES:
                    # Much of other channels lies in between: that it was passed is not lost.
                    await turn.run(work, self._ledger.store(position))
                    await turn.commit(work, transaction)
                    return 0.0
            if page.rows:
                return _Taken(work, transaction, page.events, entry, page.end, letters=False)
            await self._keep_fresh(work, entry, page)
            await turn.commit(work, transaction)
            return min(page.here.idle, max(self._wakes.check_in(), 0.1))
        except BaseException as error:
            await turn.roll_back(work, transaction, error)
            raise

    async def _keep_fresh(self, work: Work, entry: Entry, page: Page) -> None:
        """Do not let retention overtake a consumer that has nothing to do."""
        now = asyncio.get_running_loop().time()
        newest = entry.position.newest
        moved = newest is None or newest.snapshot.end != page.here.now.snapshot.end
        if moved and now - self._stored_at > page.here.idle:
            self._stored_at = now
            await self._turn.run(work, self._ledger.store(page.end))

    # -- inside: ending a batch --------------------------------------------------------------------

    async def _succeed(self, taken: _Taken) -> None:
        """Store how far it is, and commit."""
        turn, work = self._turn, taken.work
        if taken.letters:
            script: Script[Any] = self._ledger.forget([event.id for event in taken.events])
        else:
            size = taken.entry.size
            # After a failure it grows back, so that the rest does not go one by one.
            grown = None if size is None or size > 1000 else 2 * size
            script = self._ledger.store(taken.end, size=grown)
        try:
            await turn.run(work, script)
        except Exception as error:
            if getattr(server_error(error), "sqlstate", None) == _ABORTED:
                error.add_note(
                    "A statement in the block of the batch failed, and its error was swallowed: "
                    "use a savepoint for what may fail"
                )
            raise
        self._stored_at = asyncio.get_running_loop().time()
        await turn.commit(work, taken.transaction)

    async def _fail(self, taken: _Taken, error: BaseException) -> None:
        """Roll back, and write down that it has failed."""
        turn, work = self._turn, taken.work
        await turn.roll_back(work, taken.transaction, error)
        if not isinstance(error, Exception) or isinstance(error, LinkError) or not self.active:
            return
        refused = server_error(error)
        if refused is not None and refused.sqlstate in _TRANSIENT:
            return
        # Without a connection it is as if it had not been tried; and if the consumer was dropped
        # meanwhile, the next batch says so.
        with contextlib.suppress(LinkError, Dropped):
            transaction = await turn.begin(work)
            try:
                await turn.run(work, self._note_failure(taken, error))
                await turn.commit(work, transaction)
            except BaseException as second:
                await turn.roll_back(work, transaction, second)
                raise

    def _note_failure(self, taken: _Taken, error: Exception) -> Script[None]:
        reason = f"{type(error).__name__}: {error}".replace("\0", "")[:_LONGEST_ERROR]
        reason = reason.encode(errors="replace").decode()
        entry = yield from self._ledger.take()
        if taken.letters:
            yield from self._ledger.rebury(taken.events, reason)
            return
        if entry.position != taken.entry.position:
            return  # somebody has moved it meanwhile
        if len(taken.events) > 1:
            yield from self._ledger.store(
                entry.position, size=max(1, len(taken.events) // 2), error=reason
            )
            return
        [event] = taken.events
        # An event that has committed meanwhile may stand in front of the one that failed before.
        attempts = entry.attempts + 1 if entry.failing == event.id else 1
        if attempts < self._max_attempts:
            wait = min(self._initial * 2.0 ** min(attempts - 1, 60), self._maximum)
            yield from self._ledger.store(
                entry.position,
                attempts=attempts,
                failing=event.id,
                size=1,
                error=reason,
                wait=wait,
            )
            return
        yield from self._ledger.bury(event, attempts, reason)
        yield from self._ledger.store(taken.end, size=2, error=reason)

    # -- inside: scripts ---------------------------------------------------------------------------

    def _enter(self) -> Script[None]:
        if (yield from self._ledger.exists(self._channels)):
            return
        position = yield from reading.begin(self._schema, self._begin)
        yield from self._ledger.enter(self._channels, position)


class _Taken:
    """A batch that is being worked on."""

    __slots__ = ("end", "entry", "events", "letters", "transaction", "work")

    def __init__(
        self,
        work: Work,
        transaction: Transaction,
        events: list[Event[str]],
        entry: Entry,
        end: Position,
        *,
        letters: bool,
    ) -> None:
        self.work = work
        self.transaction = transaction
        self.events = events
        self.entry = entry
        self.end = end
        self.letters = letters


class _Block(AbstractAsyncContextManager[Batch]):
    """`async with consumer.batch()`."""

    def __init__(self, consumer: Consumer, limit: int) -> None:
        self._consumer = consumer
        self._limit = limit
        self._taken: _Taken | None = None

    async def __aenter__(self) -> Batch:
        consumer = self._consumer
        if consumer._batch_of is not None:
            raise RuntimeError("a batch of this consumer is open already")
        consumer._batch_of = asyncio.current_task()
        try:
            self._taken = await consumer._take(self._limit)
        except BaseException:
            consumer._batch_of = None
            raise
        return Batch(self._taken.events, self._taken.work.connection)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        taken, self._taken = self._taken, None
        assert taken is not None
        consumer = self._consumer
        try:
            if error is None:
                try:
                    await consumer._succeed(taken)
                except BaseException as failure:
                    # A deferred constraint, say: it is as if the block had failed.
                    await consumer._fail(taken, failure)
                    raise
            else:
                await consumer._fail(taken, error)
        finally:
            consumer._batch_of = None
