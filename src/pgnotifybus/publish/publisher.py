"""The publisher: many messages in one commit. Layer: publish.

Each transaction that notifies takes a lock at its commit which only one can hold at a time, and if
it has written something, until that is on the disk. A publisher takes that lock once for a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar, overload

from pgnotifybus import observe
from pgnotifybus._parking import Parking
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.outbox import Item, Outbox
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter, logger
from pgnotifybus.errors import (
    BufferFull,
    Closed,
    FatalLinkError,
    LinkError,
    PayloadTooLarge,
    PgNotifyBusError,
)
from pgnotifybus.links.base import ServerError
from pgnotifybus.publish.committing import Committer, InDoubt, TooMuchAtOnce
from pgnotifybus.publish.failures import Failure, Failures
from pgnotifybus.publish.message import Envelope, Message, message
from pgnotifybus.publish.room import Room
from pgnotifybus.publish.settings import PublisherStatistics, Settings
from pgnotifybus.typed import Channel

T = TypeVar("T")

_MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
_YIELD_EVERY: Final = 1024
"""After so many messages `publish` lets others have their turn: some milliseconds."""


class Publisher:
    """Takes messages from many tasks and sends them in batches, in the order it took them.

    Made by `PgNotifyBus.publisher`; enter it::

        async with bus.publisher() as publisher:
            await publisher.publish("orders", "42")
    """

    def __init__(
        self,
        side: SideLink,
        schema: str,
        settings: Settings,
        emit: Emitter,
        *,
        on_start: Callable[[Publisher], None],
        on_end: Callable[[Publisher], None],
    ) -> None:
        self._side = side
        self._settings = settings
        self._emit = emit
        self._on_start = on_start
        self._on_end = on_end
        self._committer = Committer(side, schema, durable=settings.durable)
        self._outbox: Outbox[Message] = Outbox(settings.capacity, settings.capacity_bytes)
        self._backoff = Backoff(0.1, 5.0)
        self._news = asyncio.Event()
        """Something has been taken, or somebody wants it sent now."""
        self._settled = Parking()
        """Those who flush."""
        self._room = Room()
        self._flush_upto = 0
        self._pressed = False
        """Lingering would bring nothing: somebody had no room, or it could not leave before."""
        self._task: asyncio.Task[None] | None = None
        self._closed: str | None = None
        """Why nothing is taken any more."""
        self._abandoned = False
        self._failures = Failures(settings.capacity, settings.capacity_bytes)
        self._collapses = settings.collapse_duplicates
        self._envelope = settings.envelope
        self._committing: list[int] = []
        """The messages of the present transaction, by their numbers."""
        self._doubtful: set[int] = set()
        """Messages that may have been sent already, and are sent again."""
        self._totals = {"sent": 0, "unsent": 0, "unknown": 0, "commits": 0}

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._task else "new"
        return f"<Publisher {state} waiting={self._outbox.held}>"

    async def __aenter__(self) -> Publisher:
        """Start to send. No connection is made before there is something to send.

        Raises:
            RuntimeError: If the bus is not running, or the publisher was entered before.
            Closed: If the bus has ended.

        Cancel safety: there is nothing to cancel.
        """
        if self._task is not None:
            raise RuntimeError("a publisher is entered once: make a new one")
        self._on_start(self)
        self._task = asyncio.create_task(self._run(), name="pgnotifybus publisher")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Send what waits, for `drain_timeout` seconds at the most, and end.

        Raises:
            PublishFailed: If messages were not sent, or it is not known whether they were. It names
                each of them. If the block ends with an exception, it becomes a note on that one.

        Cancel safety: cancelling gives up what has not been sent, and then raises.
        """
        await self.end("the publisher is closed")
        failure = self._failures.take()
        if failure is not None:
            if error is None:
                raise failure
            error.add_note(f"pgnotifybus publisher: {failure}")

    # -- publishing -------------------------------------------------------------------------------

    @overload
    def try_publish(
        self,
        channel: str,
        payload: str = "",
        key: str | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None: ...
    @overload
    def try_publish(
        self,
        channel: Channel[T],
        payload: T,
        key: str | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None: ...
    def try_publish(
        self,
        channel: str | Channel[Any],
        payload: Any = "",
        key: str | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None:
        """Take a message if there is room for it, without waiting; otherwise as `publish`.

        Raises:
            BufferFull: If there is none; the message is not taken.
        """
        self._check_open()
        checked = message(channel, payload, envelope or self._envelope)
        if self._room.taken or not self._take(checked, key):
            raise BufferFull(
                f"the publisher holds {self._outbox.held} messages of {self._outbox.bytes} bytes: "
                "await publish, which waits for room"
            )

    @overload
    async def publish(
        self,
        channel: str,
        payload: str = "",
        key: str | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None: ...
    @overload
    async def publish(
        self,
        channel: Channel[T],
        payload: T,
        key: str | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None: ...
    async def publish(
        self,
        channel: str | Channel[Any],
        payload: Any = "",
        key: str | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None:
        """Take a message, to be sent soon; waits while there is no room for it.

        That it returns does not mean that the message was sent: `flush` says that, and the end of
        the publisher does. A payload over 7,999 bytes is compressed or spilled, as everywhere.

        Args:
            channel: A channel by name, or a typed one.
            payload: The text to send; for a typed channel, a value of its type.
            key: If an earlier message of this channel and key has not left yet, it is dropped, and
                this one takes its place at the end.
            envelope: What the message should carry beside its payload; None for what the publisher
                was made with.

        Raises:
            InvalidChannel, TypeError, ValueError: If it cannot be sent as it is.
            PayloadTooLarge: If the payload has over 16 MiB. A missing spill table is found later,
                and told by `flush`.
            PublishFailed: If as many earlier messages as it has room for were not sent, and nobody
                has called `flush` to be told; this one was not taken.
            Closed: If the publisher or the bus has ended; it was not taken.
            RuntimeError: If the publisher has not been entered.

        Cancel safety: a cancelled call has not taken the message.
        """
        if self._closed is not None or self._task is None:
            self._check_open()
        checked = message(channel, payload, envelope or self._envelope)
        if not self._outbox.taken % _YIELD_EVERY:
            await asyncio.sleep(0)  # who publishes without end must let others have their turn
        if not self._room.taken and self._take(checked, key):
            return
        in_front = False
        while True:
            await self._room.wait(in_front=in_front)
            in_front = True
            try:
                if self._take(checked, key):
                    self._room.wake()
                    return
            except BaseException:
                self._room.wake()
                raise

    async def flush(self) -> None:
        """Send what was taken so far without lingering, and wait until it is settled.

        While the server is away this waits; give it a timeout of your own if that is too long.

        Raises:
            PublishFailed: If messages that were taken before this call were not sent, or it is not
                known whether they were, and nobody was told before. It names each of them; the
                rest is committed.
            Closed: If the publisher or the bus has ended.
            RuntimeError: If the publisher has not been entered.

        Cancel safety: cancelling changes nothing; what was taken will be sent.
        """
        self._check_open()
        with self._failures.hearing(self._outbox.taken) as hearing:
            await self._drained(hearing.upto)
        failure = hearing.error()
        if failure is not None:
            raise failure

    def statistics(self) -> PublisherStatistics:
        """What has become of the messages so far, as a frozen snapshot."""
        return PublisherStatistics(
            accepted=self._outbox.taken,
            replaced=self._outbox.replaced,
            waiting=self._outbox.held,
            **self._totals,
        )

    # -- the bus's side ---------------------------------------------------------------------------

    async def end(self, why: str) -> None:
        """Take nothing more, send what waits if the server takes it in time, and end.

        Args:
            why: What whoever publishes now is told.

        Cancel safety: what has not been sent is given up, and then it raises.
        """
        self._closed = self._closed or why
        self._room.wake_all()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout):
                    await self._drained(self._outbox.taken)
        finally:
            await self._abandon(f"{why}, and the server did not take them in time")

    # -- inside -----------------------------------------------------------------------------------

    async def _abandon(self, why: str) -> None:
        """End at once; what has not been sent is given up, and told at the end."""
        task = self._task
        cancelled: asyncio.CancelledError | None = None
        self._abandoned = True
        if task is not None:
            task.cancel()
            while not task.done():
                try:
                    await asyncio.wait({task})
                except asyncio.CancelledError as error:
                    cancelled = error
        self._give_up(why)
        self._on_end(self)
        await self._side.close()
        if cancelled is not None:
            raise cancelled

    def _check_open(self) -> None:
        if self._closed is not None:
            raise Closed(f"{self._closed}: nothing more is taken")
        if self._task is None:
            raise RuntimeError("the publisher is not running: enter it with `async with`")

    def _take(self, checked: Message, key: str | None) -> bool:
        # The inner loop of sending: a microsecond here is a microsecond a message.
        if self._closed is not None:
            raise Closed(f"{self._closed}: the message was not taken")
        if self._failures.overdue:
            # Nobody has asked, and what is told at the end must not fill the memory until then.
            failure = self._failures.take()
            assert failure is not None
            raise failure
        identity = None
        if checked.wire is not None and not self._collapses:
            # The same twice in one transaction would arrive once.
            identity = (checked.channel, checked.wire)
        keyed = None if key is None else (checked.channel, key)
        if not self._outbox.put(checked, checked.size, keyed, identity):
            self._pressed = True
            self._news.set()
            return False
        if keyed is not None:
            self._settled.wake()  # it may have replaced what somebody waits for
        waiting = self._outbox.waiting
        if waiting == 1 or waiting == self._settings.batch_size:
            self._news.set()
        return True

    async def _drained(self, number: int) -> None:
        self._flush_upto = max(self._flush_upto, number)
        self._news.set()
        while self._outbox.oldest <= number:
            await self._settled.park()

    async def _run(self) -> None:
        try:
            while True:
                await self._gather()
                batch = self._outbox.leave(self._settings.batch_size, _MAX_BATCH_BYTES)
                # What had to stay, as it may not leave with the others, has lingered long enough.
                self._pressed = self._outbox.waiting > 0 and len(batch) < self._settings.batch_size
                await self._send(batch)
        except (Exception, asyncio.CancelledError) as error:
            # A source of the user's may raise anything, and be cancelled inside.
            if self._abandoned:
                raise
            # A source that brings no connection, say: what is held is told as not sent at the end.
            self._closed = f"the publisher cannot work: {str(error) or type(error).__name__}"
            logger.error("%s", self._closed, exc_info=error)
            self._give_up(self._closed)

    async def _gather(self) -> None:
        """Wait for a message, and then for more, until it is time to send."""
        while not self._outbox.waiting:
            self._news.clear()
            await self._news.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.linger):
                while (
                    self._outbox.waiting < self._settings.batch_size
                    and not self._pressed
                    and self._outbox.oldest > self._flush_upto
                ):
                    self._news.clear()
                    await self._news.wait()

    async def _send(self, batch: list[Item[Message]]) -> None:
        """See a batch through, however long it takes; refused messages are told from the others."""
        doubt: InDoubt | None = None
        while True:
            try:
                if doubt is not None:
                    outcome = await self._committer.outcome(doubt)
                    if outcome == "committed":
                        break
                    if outcome == "unknown":
                        if self._settings.delivery == "at-most-once":
                            self._refuse(batch, "the connection was lost in a commit", unknown=True)
                            return
                        self._doubtful.update(self._committing)
                        await self._wait(_cause(doubt))
                    doubt = None
                self._committing = [item.number for item in batch]
                await self._committer.commit(
                    [item.message for item in batch], on_sent=self._room.wake
                )
                break
            except InDoubt as error:
                doubt = error
                self._emit(observe.PublishDelayed(_cause(error), self._outbox.held, 0.0))
            except TooMuchAtOnce:
                await self._send_halves(batch)
                return
            except (ServerError, PayloadTooLarge) as error:
                if isinstance(error, PayloadTooLarge) or error.for_good:
                    await self._send_apart(batch, error)
                    return
                await self._wait(error)
            except (LinkError, FatalLinkError) as error:
                await self._wait(error)
        self._backoff.lived(float("inf"))
        self._totals["commits"] += 1
        self._totals["sent"] += len(batch)
        for item in batch:
            self._outbox.settle(item)
        if self._doubtful:
            self._doubtful.difference_update(item.number for item in batch)
        self._settled.wake()
        # If the next batch leaves at once, whoever waits for room is woken when that is on its way:
        # many tasks fill the buffer while the server works, and not before it can begin.
        if self._outbox.waiting < self._settings.batch_size:
            self._room.wake()

    async def _send_apart(
        self, batch: list[Item[Message]], error: ServerError | PayloadTooLarge
    ) -> None:
        """One of them is refused for good: it must not hold up the others."""
        if len(batch) == 1:
            self._refuse(batch, str(error), unknown=False)
            return
        await self._send_halves(batch)

    async def _send_halves(self, batch: list[Item[Message]]) -> None:
        half = len(batch) // 2
        await self._send(batch[:half])
        await self._send(batch[half:])

    async def _wait(self, error: Exception) -> None:
        self._room.wake()
        delay = self._backoff.next_delay()
        self._emit(observe.PublishDelayed(error, self._outbox.held, delay))
        await asyncio.sleep(delay)

    def _refuse(self, batch: list[Item[Message]], why: str, *, unknown: bool) -> None:
        for item in batch:
            self._outbox.settle(item)
        self._fail(batch, why, unknown=unknown)

    def _give_up(self, why: str) -> None:
        """Nothing more will be sent: account for all that is held."""
        if self._committer.committing:  # that was cut off
            self._doubtful.update(self._committing)
        self._fail(self._outbox.drain(), why, unknown=False)
        self._room.wake_all()

    def _fail(self, items: list[Item[Message]], why: str, *, unknown: bool) -> None:
        for item in items:
            perhaps_sent = unknown or item.number in self._doubtful
            self._totals["unknown" if perhaps_sent else "unsent"] += 1
            pair = (item.message.channel, item.message.payload)
            self._failures.add(Failure(item.number, pair, item.size, perhaps_sent, why))
            self._doubtful.discard(item.number)
        self._settled.wake()
        self._room.wake()
        if items:
            self._emit(observe.PublishRefused(items[0].message.channel, len(items), why))


def _cause(error: InDoubt) -> Exception:
    cause = error.__cause__
    return cause if isinstance(cause, Exception) else PgNotifyBusError("the connection was lost")
