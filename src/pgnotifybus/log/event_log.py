"""The event log: where its parts come together. Layer: log."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from pgnotifybus import observe
from pgnotifybus.bus import Health, PgNotifyBus
from pgnotifybus.core.names import SCHEMA, check_channels, check_schema, log_channel
from pgnotifybus.core.position import behind
from pgnotifybus.database.callers import async_caller, sync_caller
from pgnotifybus.database.queries import Script
from pgnotifybus.emitting import Emitter, several
from pgnotifybus.links.base import ServerError
from pgnotifybus.links.sources import Driver, Password, connector
from pgnotifybus.log import appending, retention
from pgnotifybus.log.consumer import Consumer
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.describing import LogContents, describe
from pgnotifybus.log.engine import PRUNE_TIMEOUT, Engine, Settings
from pgnotifybus.log.event import Event
from pgnotifybus.log.follower import Follower, names_of
from pgnotifybus.log.ledger import ConsumerState, consumers
from pgnotifybus.log.maintenance import prune
from pgnotifybus.log.refusals import caller_refusal, refusal
from pgnotifybus.log.start import start
from pgnotifybus.messages import Gap
from pgnotifybus.typed import Channel

R = TypeVar("R")
T = TypeVar("T")

After = Cursor | str | datetime
"""A cursor or its text, `"beginning"`, `"now"`, or a point in time."""


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """How a log in this process is at one moment."""

    generation: int
    """How many listening connections there have been."""
    reads: int
    """Statements that have read the log for all who follow live."""
    catch_up_reads: int
    """Statements that have read it for a single follower."""
    pacemaker_polls: int
    """How often this process has looked for all others."""
    pacemaker: Literal["asleep", "awake", "draining"]
    """What is known of the pacemaker of the database."""


class EventLog:
    """Events that are kept until retention deletes them, and read exactly once by who follows.

    ::

        log = EventLog("postgresql://localhost/shop")
        await log.append(connection, "orders", "7 is paid", key="7")   # in your transaction

        async with log:
            async for event in log.follow("orders", after=cursor):
                ...

    What is promised: every committed event, exactly once, to each follower, across any outage; none
    of a transaction that was rolled back. Within a transaction in order; and an event that was
    appended after another had been committed comes behind it. Of transactions that overlapped,
    either may come first. See `docs/topics/event-log.md`.

    Appending needs nothing but the caller's connection; for the rest, enter it. A log is for one
    event loop and is entered once.
    """

    def __init__(
        self,
        source: object,
        *,
        schema: str = SCHEMA,
        capacity: int = 64,
        payload_limit: int = appending.MAX_EVENT_BYTES,
        pacemaker: bool = True,
        prune: bool = True,
        driver: Driver | None = None,
        password: Password | None = None,
        probe_interval: float | None = 60.0,
        connect_timeout: float = 10.0,
        observer: observe.Observer | Iterable[observe.Observer] | None = None,
    ) -> None:
        """Describe a log; no I/O.

        Args:
            source: Where to connect, as for `PgNotifyBus`.
            schema: The schema of the log, as `schema.install` was told.
            capacity: How many batches, of up to 500 events, are kept for a follower that is
                behind; one that is further behind reads them from the table.
            payload_limit: The largest payload to append, in bytes of UTF-8.
            pacemaker: Whether this process may tell the others of new events under load, so that
                writers need not.
            prune: Whether this process deletes what retention says, about once a minute, where its
                role may.
            driver, password: As for `PgNotifyBus`.
            probe_interval: The seconds of silence after which the listening connection is asked
                whether it is still there; None for never.
            connect_timeout: The seconds that connecting to one host may take.
            observer: Called with every event of `pgnotifybus.observe`; or several of them. See also
                `add_observer`.

        Raises:
            ValueError, TypeError, MissingExtra: As for `PgNotifyBus`.
        """
        self._schema = check_schema(schema)
        if payload_limit < 1:
            raise ValueError(f"payload_limit must be at least 1 byte, not {payload_limit}")
        self._limit = payload_limit
        observers = several(observer)  # once: it may be an iterator
        self._emit = Emitter(observers)
        self._connector = connector(source, driver, password)
        self._connect_timeout = connect_timeout
        bus = PgNotifyBus(
            source,
            [log_channel(schema)],
            capacity=4096,
            driver=driver,
            password=password,
            probe_interval=probe_interval,
            connect_timeout=connect_timeout,
            schema=schema,
            observer=observers,
        )
        self._bus = bus
        settings = Settings(schema, capacity, pacemaker, prune, connect_timeout)
        self._engine = Engine(self._connector, bus, settings, self._emit)
        self._consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<EventLog {self._schema!r}: {self._engine.state}>"

    # -- appending --------------------------------------------------------------------------------

    @overload
    async def append(
        self,
        connection: object,
        channel: Channel[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> int: ...
    @overload
    async def append(
        self,
        connection: object,
        channel: str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> int: ...
    async def append(
        self,
        connection: object,
        channel: str | Channel[Any],
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> int:
        """Add an event, in the transaction of this connection: it is there when that commits.

        Rolled back, also to a savepoint, means never there. On a connection that is in no
        transaction it is committed at once (asyncpg, and autocommit), or begins one (psycopg,
        SQLAlchemy), which you commit.

        Args:
            connection: An asyncpg connection, a psycopg `AsyncConnection`, or a SQLAlchemy
                `AsyncSession` or `AsyncConnection`.
            channel: 1 to 63 bytes of UTF-8; or a typed channel.
            payload: A text, or what JSON can write; for a typed channel, a value of its type.
            key: What the event is about. Events of one key keep their order if their writers take
                turns, by a lock on the row of that key for instance.
            headers: What should go with it, as JSON.

        Returns:
            The id of the event.

        Raises:
            InvalidChannel, ValueError, TypeError, PayloadTooLarge: If it cannot be appended;
                nothing was sent.
            SchemaMissing, SchemaError: If the log is not there, or the role may not append; the
                message names the GRANT. The transaction has failed.
            Exception: What the driver raises otherwise, as it is.

        Cancel safety: as for any statement of the driver; roll the transaction back.
        """
        event = appending.new(channel, payload, key, headers, self._limit)
        return await self._on(connection, "append", appending.append(self._schema, event))

    async def append_many(
        self,
        connection: object,
        channel: str | Channel[Any],
        payloads: Iterable[Any],
        *,
        keys: Iterable[str | None] | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Add events in one statement, in their order; otherwise as `append`.

        Args:
            connection, channel: As for `append`.
            payloads: One for each event.
            keys: One for each event; None for none.
            headers: The same for all.

        Returns:
            Their ids, in their order.

        Raises:
            ValueError: If there are not as many keys as payloads.
            Exception: Otherwise as `append`.

        Cancel safety: as `append`.
        """
        values = list(payloads)
        names: list[str | None] = [None] * len(values) if keys is None else list(keys)
        if len(names) != len(values):
            raise ValueError(f"there are {len(values)} payloads and {len(names)} keys")
        events = [
            appending.new(channel, value, key, headers, self._limit)
            for value, key in zip(values, names, strict=True)
        ]
        return await self._on(
            connection, "append_many", appending.append_many(self._schema, events)
        )

    def append_sync(
        self,
        connection: object,
        channel: str | Channel[Any],
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> int:
        """As `append`, for a psycopg `Connection`, or a SQLAlchemy `Session` or `Connection`."""
        event = appending.new(channel, payload, key, headers, self._limit)
        caller = sync_caller(connection, "append_sync", "append")
        try:
            return caller.run(appending.append(self._schema, event))
        except Exception as error:
            refused = caller_refusal(error, self._schema)
            if refused is None:
                raise
            raise refused from error

    async def wake(self, connection: object) -> None:
        """Tell those who follow that there is something new; for what cannot by itself.

        A transaction that is to be prepared (two-phase commit) must not NOTIFY: append in it after
        `SET LOCAL pgnotifybus.wake = off`, and call this once it is committed. Without it,
        followers find the events within 90 s.

        Raises:
            SchemaMissing, SchemaError: As for `append`.

        Cancel safety: as for any statement of the driver.
        """
        await self._on(connection, "wake", appending.wake(self._schema))

    # -- reading ----------------------------------------------------------------------------------

    @overload
    def follow(
        self,
        channel: Channel[T],
        /,
        *,
        after: After = "now",
        gaps: Literal[False] = False,
        live: bool = True,
    ) -> Follower[Event[T]]: ...
    @overload
    def follow(
        self, channel: Channel[T], /, *, after: After = "now", gaps: bool, live: bool = True
    ) -> Follower[Event[T] | Gap]: ...
    @overload
    def follow(
        self,
        *channels: str,
        after: After = "now",
        gaps: Literal[False] = False,
        live: bool = True,
    ) -> Follower[Event[str]]: ...
    @overload
    def follow(
        self, *channels: str, after: After = "now", gaps: bool, live: bool = True
    ) -> Follower[Event[str] | Gap]: ...
    def follow(
        self,
        *channels: str | Channel[Any],
        after: After = "now",
        gaps: bool = False,
        live: bool = True,
    ) -> Follower[Any]:
        """Every event of these channels behind a cursor, and then whatever comes.

        No I/O; that happens at the first step. So what `"now"` means is settled then: enter the
        follower with `async with` to settle it, or take a cursor before (`await log.cursor()`).

        Args:
            channels: One or more; or a single typed channel, for decoded payloads.
            after: Where to begin: a `Cursor` or its text, `"beginning"` (everything that is kept),
                `"now"`, or a point in time: of what has been committed by now, what was appended
                then or later, by the server's clock; and whatever is committed from now on.
            gaps: Whether a cursor that is expired, or of another log, gives a `Gap` for each
                channel instead of an error, and then goes on: with the oldest event that is kept,
                or, in another log, from now on.
            live: Whether to wait for what comes; False ends the loop behind what had been committed
                when it began.

        Raises:
            InvalidChannel: If a name cannot be a channel.
            InvalidCursor, ValueError, TypeError: If `after` is nothing to begin from.
            RuntimeError: If the log is not entered, or belongs to another event loop.
            Closed: If it has ended.
        """
        self._engine.running()
        names, decode = self._channels_of(channels)
        return Follower(self._engine, names, start(after), gaps=gaps, live=live, decode=decode)

    def consumer(
        self,
        name: str,
        *channels: str,
        after: After = "beginning",
        max_attempts: int = 5,
        backoff_initial: float = 1.0,
        backoff_maximum: float = 60.0,
    ) -> Consumer:
        """A cursor with a name, kept in the database: each event takes effect exactly once.

        Enter it with `async with`. Of all that have the same name, one works and the others stand
        by.

        Args:
            name: 1 to 63 bytes of UTF-8.
            channels: One or more. A consumer that exists with others goes on with these.
            after: Where a consumer begins that does not exist yet; otherwise as for `follow`.
            max_attempts: How often one event may fail before it is set aside as a dead letter.
            backoff_initial: The seconds before an event that has failed is tried again; each
                failure doubles them.
            backoff_maximum: The most seconds between two attempts.

        Raises:
            InvalidChannel, InvalidCursor, ValueError, TypeError: As for `follow`.
            RuntimeError, Closed: As for `follow`.
        """
        parts = self._engine.running()
        names, _ = self._channels_of(channels)
        made = Consumer(
            self._connector,
            self._schema,
            name,
            names,
            start(after),
            parts.wakes,
            self._emit,
            max_attempts=max_attempts,
            backoff_initial=backoff_initial,
            backoff_maximum=backoff_maximum,
            connect_timeout=self._connect_timeout,
        )
        self._consumers.add(made)
        return made

    async def cursor(self, at: After = "now") -> Cursor:
        """A cursor to follow from: of now, the beginning, or a point in time.

        Everything that commits after this returns lies behind the cursor of now.

        Raises:
            SchemaMissing, SchemaError, LinkError, FatalLinkError: If the log cannot be read.
            Otherwise as `follow`.

        Cancel safety: nothing is left behind.
        """
        self._engine.running()
        begin = start(at)
        if begin.cursor is not None:
            return begin.cursor
        seat = await self._engine.join(())
        seat.receiver.close()
        if begin.is_now:
            return Cursor.at(behind(seat.epoch, seat.instant))
        return Cursor.at(await self._engine.begin(begin, seat))

    # -- operating --------------------------------------------------------------------------------

    async def contents(self) -> LogContents:
        """What is in the log, by channel. Reads all of it: a figure for people, not for loops.

        Raises:
            SchemaMissing, SchemaError, LinkError, FatalLinkError: If the log cannot be read.

        Cancel safety: it only reads.
        """
        return await self._engine.errand(describe(self._schema))

    async def consumers(self) -> list[ConsumerState]:
        """All consumers of the log, of whatever process. Raises as `contents`.

        Cancel safety: it only reads.
        """
        return await self._engine.errand(consumers(self._schema))

    async def prune(self, *, older_than: timedelta | None = None) -> int:
        """Delete what need not be kept, now; a log that is entered does so by itself.

        A cursor in front of what was deleted is refused from then on (`CursorExpired`); consumers
        are no exception.

        Args:
            older_than: Delete what could be read that long ago already, whatever the retention
                says; zero for all that can be read now.

        Returns:
            How many events were deleted, by this call.

        Raises:
            ValueError: If the time is negative.
            Otherwise as `contents`.

        Cancel safety: what was deleted stays deleted.
        """
        seconds = None if older_than is None else older_than.total_seconds()
        if seconds is not None and seconds < 0:
            raise ValueError(f"older_than must not be negative, but is {older_than}")
        self._engine.running()
        side = self._engine.side("prune", timeout=PRUNE_TIMEOUT)
        try:
            async with side.use() as runner:
                await retention.cut(runner, self._schema, older_than=seconds, wait=True)
            return await prune(side, self._schema)
        except ServerError as error:
            raise refusal(error, self._schema, "prune the event log") from error
        finally:
            await side.close()

    def statistics(self) -> LogStatistics:
        """What this process has done for the log, as a frozen snapshot."""
        parts = self._engine.parts
        return LogStatistics(
            generation=self._engine.generation,
            reads=parts.tail.reads if parts is not None else 0,
            catch_up_reads=self._engine.catch_up_reads,
            pacemaker_polls=parts.pacing.polls if parts is not None else 0,
            pacemaker=parts.wakes.belief if parts is not None else "asleep",
        )

    def health(self) -> Health:
        """How the listening connection is now, as a frozen snapshot. May be called from any thread.

        While it is not live, followers get what is new when there is a connection again.
        """
        return self._bus.health()

    def add_observer(self, observer: observe.Observer) -> Callable[[], None]:
        """Have one more observer called with every event of `pgnotifybus.observe`, from now on.

        Returns:
            A function that ends it; calling it again does nothing.

        Raises:
            TypeError: If it cannot be called.
        """
        ends = [self._emit.add(observer), self._bus.add_observer(observer)]

        def remove() -> None:
            for end in ends:
                end()

        return remove

    # -- entering and leaving ---------------------------------------------------------------------

    async def __aenter__(self) -> EventLog:
        """Start: returns once the log was found and is listened to.

        Raises:
            LinkError, FatalLinkError: If there is no connection; the message says what to check.
            SchemaMissing: If the log is not installed, or only half; `schema.install` does it.
            SchemaError: If it is of a newer version, or may not be read.

        Cancel safety: nothing is left running.
        """
        await self._engine.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End; followers get what they were handed, and then their loops end. So do consumers.

        Cancel safety: cancelling ends it all the same, and then raises.
        """
        for consumer in [*self._consumers]:
            consumer.abandon()
        await self._engine.stop(kind, error, traceback)

    # -- inside -----------------------------------------------------------------------------------

    async def _on(self, connection: object, function: str, script: Script[R]) -> R:
        caller = async_caller(connection, f"EventLog.{function}", "EventLog.append_sync")
        try:
            return await caller.run(script)
        except Exception as error:
            refused = caller_refusal(error, self._schema)
            if refused is None:
                raise
            raise refused from error

    def _channels_of(self, channels: Sequence[str | Channel[Any]]) -> tuple[list[str], Any]:
        if not channels:
            raise ValueError("name at least one channel")
        names = list(check_channels(names_of(channels)))
        typed = [each for each in channels if isinstance(each, Channel)]
        if typed and len(channels) > 1:
            raise ValueError("a typed channel is followed alone: payloads have one type")
        return names, typed[0].decode if typed else None


__all__ = ["After", "Event", "EventLog", "LogStatistics"]
