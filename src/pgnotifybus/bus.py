"""The bus: where all parts come together. Layer: bus, the composition root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar, overload
from uuid import uuid4

from pgnotifybus import observe, watch
from pgnotifybus.broadcast import Shared
from pgnotifybus.channels import Channels, Totals
from pgnotifybus.core.health import STATES, State
from pgnotifybus.core.names import SCHEMA, check_channel, check_channels, check_schema
from pgnotifybus.core.ring import Ring
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import Closed, PgNotifyBusError
from pgnotifybus.links.sources import Driver, Password, connector
from pgnotifybus.publish.message import Envelope, message
from pgnotifybus.publish.notifier import send
from pgnotifybus.publish.publisher import Publisher
from pgnotifybus.publish.settings import Delivery, Settings
from pgnotifybus.spill import Fetcher
from pgnotifybus.subscription import Subscription, TypedSubscription
from pgnotifybus.supervision import Supervisor, Timing
from pgnotifybus.typed import Channel

T = TypeVar("T")

_SEND_TIMEOUT = 10.0
"""The seconds that the server may take to commit, or to answer."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the bus is at one moment. Times are in UTC, by the clock of this machine."""

    state: State
    """One of these:

    - `"new"`: it has not been started;
    - `"connecting"`: for the first time;
    - `"live"`: all that commits is delivered;
    - `"lagging"`: it is live, but receivers do not keep up, or the server's queue is filling;
    - `"standby"`: the server takes no LISTEN; it is tried again;
    - `"behind a pooler"`: which swallows notifications; it is tried again;
    - `"down"`: there is no link; it is tried again;
    - `"stopped"`: it has ended."""
    since: datetime | None
    """Since when; None before it was started."""
    cause: str | None
    """Why it is not live."""
    advice: str | None
    """What to do about it; None where there is no cause."""
    generation: int
    """How many links there have been."""
    last_message_at: datetime | None
    """When the newest message came; None if none has."""
    last_probe_at: datetime | None
    """When the server last answered a probe; None if none was due yet."""
    queue_usage: float | None
    """How full the server's notification queue was when it was last asked, when connecting and at
    each probe, from 0 to 1; None if it is not known."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """How one channel is at one moment."""

    received: int
    """Messages since the bus has listened to the channel, also those nobody subscribed to."""
    kept: int
    """Messages that a receiver that is behind could still read."""
    capacity: int
    receivers: int
    deliveries: int
    """Messages times the receivers that each was handed to."""
    skipped: int
    """Messages that receivers have been told they have missed, as they were too slow."""
    unread: int
    """Messages that the receiver that is furthest behind has not read yet. More than `capacity` of
    them: it has lost some, and does not know yet."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """How the bus is at one moment."""

    generation: int
    received: int
    """Notifications that came in, over all channels and links."""
    unrouted: int
    """Of those, the ones for a channel that nobody subscribes to any more."""
    channels: dict[str, ChannelStatistics]
    former: Totals
    """What was counted for channels that were listened to at run time, and have been left."""


class PgNotifyBus:
    """One LISTEN connection, any number of subscribers, nothing lost silently.

    Either enter it, or run it as a task of your own::

        async with PgNotifyBus(dsn, ["orders"]) as bus:
            async for payload in bus.subscribe("orders"):
                ...

    A bus is for one event loop and runs once.
    """

    def __init__(
        self,
        source: object,
        channels: Iterable[str | Channel[Any]],
        *,
        capacity: int = 256,
        driver: Driver | None = None,
        password: Password | None = None,
        probe_interval: float | None = 5.0,
        probe_timeout: float = 4.0,
        connect_timeout: float = 10.0,
        start_timeout: float = 30.0,
        backoff_initial: float = 0.5,
        backoff_maximum: float = 30.0,
        direct_dsn: str | None = None,
        schema: str = SCHEMA,
        observer: observe.Observer | Iterable[observe.Observer] | None = None,
    ) -> None:
        """Describe a bus; no I/O.

        Args:
            source: Where to connect: a DSN string, an `asyncpg.Pool`, a
                `psycopg_pool.AsyncConnectionPool`, a SQLAlchemy `AsyncEngine`, or an async
                callable that returns a fresh asyncpg or psycopg connection. An asyncpg pool lends
                one of its connections for as long as the bus runs, and another for each moment in
                which it sends or fetches; the others lend none.
            channels: The channels to listen to from the start, of exactly these names; typed ones
                too.
            capacity: How many messages a channel keeps for a receiver that is behind; at least 1.
            driver: `"psycopg"` or `"asyncpg"`, for a DSN; None takes the one that the DSN names
                (`postgresql+asyncpg://`), else psycopg.
            password: For a DSN: a function, async or not, that returns the password. Called for
                each connection, so that one that changes is known; what it raises is told without
                its text, and tried again.
            probe_interval: The seconds of silence after which the server is asked whether it is
                still there; None for never, which lets a database that scales to zero sleep.
            probe_timeout: The seconds of silence after a question that mean that the link is dead.
            connect_timeout: The seconds that connecting to one host may take.
            start_timeout: The seconds for which `async with` waits for a server that says it is
                starting, or full.
            backoff_initial: The seconds before the first attempt to connect again; each failure
                doubles them. Up to a half less by chance, so that a fleet comes back spread out.
            backoff_maximum: The most seconds between two attempts.
            direct_dsn: Where to listen if the source turns out to be a pooler that swallows
                notifications: the server's own address. Sending goes on through the source.
            schema: The schema of the spill table, as `schema.install` was told.
            observer: Called with every event of `pgnotifybus.observe`; or several of them. See also
                `add_observer`.

        Raises:
            InvalidChannel: If a name cannot be a channel; the message says why.
            ValueError: If a number is outside its range, the DSN is malformed, or no schema can
                have this name.
            TypeError: If the source is of an unknown kind, or an observer cannot be called.
            MissingExtra: If the driver for a DSN is not installed.
        """
        if not isinstance(channels, str | bytes):
            channels = [each.name if isinstance(each, Channel) else each for each in channels]
        names = check_channels(channels)
        Ring[str, object](capacity)  # says what is wrong with the capacity
        timing = Timing(
            probe_interval=probe_interval,
            probe_timeout=probe_timeout,
            connect_timeout=connect_timeout,
            start_timeout=start_timeout,
            backoff_initial=backoff_initial,
            backoff_maximum=backoff_maximum,
        )
        connect = connector(source, driver, password)
        self._emit = Emitter(observer)
        self._connector = connect
        self._connect_timeout = connect_timeout
        self._schema = check_schema(schema)
        self._fetcher = Fetcher(self._side("fetcher"), schema, self._emit)
        self._channels = Channels(names, capacity, self._fetcher.fetch)
        self._channels.on_timed = self._timed
        self._generation, _ = watch.channel(0)
        direct = None if direct_dsn is None else connector(direct_dsn, driver, password)
        self._supervisor = Supervisor(
            connect, self._channels, self._generation, timing, self._emit, direct
        )
        self._notifier = self._side("notifier")
        self._publishers: set[Publisher] = set()
        self._ending = False
        self._origin = uuid4().hex
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: int | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return (
            f"<PgNotifyBus {self._supervisor.condition.borrow().state} "
            f"generation={self._generation.borrow()} channels={len(self._channels.all())}>"
        )

    # -- subscribing and running -------------------------------------------------------------------

    @overload
    def subscribe(self, channel: str) -> Subscription | None: ...
    @overload
    def subscribe(self, channel: Channel[T]) -> TypedSubscription[T] | None: ...
    def subscribe(self, channel: str | Channel[T]) -> Subscription | TypedSubscription[T] | None:
        """A receiver for the messages of a channel that was named at construction.

        Args:
            channel: A name, for the payloads as they are; a typed channel, for its values.

        Returns:
            A receiver of what arrives from now on; None if the channel was not named at
            construction (see `listen` for those).

        Raises:
            PgNotifyBusError: In a process that was forked after the bus was started.
        """
        self._check_process()
        if isinstance(channel, Channel):
            return self._channels.subscribe(
                channel.name, lambda shared: TypedSubscription(shared, channel)
            )
        return self._channels.subscribe(channel, Subscription)

    def channels(self) -> list[str]:
        """The names that the bus was made with, without repetitions."""
        return self._channels.configured

    def subscribe_reconnects(self) -> watch.Receiver[int]:
        """A watch on the generation: 0 before the first connect, then +1 for every one.

        It changes after every LISTEN of the new link is acknowledged and before its first message
        is delivered: whoever reads the database on a change misses nothing.
        """
        return self._generation.subscribe()

    async def run(self, shutdown: asyncio.Event | watch.Receiver[bool]) -> None:
        """Keep the link up and hand out what it brings, until `shutdown` fires.

        Connects again whenever the link is lost, after 0.5 s, doubling to 30 s. When it returns,
        nothing is left running; receivers get what is unread, and then `Closed`.

        Args:
            shutdown: An event that is set, or a watch that becomes true or whose sender is closed.

        Raises:
            PoolTooSmall: If the source is a pool of one connection.
            TypeError: If `shutdown` is something else, or a connection factory does not bring a
                connection.
            RuntimeError: If the bus has been run before.

        Cancel safety: cancelling ends the bus as `shutdown` does, and then raises.
        """
        if not isinstance(shutdown, asyncio.Event | watch.Receiver):
            raise TypeError(
                "shutdown must be an asyncio.Event or a watch.Receiver[bool], not "
                f"{type(shutdown).__name__}"
            )
        await self._run(shutdown, fail_fast=False)

    # -- starting, listening at run time, and sending ----------------------------------------------

    async def __aenter__(self) -> PgNotifyBus:
        """Start the bus, and return once every LISTEN is acknowledged.

        What commits after this is delivered. The bus is then run by a task of its own.

        Raises:
            LinkError: If there is no connection (`ConnectError`), or it was lost before the LISTENs
                were acknowledged; the message says what to check.
            FatalLinkError: If waiting will not help: `AuthenticationFailed`, `ListenRejected`,
                `PoolTooSmall`, an unknown database.

        Cancel safety: nothing is left running.
        """
        reconnects = self.subscribe_reconnects()
        task = asyncio.create_task(self._run(self._stop, fail_fast=True), name="pgnotifybus")
        up = asyncio.create_task(reconnects.wait_for(bool), name="pgnotifybus start")
        try:
            await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            await _cancel(up)
        except BaseException:
            await _cancel(task, up)
            raise
        self._task = task
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the bus; receivers get what is unread, and then `Closed`.

        Cancel safety: cancelling ends the bus all the same, and then raises.
        """
        self._stop.set()
        task, self._task = self._task, None
        if task is not None:
            await task

    @overload
    async def listen(self, channel: str) -> Subscription: ...
    @overload
    async def listen(self, channel: Channel[T]) -> TypedSubscription[T]: ...
    async def listen(self, channel: str | Channel[T]) -> Subscription | TypedSubscription[T]:
        """A receiver for the messages of any channel, from now on.

        Returns once the server has acknowledged the LISTEN: what commits after that is delivered,
        so read the database afterwards and nothing falls in between. The channel is listened to
        for as long as it has receivers; when the last one is closed or collected, it is left.
        While there is no link, this waits for one.

        Raises:
            InvalidChannel: If the name cannot be a channel; the message says why.
            ListenRejected: If the server refuses; others are not affected.
            Closed: If the bus ends before.
            RuntimeError: If the bus has not been started, or runs in another event loop.

        Cancel safety: cancelling takes the wish back.
        """
        if isinstance(channel, Channel):
            self._check_running()
            return await self._channels.listen(
                channel.name, lambda shared: TypedSubscription(shared, channel)
            )
        check_channel(channel)
        self._check_running()
        return await self._channels.listen(channel, Subscription)

    @property
    def origin(self) -> str:
        """What tells this bus from all others; envelopes carry it, see `envelope`."""
        return self._origin

    def envelope(
        self, *, timed: bool = False, traceparent: str | Callable[[], str | None] | None = None
    ) -> Envelope:
        """An envelope that names this bus as the origin of a message.

        A receiver can then tell what its own bus has sent: `event.origin == bus.origin`.

        Args:
            timed: Whether to carry the time of sending.
            traceparent: The W3C trace context, or a function that is asked for it at each message.

        Raises:
            ValueError: If the traceparent is malformed.
        """
        return Envelope(self._origin, timed, traceparent)

    def publisher(
        self,
        *,
        batch_size: int = 1000,
        linger: float = 0.01,
        capacity: int = 10_000,
        capacity_bytes: int = 64 * 1024 * 1024,
        durable: bool = True,
        delivery: Delivery = "at-least-once",
        collapse_duplicates: bool = False,
        drain_timeout: float = 10.0,
        envelope: Envelope | None = None,
    ) -> Publisher:
        """A publisher, which sends many messages in one commit, over a connection of its own.

        Enter it with `async with` while the bus is running. No I/O.

        Args:
            batch_size: How many messages may leave in one transaction; at least 1.
            linger: The seconds for which a message may wait for others to leave with; 0 sends at
                once whatever is there. A larger batch is the cheaper one.
            capacity: How many messages it holds that are not committed; at least 1.
            capacity_bytes: How many bytes of payload they have at the most, if it is more than one.
            durable: Whether a commit that has spilled a payload into the table waits for the disk.
                One that has only notified never does: a crash forgets notifications anyhow.
            delivery: What to do with a batch if the connection is lost while it commits, and the
                server cannot be asked afterwards how that ended: `"at-least-once"` sends it again,
                `"at-most-once"` does not, and reports it.
            collapse_duplicates: Whether the same message may leave twice in one transaction, of
                which PostgreSQL then delivers one. By default the second waits for the next.
            drain_timeout: The seconds for which the end of the block waits for what is not sent.
            envelope: What messages carry beside their payload.

        Raises:
            ValueError: If a number is outside its range.
        """
        settings = Settings(
            batch_size=batch_size,
            linger=linger,
            capacity=capacity,
            capacity_bytes=capacity_bytes,
            durable=durable,
            delivery=delivery,
            collapse_duplicates=collapse_duplicates,
            drain_timeout=drain_timeout,
            envelope=envelope,
        )
        return Publisher(
            self._side("publisher"),
            self._schema,
            settings,
            self._emit,
            on_start=self._adopt,
            on_end=self._publishers.discard,
        )

    @overload
    async def notify(
        self, channel: str, payload: str = "", *, envelope: Envelope | None = None
    ) -> None: ...
    @overload
    async def notify(
        self, channel: Channel[T], payload: T, *, envelope: Envelope | None = None
    ) -> None: ...
    async def notify(
        self, channel: str | Channel[Any], payload: Any = "", *, envelope: Envelope | None = None
    ) -> None:
        """Send a notification over a connection of the bus; when it returns, it is committed.

        One at a time, each in a commit of its own: see `publisher` for many, and
        `pgnotifybus.notify` for your own transaction.

        Args:
            channel: Any channel, case and special characters are kept; or a typed channel.
            payload: The text to send; for a typed channel, a value of its type. Over 7,999 bytes of
                UTF-8 it is compressed, or else spilled into the table of `schema.install`.
            envelope: What the message should carry beside its payload.

        Raises:
            InvalidChannel, ValueError, TypeError: If channel or payload cannot be sent.
            PayloadTooLarge: If it does not fit into a notification, and the spill table is not
                there; or if it has over 16 MiB.
            ConnectError, FatalLinkError: If there is no connection; nothing was sent.
            LinkLost: If the connection broke meanwhile; whether it was sent is not known.
            LinkError: If the server refused; nothing was sent.
            Closed: If the bus has ended; nothing was sent.
            RuntimeError: If the bus has not been started, or runs in another event loop.

        Cancel safety: what is being sent may be sent or not; nothing is sent twice.
        """
        self._check_running()
        await send(self._notifier, message(channel, payload, envelope), self._schema)

    def health(self) -> Health:
        """How the link is now, as a frozen snapshot. May be called from any thread."""
        status, condition = self._supervisor.status, self._supervisor.condition.borrow()
        return Health(
            state=condition.state,
            since=self._when(status.since),
            cause=condition.cause,
            advice=condition.advice,
            generation=self._generation.borrow(),
            last_message_at=self._when(self._channels.last_message_at),
            last_probe_at=self._when(status.last_probe_at),
            queue_usage=status.queue_usage,
        )

    async def wait_until(self, *states: State, timeout: float | None = None) -> Health:
        """Wait until the bus is in one of these states; how it is then.

        Args:
            states: One or more of the states of `Health`.
            timeout: The seconds to wait at the most; None for as long as it takes.

        Raises:
            ValueError: If there is no such state.
            TimeoutError: If it does not come to that in time; the message says how the bus is, why,
                and what to do.
            Closed: If the bus ends before.

        Cancel safety: nothing is left behind.
        """
        if not states or (unknown := set(states) - set(STATES)):
            wrong = f"{min(unknown)!r} is none" if states else "none is given"
            raise ValueError(f"a state must be one of {', '.join(STATES)}; {wrong}")
        conditions = self._supervisor.condition.subscribe()
        wanted = " or ".join(states)
        try:
            async with asyncio.timeout(timeout):
                await conditions.wait_for(lambda condition: condition.state in states)
        except TimeoutError:
            now = self.health()
            said = ". ".join(each for each in (now.cause, now.advice) if each)
            raise TimeoutError(
                f"the bus is {now.state} and not {wanted} after {timeout:g} s"
                + (f": {said}" if said else "")
            ) from None
        except Closed:
            raise Closed(f"the bus has ended and was not {wanted} before") from None
        return self.health()

    def statistics(self) -> Statistics:
        """What has gone through the bus so far, as a frozen snapshot.

        It looks at every receiver: ten thousand of them take some milliseconds. May be called from
        any thread; the numbers may then be of slightly different moments.
        """
        shareds, former = self._channels.account()
        channels = {name: _statistics(shared) for name, shared in shareds.items()}
        return Statistics(
            generation=self._generation.borrow(),
            received=self._channels.received,
            unrouted=self._channels.unrouted,
            channels=channels,
            former=former,
        )

    def add_observer(self, observer: observe.Observer) -> Callable[[], None]:
        """Have one more observer called with every event of `pgnotifybus.observe`, from now on.

        Returns:
            A function that ends it; calling it again does nothing.

        Raises:
            TypeError: If it cannot be called.
        """
        return self._emit.add(observer)

    # -- inside -----------------------------------------------------------------------------------

    def _when(self, loop_time: float | None) -> datetime | None:
        """A time of the loop's clock, which never jumps, by the clock of the machine."""
        if loop_time is None or self._loop is None:
            return None
        return datetime.now(UTC) - timedelta(seconds=self._loop.time() - loop_time)

    async def _run(
        self, shutdown: asyncio.Event | watch.Receiver[bool], *, fail_fast: bool
    ) -> None:
        if self._loop is not None:
            raise RuntimeError("a bus runs once: make a new one")
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._supervisor.status.since = self._loop.time()
        stop = asyncio.create_task(_fired(shutdown), name="pgnotifybus shutdown")
        work = asyncio.create_task(
            self._supervisor.run(fail_fast=fail_fast), name="pgnotifybus supervisor"
        )
        try:
            done, _ = await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._ending = True
            try:
                closing = asyncio.create_task(self._close_sides())
                stop.cancel()
                work.cancel()
                await _ended(stop, work, closing)
            finally:
                self._supervisor.stopped()
                self._channels.close()
                self._generation.close()
                self._emit(observe.Stopped(self._generation.borrow()))

    def _timed(self, channel: str, sent: list[float]) -> None:
        if self._emit.observed:
            now = time.time()
            self._emit(observe.MessagesTimed(channel, tuple(now - each for each in sent)))

    def _side(self, part: str) -> SideLink:
        return SideLink(
            self._connector,
            part=part,
            connect_timeout=self._connect_timeout,
            timeout=_SEND_TIMEOUT,
        )

    def _adopt(self, publisher: Publisher) -> None:
        self._check_running()
        self._publishers.add(publisher)

    async def _close_sides(self) -> None:
        ends = [publisher.end("the bus has ended") for publisher in self._publishers]
        await asyncio.gather(self._notifier.close(), self._fetcher.close(), *ends)

    def _check_running(self) -> None:
        if self._loop is None:
            raise RuntimeError("the bus is not running: enter it with `async with`, or run it")
        self._check_process()
        if self._ending:
            raise Closed("the bus has ended")
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("the bus runs in another event loop: make one bus for each loop")

    def _check_process(self) -> None:
        if self._process is not None and self._process != os.getpid():
            raise PgNotifyBusError(
                "this process was forked from one that runs the bus, and must not use its "
                "connection: make the bus after the fork (gunicorn: in post_fork or at startup "
                "of the application)"
            )


def _statistics(shared: Shared[str]) -> ChannelStatistics:
    ring = shared.ring
    oldest, tail = ring.oldest, ring.tail  # in this order: never less than nothing
    return ChannelStatistics(
        received=tail,
        kept=min(tail - oldest, ring.capacity),
        capacity=ring.capacity,
        receivers=shared.receivers,
        deliveries=shared.deliveries,
        skipped=shared.skipped,
        unread=shared.unread(),
    )


async def _fired(shutdown: asyncio.Event | watch.Receiver[bool]) -> None:
    if isinstance(shutdown, asyncio.Event):
        await shutdown.wait()
    else:
        # Nobody can fire a shutdown whose sender is gone; waiting on would be for ever.
        with contextlib.suppress(Closed):
            await shutdown.wait_for(bool)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, whatever they end with."""
    for task in tasks:
        task.cancel()
    await _ended(*tasks)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait until tasks have ended, whatever they end with.

    Cancel safety: none of them is left running; the cancellation is raised once they have ended.
    """
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        _ = task.cancelled() or task.exception()  # fetched: whoever cares has had it from the task
    if cancelled is not None:
        raise cancelled
