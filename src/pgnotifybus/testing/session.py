"""One session of the in-memory server, and the link at its other end. Layer: testing.

It knows the statements that the library sends, and no others: there are no tables behind it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from pgnotifybus.core.envelope import NO_STAMP
from pgnotifybus.errors import LinkLost
from pgnotifybus.links import base
from pgnotifybus.links.inbox import Inbox
from pgnotifybus.publish.message import Message
from pgnotifybus.publish.statements import (
    identify,
    make_room,
    may_spill,
    queue_pages,
    send_many,
    status_of,
)
from pgnotifybus.testing.killing import KILL
from pgnotifybus.testing.pending import Pending, Sent

if TYPE_CHECKING:
    from pgnotifybus.testing.server import MemoryServer

T = TypeVar("T")

VERSION: Final = "in memory"
_IDENTITY: Final = "in memory"

_ANY: Final = Message("channel", "payload", 7, "payload", NO_STAMP)
_SEND_MANY: Final = {send_many([_ANY], "any", identify=told).sql: told for told in (True, False)}
_MAY_SPILL: Final = next(may_spill(_ANY, "any")).sql
_STATUS: Final = status_of("1").sql

_ELEMENT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class MemorySession:
    """A `links.base.Link`.

    Attributes:
        pid: What tells it from all other sessions, as the PID of its process would.
    """

    server_version = VERSION
    borrow_seconds = 0.0

    def __init__(self, server: MemoryServer, pid: int) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self.pid = pid
        self.lost: asyncio.Future[LinkLost] = self._loop.create_future()
        self.heard_at = self._loop.time()
        self._listening: set[str] = set()
        self._inbox = Inbox()
        self._arrival_due = False
        self._ended: LinkLost | None = None
        self._transaction: int | None = None
        self._pending = Pending()

    # -- the server's side ------------------------------------------------------------------------

    def notified(self, sent: Sent, pid: int) -> None:
        """Something has committed: have it arrive, if the session listens to its channel."""
        if sent.channel not in self._listening or self._ended is not None:
            return
        payloads, pids = self._inbox.of(sent.channel)
        payloads.append(sent.wire)
        pids.append(pid)
        self._arrive_soon()

    def end(self, reason: LinkLost) -> None:
        """End the session: it is rolled back, and what it was sent still arrives before that."""
        if self._ended is None:
            self._ended = reason
            self._listening.clear()
            self._rollback()
            self._server.left(self)
            self._arrive_soon()

    # -- transactions -----------------------------------------------------------------------------

    async def savepoint(self) -> None:
        """Begin a savepoint in the transaction."""
        await self._statement(self._pending.open)

    async def end_savepoint(self, *, keep: bool) -> None:
        """End the newest savepoint: keep what was sent in it, or forget it."""
        await self._statement(self._pending.release if keep else self._pending.undo)

    def _begin(self) -> None:
        self._transaction = self._server.begin()

    def _commit(self) -> None:
        number, pending = self._transaction, self._pending
        self._transaction, self._pending = None, Pending()
        if number is not None:
            self._server.commit(number, pending.all(), self.pid)

    def _rollback(self) -> None:
        number, self._transaction, self._pending = self._transaction, None, Pending()
        if number is not None:
            self._server.abort(number)

    def _notify(self, *notifications: Sent) -> None:
        alone = self._transaction is None
        if alone:
            self._begin()
        for each in notifications:
            self._pending.add(each)
        if alone:
            self._commit()

    # -- links.base.Link --------------------------------------------------------------------------

    def start(
        self,
        sink: base.Sink,
        on_undecodable: base.OnUndecodable | None = None,
        batch: int | None = None,
    ) -> None:
        self._inbox.start(sink, on_undecodable, batch)

    def flush(self) -> None:
        self._inbox.flush()

    async def change(self, listen: Sequence[str], unlisten: Sequence[str]) -> None:
        def run() -> None:
            self._listening.difference_update(unlisten)
            self._listening.update(listen)
            self._inbox.flush([*listen, *unlisten])

        await self._statement(run)

    async def inspect(self) -> base.Session:
        return await self._statement(
            lambda: base.Session(frozenset(self._listening), False, self.pid, 0.0)
        )

    async def execute(self, sql: str) -> None:
        verbs = {"BEGIN": self._begin, "COMMIT": self._commit, "ROLLBACK": self._rollback}
        run = verbs.get(sql.partition(" ")[0].rstrip(";"))
        await self._statement(self._unknown if run is None else run)

    async def fetch(self, sql: str, *parameters: str | None) -> base.Rows:
        values = [each or "" for each in parameters]
        return await self._statement(lambda: self._answer(sql, values))

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[MemorySession]:
        yield self

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.end(LinkLost("the link was closed"))
        self._arrive()

    # -- inside -----------------------------------------------------------------------------------

    async def _statement(self, run: Callable[[], T]) -> T:
        await asyncio.sleep(0)  # a server is never there in the same turn of the loop
        if self._ended is not None:
            raise self._ended
        self.heard_at = self._loop.time()
        return run()

    def _answer(self, sql: str, values: list[str]) -> base.Rows:
        if sql == base.NOTIFY:
            self._notify(Sent(*values))
            return [("",)]
        if sql in _SEND_MANY:
            channels, wires = map(_elements, values)
            sent = list(map(Sent, channels, wires))
            self._notify(*sent)
            identity = _IDENTITY if _SEND_MANY[sql] else None
            return [(str(len(sent)), str(self._transaction), identity)]
        if sql == KILL:
            return [(self._server.kill(int(values[0])),)]
        if sql == _STATUS:
            return [(self._server.status(int(values[0])),)]
        if sql == identify().sql:
            return [(_IDENTITY,)]
        if sql == queue_pages().sql:
            return [(None,)]
        if sql == make_room().sql:
            return [("0",)]
        if sql == _MAY_SPILL:
            return []  # there is no such table
        self._unknown()
        return []

    def _unknown(self) -> None:
        raise base.ServerError(
            "an in-memory bus has no database behind it, only notifications: use the fixture "
            "pgnotifybus_dsn for a real one",
            "0A000",
        )

    def _arrive_soon(self) -> None:
        if not self._arrival_due:
            self._arrival_due = True
            self._loop.call_soon(self._arrive)

    def _arrive(self) -> None:
        self._arrival_due = False
        self.heard_at = self._loop.time()
        if self._ended is None:
            self._inbox.hand_on()
        elif not self.lost.done():
            self._inbox.flush()
            self.lost.set_result(self._ended)


def _elements(array: str) -> list[str]:
    """The elements of a text array, as `database.queries.array` writes it."""
    return [_ESCAPED.sub(r"\1", each) for each in _ELEMENT.findall(array)]
