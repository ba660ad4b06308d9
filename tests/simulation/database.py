"""A scripted database to publish to, in virtual time: what it committed, and how it fails.

It knows the statements of a publisher and no others: BEGIN, the one that sends, COMMIT, ROLLBACK,
and the questions that are asked when a commit was not answered.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

from pgnotifybus import observe
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import ConnectError, FatalLinkError, LinkLost
from pgnotifybus.links.base import Link, Rows, ServerError
from pgnotifybus.publish.publisher import Publisher
from pgnotifybus.publish.settings import Settings

When = Literal["begin", "send", "commit", "status"]
What = Literal[
    "cut before",
    "cut after",
    "cut during",
    "silence before",
    "silence after",
    "refuse",
    "crash after",
    "half",
    "slow",
]
Door = Literal["open", "refuses", "hangs", "rejects"]

_FIRST = 700
"""The id of the first transaction."""

_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Fault(NamedTuple):
    """What happens to the next statement of a kind."""

    when: When
    what: What


class Sent(NamedTuple):
    """One notification of a committed transaction."""

    transaction: int
    channel: str
    wire: str


@dataclass
class Transaction:
    """One that was begun."""

    number: int
    state: Literal["in progress", "committed", "aborted"] = "in progress"
    sent: list[Sent] = field(default_factory=list)


class SimulatedDatabase:
    """The database; as a connector it makes its sessions too."""

    def __init__(self, *, latency: float = 0.001) -> None:
        self.latency = latency
        """Seconds that a statement takes."""
        self.door: Door = "open"
        self.faults: deque[Fault] = deque()
        """What happens next; each waits for its kind of statement, in their order."""
        self.poison: set[str] = set()
        """Payloads that make the statement fail for good."""
        self.tells_identity = True
        self.queue_pages: str | None = None
        self.commit_seconds = 0.5
        """How long a commit goes on after the connection was cut during it, or takes if slow."""
        self.committed: list[Sent] = []
        self.transactions: dict[int, Transaction] = {}
        self.sessions: list[Session] = []
        self.crashes = 0

    def crash(self) -> None:
        """All sessions end, and the server does not know of anything before that any more."""
        self.crashes += 1
        for session in self.sessions:
            session.end()
        # The ids are given out again, and these to others.
        self.transactions = {n: Transaction(n, "committed") for n in range(_FIRST, _FIRST + 100)}

    def kill(self) -> None:
        """All sessions end."""
        for session in self.sessions:
            session.end()

    def commit(self, transaction: Transaction) -> None:
        if self.transactions.get(transaction.number) is transaction:  # not crashed meanwhile
            transaction.state = "committed"
            self.committed += transaction.sent

    def take_fault(self, when: When) -> What | None:
        if self.faults and self.faults[0].when == when:
            return self.faults.popleft().what
        return None

    def open_sessions(self) -> list[Session]:
        return [session for session in self.sessions if not session.closed]

    # -- as a Connector ---------------------------------------------------------------------------

    def describe(self) -> str:
        return "the simulated database"

    async def connect(self, part: str, timeout: float) -> Link:
        raise NotImplementedError("nobody listens here")

    async def outlet(self, part: str, timeout: float) -> Session:
        await asyncio.sleep(self.latency)
        match self.door:
            case "refuses":
                raise ConnectError("connection refused")
            case "rejects":
                raise FatalLinkError("no such database")
            case "hangs":
                await asyncio.get_running_loop().create_future()
            case "open":
                pass
        session = Session(self)
        self.sessions.append(session)
        return session


class Session:
    """An `Outlet` and its `Runner`, and the session of the server at its other end."""

    borrow_seconds = 0.0

    def __init__(self, database: SimulatedDatabase) -> None:
        self._database = database
        self.lost: asyncio.Future[LinkLost] = asyncio.get_running_loop().create_future()
        self.closed = False
        self._transaction: Transaction | None = None
        self._silent = False
        self._failed = False
        """Whether the transaction is aborted, and takes nothing but ROLLBACK."""

    def end(self) -> None:
        """The connection is gone, and what was not committed is undone."""
        if self._transaction is not None:
            self._transaction.state = "aborted"
            self._transaction = None
        if not self.lost.done():
            self.lost.set_result(LinkLost("the connection was closed"))

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Session]:
        yield self

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.closed = True
        self.end()

    # -- as a Runner ------------------------------------------------------------------------------

    async def execute(self, sql: str) -> None:
        if sql.startswith("BEGIN"):
            await self._statement("begin", self._begin)
        elif sql == "COMMIT":
            await self._statement("commit", self._commit)
        else:
            assert sql == "ROLLBACK"
            await self._statement(None, self._rollback)

    async def fetch(self, sql: str, *parameters: str | None) -> Rows:
        if "pg_xact_status" in sql:
            number = int(parameters[0] or "")
            return await self._statement("status", lambda: self._status(number))
        if "max_notify_queue_pages" in sql:
            return await self._statement(None, lambda: [(self._database.queue_pages,)])
        if "unnest" not in sql:
            return await self._statement(None, self._identity)
        channels, wires = (_elements(each or "") for each in parameters)
        return await self._statement("send", lambda: self._send(channels, wires))

    async def _statement(self, when: When | None, run: Callable[[], Rows]) -> Rows:
        if self.lost.done():
            raise self.lost.result()
        await self._for(self._database.latency / 2)
        if self._failed and run != self._rollback:
            raise ServerError("current transaction is aborted", "25P02")
        what = self._database.take_fault(when) if when is not None else None
        match what:
            case "refuse":
                if when == "commit":
                    self._rollback()
                raise ServerError("too many notifications in the NOTIFY queue", "54000")
            case "cut before":
                self.end()
            case "silence before":
                self._silent = True
            case "half":  # BEGIN has run, and what came with it has failed
                self._begin()
                self._failed = True
                raise ServerError("canceling statement due to user request", "57014")
            case "slow":
                await self._for(self._database.commit_seconds)
            case _:
                pass
        if self._silent:
            await asyncio.get_running_loop().create_future()
        if self.lost.done():
            raise self.lost.result()
        if what == "cut during" and when == "commit":
            transaction, self._transaction = self._transaction, None
            assert transaction is not None
            commit = partial(self._database.commit, transaction)
            asyncio.get_running_loop().call_later(self._database.commit_seconds, commit)
            self.end()
            raise self.lost.result()
        rows = run()
        match what:
            case "cut after":
                self.end()
            case "silence after":
                self._silent = True
                await asyncio.get_running_loop().create_future()
            case "crash after":
                self._database.crash()
            case _:
                pass
        await self._for(self._database.latency / 2)
        if self.lost.done():
            raise self.lost.result()
        return rows

    async def _for(self, seconds: float) -> None:
        await asyncio.wait({self.lost}, timeout=seconds)

    def _begin(self) -> Rows:
        assert self._transaction is None, "a transaction was left open"
        number = _FIRST + len(self._database.transactions)
        self._transaction = self._database.transactions[number] = Transaction(number)
        return []

    def _send(self, channels: list[str], wires: list[str]) -> Rows:
        transaction = self._transaction
        assert transaction is not None
        if self._database.poison.intersection(wires):
            raise ServerError("character has no equivalent in encoding LATIN1", "22P05")
        pairs = list(zip(channels, wires, strict=True))
        assert len(set(pairs)) == len(pairs), "PostgreSQL would send the same only once"
        transaction.sent = [Sent(transaction.number, *pair) for pair in pairs]
        return [(str(len(pairs)), str(transaction.number), *self._identity()[0])]

    def _commit(self) -> Rows:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        self._database.commit(transaction)
        return []

    def _rollback(self) -> Rows:
        transaction, self._transaction = self._transaction, None
        self._failed = False
        if transaction is not None:  # without one, the server only warns
            transaction.state = "aborted"
        return []

    def _identity(self) -> Rows:
        return [(f"server {self._database.crashes}" if self._database.tells_identity else None,)]

    def _status(self, number: int) -> Rows:
        transaction = self._database.transactions.get(number)
        return [(None if transaction is None else transaction.state,)]


def _elements(array: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", each, flags=re.DOTALL) for each in _ELEMENT.findall(array)]


def publisher_on(
    database: SimulatedDatabase,
    observer: observe.Observer | None = None,
    **settings: object,
) -> Publisher:
    """A publisher whose database is simulated, without a bus."""
    side = SideLink(database, part="publisher", connect_timeout=5.0, timeout=10.0)
    return Publisher(
        side,
        "pgnotifybus",
        Settings(**settings),  # type: ignore[arg-type]
        Emitter(observer),
        on_start=lambda _: None,
        on_end=lambda _: None,
    )
