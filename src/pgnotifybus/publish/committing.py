"""Sending a batch in one transaction, and knowing afterwards whether it was committed.
Layer: publish.

When a connection breaks while it commits, nobody has told us how that ended. But we know the id of
the transaction, and PostgreSQL remembers for a long time which ones were committed: so we connect
again and ask. That is only worth something on the same server, and not after a crash, which may
have forgotten that id and given it to somebody else. So the statement that sends also asks which
server it is, in terms that change with a crash, a failover, or another server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from pgnotifybus.database.queries import Query, run
from pgnotifybus.database.sidelink import SLOWEST, SideLink
from pgnotifybus.errors import LinkError, PayloadTooLarge
from pgnotifybus.links.base import Rows, Runner, ServerError
from pgnotifybus.publish.message import Message
from pgnotifybus.publish.statements import (
    PAGE_BYTES,
    QUEUE_FULL,
    identify,
    make_room,
    may_spill,
    queue_pages,
    send_many,
    status_of,
)

Outcome = Literal["committed", "aborted", "unknown"]

# A server that has not heard our COMMIT must not keep the transaction open for ever; much data may
# take its time to get there. One borrowed from a pool may have a statement_timeout.
_BEGIN: Final = """\
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; \
SET LOCAL idle_in_transaction_session_timeout = '{seconds}s'"""
_EPHEMERAL: Final = "; SET LOCAL synchronous_commit = off"

_IDLE_SECONDS: Final = 10
_POLL_SECONDS: Final = (0.1, 5.0)
"""The shortest and the longest time between two questions about a transaction in progress."""

_DENIED: Final = "42501"


class InDoubt(Exception):
    """The connection was lost while it committed."""

    def __init__(self, transaction: str, server: str | None) -> None:
        super().__init__(transaction)
        self.transaction = transaction
        self.server = server
        """Which server it was; None if that could not be told."""


class TooMuchAtOnce(ServerError):
    """The server has no room for so many notifications in one transaction; nothing was sent."""


class Committer:
    """Sends batches over one connection at a time."""

    def __init__(self, side: SideLink, schema: str, *, durable: bool) -> None:
        """Send nothing yet.

        Args:
            side: Where to send.
            schema: The schema of the spill table.
            durable: Whether a commit waits for the disk.
        """
        self._side = side
        self._schema = schema
        self._begin = _BEGIN if durable else _BEGIN + _EPHEMERAL
        self._may_identify: bool | None = None
        """Whether the server tells us which one it is; None before this one was asked."""
        self._max_bytes = math.inf
        """How many bytes of notifications it takes in one transaction."""
        self.committing = False
        """Whether a COMMIT was sent and not answered: what it commits may be sent."""

    async def commit(self, batch: Sequence[Message], on_sent: Callable[[], object]) -> None:
        """Send messages in one transaction.

        Args:
            batch: What to send; at least one.
            on_sent: Called when the messages are on their way, and the server has something to do.

        Raises:
            ServerError: If the server refused; nothing was sent.
            TooMuchAtOnce: If the batch must be sent in parts.
            PayloadTooLarge: If one would have to be spilled and cannot be; nothing was sent.
            LinkError, FatalLinkError, Closed: If there was no connection, or it was lost before the
                commit; nothing was sent.
            InDoubt: If it was lost while committing.

        Cancel safety: nothing was sent, unless `committing` is true.
        """
        self.committing = False
        transaction: str | None = None
        server: str | None = None
        try:
            async with self._side.use(size=sum(message.size for message in batch)) as runner:
                transaction, server = await self._prepare(runner, batch, on_sent)
                self.committing = True
                try:
                    await runner.execute("COMMIT")
                except ServerError as error:  # which has ended the transaction
                    self.committing = False
                    if error.sqlstate == QUEUE_FULL:
                        await _answers(runner, make_room())  # it may be forbidden
                    raise
        except LinkError as error:
            self._may_identify = None
            if self.committing:
                assert transaction is not None
                raise InDoubt(transaction, server) from error
            raise
        self.committing = False

    async def outcome(self, doubt: InDoubt) -> Outcome:
        """What has become of a transaction whose commit was not answered.

        Raises:
            LinkError, FatalLinkError, Closed: If there is no connection to ask over: try again.

        Cancel safety: nothing is changed.
        """
        if doubt.server is None:
            return "unknown"
        delay, longest = _POLL_SECONDS
        while True:
            try:
                async with self._side.use() as runner:
                    [(server,)] = await _fetch(runner, identify())
                    if server != doubt.server:
                        return "unknown"
                    [(status,)] = await _fetch(runner, status_of(doubt.transaction))
            except ServerError:  # a standby, say
                return "unknown"
            match status:
                case "committed":
                    return "committed"
                case "aborted":
                    return "aborted"
                case "in progress":
                    # However long that takes, for a synchronous standby, say: sending it again
                    # would be sending it twice.
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, longest)
                case _:
                    return "unknown"

    async def _prepare(
        self, runner: Runner, batch: Sequence[Message], on_sent: Callable[[], object]
    ) -> tuple[str, str | None]:
        """Do all but commit; the id of the transaction, and which server it is.

        Raises:
            ServerError, PayloadTooLarge: If that cannot be; the transaction is rolled back.
        """
        if self._may_identify is None:
            await self._get_to_know(runner)
        size = sum(message.size for message in batch)
        if size > self._max_bytes and len(batch) > 1:
            raise TooMuchAtOnce("the notification queue is too small for the batch", None)
        spilled = next((message for message in batch if message.wire is None), None)
        try:
            await runner.execute(self._begin.format(seconds=_IDLE_SECONDS + size // SLOWEST))
            if spilled is not None:
                await run(may_spill(spilled, self._schema), runner)
            query = send_many(batch, self._schema, identify=bool(self._may_identify))
            asyncio.get_running_loop().call_soon(on_sent)
            [(count, transaction, server)] = await _fetch(runner, query)
        except (ServerError, PayloadTooLarge) as error:
            await runner.execute("ROLLBACK")
            asked = self._may_identify
            if not asked or not isinstance(error, ServerError) or error.sqlstate != _DENIED:
                raise
            # Perhaps only that we ask who it is has been forbidden meanwhile.
            if await self._get_to_know(runner):
                raise
            return await self._prepare(runner, batch, on_sent)
        assert count == str(len(batch))
        assert transaction is not None
        return transaction, server

    async def _get_to_know(self, runner: Runner) -> bool:
        """Ask what can be asked of this server; whether it tells which one it is."""
        self._may_identify = await _answers(runner, identify())
        [(pages,)] = await _fetch(runner, queue_pages())
        # A transaction that finds no room is refused, again and again, and fills the queue with
        # what nobody will read: so no batch takes more than a quarter of it.
        self._max_bytes = math.inf if pages is None else int(pages) * PAGE_BYTES / 4
        return self._may_identify


async def _fetch(runner: Runner, query: Query) -> Rows:
    return await runner.fetch(query.sql, *query.parameters)


async def _answers(runner: Runner, query: Query) -> bool:
    """Whether the server answers a query, outside a transaction, and does not forbid it."""
    try:
        await _fetch(runner, query)
    except ServerError as error:
        if not error.for_good:
            raise
        return False
    return True
