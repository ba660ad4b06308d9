"""The part of a PostgreSQL server that notifies, in this process. Layer: testing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, TypeVar, overload

from pgnotifybus.core.names import SCHEMA
from pgnotifybus.database.queries import run
from pgnotifybus.errors import ConnectError, FatalLinkError, LinkLost
from pgnotifybus.links.base import Borrowed, Lender
from pgnotifybus.publish.message import Envelope, message
from pgnotifybus.publish.statements import send_one
from pgnotifybus.testing.pending import Sent
from pgnotifybus.testing.session import MemorySession
from pgnotifybus.typed import Channel

T = TypeVar("T")


class MemoryServer:
    """What several in-memory buses have in common: each hears what the others send.

    It lives in one event loop. Nothing needs to be started or closed.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._sessions: dict[int, MemorySession] = {}
        self._statuses: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<MemoryServer sessions={len(self._sessions)}>"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        """A transaction of somebody else's: over a connection that no bus knows of.

        Committed at the end of the block, rolled back by an exception.

        Cancel safety: it is rolled back.
        """
        session = self.session()
        try:
            await session.execute("BEGIN")
            yield MemoryTransaction(session)
            await session.execute("COMMIT")
        finally:
            session.abort()

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
        """Send a notification as somebody else would, in a transaction of its own.

        Raises:
            InvalidChannel, ValueError, TypeError, PayloadTooLarge: As `PgNotifyBus.notify` does.

        Cancel safety: what is being sent may be sent or not.
        """
        async with self.transaction() as transaction:
            await transaction.notify(channel, payload, envelope=envelope)

    # -- for sessions -----------------------------------------------------------------------------

    def session(self) -> MemorySession:
        """A new session."""
        pid = next(self._numbers)
        self._sessions[pid] = MemorySession(self, pid)
        return self._sessions[pid]

    def left(self, session: MemorySession) -> None:
        """A session has ended."""
        del self._sessions[session.pid]

    def kill(self, pid: int) -> Literal["true", "false"]:
        """End a session, if it is there: what pg_terminate_backend answers."""
        session = self._sessions.get(pid)
        if session is None:
            return "false"
        session.end(LinkLost("terminating connection due to administrator command"))
        return "true"

    def begin(self) -> int:
        """The number of a new transaction."""
        number = next(self._numbers)
        self._statuses[number] = "in progress"
        return number

    def commit(self, number: int, notifications: Sequence[Sent], pid: int) -> None:
        """A transaction commits: tell every session that listens."""
        self._statuses[number] = "committed"
        for sent in notifications:
            for session in list(self._sessions.values()):
                session.notified(sent, pid)

    def abort(self, number: int) -> None:
        """A transaction is rolled back."""
        self._statuses[number] = "aborted"

    def status(self, number: int) -> str | None:
        """What pg_xact_status says of a transaction."""
        return self._statuses.get(number)


class MemoryTransaction:
    """One transaction; `MemoryServer.transaction` and `MemoryBus.transaction` make them."""

    def __init__(self, session: MemorySession) -> None:
        self._session = session

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
        """Send a notification when the transaction commits, as `pgnotifybus.notify` does.

        The same channel and payload twice in one transaction arrive once. There is no spill table:
        what does not fit, compressed or not, is refused.

        Raises:
            InvalidChannel, ValueError, TypeError: If channel, payload or envelope cannot be sent.
            PayloadTooLarge: If it does not fit into a notification.

        Cancel safety: as for any statement; roll the transaction back.
        """
        await run(send_one(message(channel, payload, envelope), SCHEMA), self._session)

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A savepoint: an exception rolls back to it, and goes on to whoever catches it.

        Cancel safety: it is rolled back.
        """
        await self._session.savepoint()
        try:
            yield
        except BaseException:
            with contextlib.suppress(LinkLost):  # then all of it is rolled back
                await self._session.end_savepoint(keep=False)
            raise
        await self._session.end_savepoint(keep=True)


class MemoryConnector(Lender):
    """The way of one bus to the server, which can be closed.

    Attributes:
        open: Who is let in.
    """

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self.open: Literal["all", "all but listeners", "none"] = "all"
        self._sessions: dict[MemorySession, str] = {}

    def close_door(self, to: Literal["listeners", "all"]) -> None:
        """Refuse connections from now on, and end those that are there."""
        self.open = "none" if to == "all" else "all but listeners"
        for session, part in list(self._sessions.items()):
            if self._refuses(part):
                session.end(LinkLost("the in-memory server was taken away"))

    def open_door(self) -> None:
        """Let everybody in again."""
        self.open = "all"

    # -- links.base.Lender ------------------------------------------------------------------------

    def describe(self) -> str:
        return "the in-memory server"

    async def connect(self, part: str, timeout: float) -> MemorySession:
        if self._refuses(part):
            raise ConnectError(
                "the in-memory server refuses connections", "End the gap, or call `await bus.up()`"
            )
        session = self.server.session()
        self._sessions[session] = part
        session.lost.add_done_callback(lambda _: self._sessions.pop(session, None))
        return session

    async def outlet(self, part: str, timeout: float) -> MemorySession:
        return await self.connect(part, timeout)

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        raise FatalLinkError(
            "an in-memory bus has no database behind it, only notifications",
            "Use the fixture pgnotifybus_dsn for a real one",
        )

    def _refuses(self, part: str) -> bool:
        return self.open == "none" or (self.open == "all but listeners" and part == "listener")
