"""A PostgreSQL server that exists in virtual time only, and fails as it is told.

It keeps to what the bus relies on: a transaction of LISTENs is done wholly or not at all, and
takes effect when it commits; a session gets, in commit order, what commits on a channel while the
session listens to it; what is under way when the session leaves a channel still arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar
from unittest import mock

from pgnotifybus import PgNotifyBus, observe
from pgnotifybus.errors import ConnectError, FatalLinkError, LinkLost
from pgnotifybus.links.base import NOTIFY, OnUndecodable, Rows, ServerError, Session, Sink
from pgnotifybus.links.inbox import Inbox

T = TypeVar("T")
R = TypeVar("R")

Door = Literal["open", "refuses", "hangs", "rejects", "full"]
"""What becomes of who connects: `rejects` is for good, `full` says that waiting helps."""


class Commit(NamedTuple):
    """One notification that was committed. Its payload on the wire is its number."""

    number: int
    channel: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """One notification that a link handed to the bus."""

    number: int
    channel: str
    pid: int


class SimulatedServer:
    """The server; as the source of a bus it makes its links too."""

    def __init__(self, *, latency: float = 0.01) -> None:
        self.door: Door = "open"
        self.latency = latency
        """Seconds from the client to the server, and back."""
        self.connect_seconds = 0.0
        self.close_seconds = 0.0
        self.in_recovery = False
        self.queue_usage = 0.0
        self.refused: set[str] = set()
        """Channels that the server refuses to LISTEN to."""
        self.mute: set[str] = set()
        """Channels whose LISTEN and UNLISTEN the server never answers."""
        self.failure: BaseException | None = None
        """What a connect raises, whatever the door says."""
        self.commits: list[Commit] = []
        self.arrivals: list[Arrival] = []
        self.attempts: list[float] = []
        self.links: list[SimulatedLink] = []

    @property
    def session(self) -> SimulatedLink:
        """The newest session; the listener's, if nobody published."""
        return self.links[-1]

    def open_links(self) -> list[SimulatedLink]:
        """The links that the bus has not closed."""
        return [link for link in self.links if not link.closed]

    def commit(self, channel: str) -> int:
        """Somebody notifies; the number of the notification, which is its payload."""
        number = len(self.commits)
        self.commits.append(Commit(number, channel))
        for link in self.links:
            link.notified(number, channel)
        return number

    # -- as a Connector ---------------------------------------------------------------------------

    def describe(self) -> str:
        return "the simulated server"

    async def connect(self, part: str, timeout: float) -> SimulatedLink:
        self.attempts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.connect_seconds)
        if self.failure is not None:
            raise self.failure
        match self.door:
            case "hangs":
                await asyncio.get_running_loop().create_future()
            case "refuses":
                raise ConnectError("connection refused")
            case "full":
                raise ConnectError("too many clients", waiting_helps=True)
            case "rejects":
                raise FatalLinkError("no such database")
            case "open":
                pass
        link = SimulatedLink(self, part, 1000 + len(self.links))
        self.links.append(link)
        return link

    async def outlet(self, part: str, timeout: float) -> SimulatedLink:
        return await self.connect(part, timeout)


class SimulatedLink:
    """A `links.base.Link`, and the session of the server at its other end."""

    def __init__(self, server: SimulatedServer, part: str, pid: int) -> None:
        self.part = part
        self.pid = pid
        self.backend = pid
        """The server process that answers."""
        self.server_version = "18.0"
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[LinkLost] = self._loop.create_future()
        self.heard_at = self._loop.time()
        # The client's side.
        self.closed = False
        self.starts = 0
        self.statements: list[str] = []
        self._leaving = False
        self._spoiled = False
        self._inbox = Inbox()
        self._answer: asyncio.Future[object] | None = None
        # The network.
        self.cut_at: float | None = None
        self._arriving: deque[tuple[float, Callable[[], None]]] = deque()
        # The server's side.
        self._server = server
        self._ended = False
        self.listening: dict[str, int] = {}
        """The channels of the session, each with the first number since it was last asked for."""

    # -- faults -----------------------------------------------------------------------------------

    def kill(self, *, politely: bool = True) -> None:
        """The server ends the session: after all it has sent (FIN), or dropping that (RST)."""
        lose = partial(self._lose, LinkLost("terminated by the administrator"))
        if politely:
            self._send(lose)
        else:
            self._arriving.clear()
            self._send(lose)
        self._ended = True

    def cut(self) -> None:
        """From now on the network swallows everything, in both directions, without a word."""
        if self.cut_at is None:
            self.cut_at = self._loop.time()

    def merge_packets(self) -> None:
        """Let all that is under way to the client arrive with the first of it."""
        first = self._arriving[0][0]
        self._arriving = deque((first, action) for _, action in self._arriving)

    def notified(self, number: int, channel: str) -> None:
        """Something commits: send it, if the session listens to the channel."""
        if channel in self.listening:
            self._send(partial(self._put, channel, str(number)))

    def _put(self, channel: str, payload: str) -> None:
        payloads, pids = self._inbox.of(channel)
        payloads.append(payload)
        pids.append(1)

    # -- links.base.Link --------------------------------------------------------------------------

    @property
    def borrow_seconds(self) -> float:
        return 0.0

    def flush(self) -> None:
        self._inbox.flush()

    def start(
        self, sink: Sink, on_undecodable: OnUndecodable | None = None, batch: int | None = None
    ) -> None:
        self.starts += 1

        def recording(channel: str, payloads: list[str], pids: list[int]) -> None:
            assert not self.closed, "a closed link delivers nothing"
            if not self._leaving:
                numbers = map(int, payloads)
                self._server.arrivals += [Arrival(n, channel, self.pid) for n in numbers]
            sink(channel, payloads, pids)

        self._inbox.start(recording, on_undecodable, batch)

    async def change(self, listen: Sequence[str], unlisten: Sequence[str]) -> None:
        def run() -> None:
            if self._server.in_recovery and listen:
                raise ServerError("cannot execute LISTEN during recovery", "25006")
            if refused := self._server.refused.intersection(listen):
                raise ServerError(f"permission denied for {sorted(refused)}", "42501")
            for name in unlisten:
                self.listening.pop(name, None)
            for name in listen:
                self.listening[name] = len(self._server.commits)

        said = [f"UNLISTEN {name}" for name in unlisten] + [f"LISTEN {name}" for name in listen]
        mute = not self._server.mute.isdisjoint([*listen, *unlisten])
        await self._statement("; ".join(said), run, mute=mute)

    async def inspect(self) -> Session:
        return await self._statement(
            "INSPECT",
            lambda: Session(
                frozenset(self.listening),
                self._server.in_recovery,
                self.backend,
                self._server.queue_usage,
            ),
        )

    async def execute(self, sql: str) -> None:
        await self._statement(sql, lambda: None)

    async def fetch(self, sql: str, *parameters: str | None) -> Rows:
        assert sql == NOTIFY, "the simulated server knows no other query"
        channel = parameters[0]
        assert channel is not None

        def run() -> Rows:
            self._server.commit(channel)
            return [("",)]

        return await self._statement(f"NOTIFY {channel}", run, mute=channel in self._server.mute)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[SimulatedLink]:
        yield self

    async def close(self) -> None:
        self._leaving = True
        try:
            if not self.lost.done():
                await asyncio.sleep(self._server.close_seconds)
        finally:
            self.abort()

    def abort(self) -> None:
        self._inbox.flush()
        self.closed = self._leaving = self._ended = True
        self._arriving.clear()
        self._lose(LinkLost("the link was closed"))

    # -- inside -----------------------------------------------------------------------------------

    async def _statement(self, text: str, run: Callable[[], T], *, mute: bool = False) -> T:
        assert not self._spoiled, "a statement after one that was cancelled"
        assert self._answer is None, "one statement at a time"
        if self.lost.done():
            raise self.lost.result()
        self.statements.append(text)
        answer: asyncio.Future[T] = self._loop.create_future()
        self._answer = answer  # type: ignore[assignment]  # only ever failed through this name
        if not mute:
            self._loop.call_later(self._server.latency, self._execute, run, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            self._spoiled = True
            raise
        finally:
            self._answer = None

    def _execute(self, run: Callable[[], T], answer: asyncio.Future[T]) -> None:
        if self._ended or self.cut_at is not None:
            return
        try:
            result = run()
        except ServerError as error:
            self._send(partial(_settle, answer.set_exception, answer, error))
        else:
            self._send(partial(_settle, answer.set_result, answer, result))

    def _send(self, action: Callable[[], None]) -> None:
        """Let something arrive at the client, behind all that was sent before."""
        if self._ended or self.cut_at is not None:
            return
        due = self._loop.time() + self._server.latency
        if self._arriving:
            due = max(due, self._arriving[-1][0])
        self._arriving.append((due, action))
        self._loop.call_at(due, self._arrive)

    def _arrive(self) -> None:
        if self.cut_at is not None:
            self._arriving.clear()
        # All that arrives in one moment is one packet: it is read before anything is handed on.
        packet = []
        while self._arriving and self._arriving[0][0] <= self._loop.time() + 1e-6:
            packet.append(self._arriving.popleft()[1])
        if packet and not self.lost.done():
            self.heard_at = self._loop.time()
            for action in packet:
                action()
            self._inbox.flush()

    def _lose(self, reason: LinkLost) -> None:
        if self.lost.done():
            return
        self._inbox.flush()
        self.lost.set_result(reason)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(reason)


def _settle(settle: Callable[[R], None], answer: asyncio.Future[T], value: R) -> None:
    if not answer.done():
        settle(value)


@contextmanager
def simulated() -> Iterator[None]:
    """In here, the source of a bus is a SimulatedServer."""
    with mock.patch("pgnotifybus.bus.connector", lambda source, *_: source):
        yield


def bus_on(
    server: SimulatedServer,
    channels: Sequence[str],
    observer: observe.Observer | None = None,
    *,
    capacity: int = 256,
    probe_interval: float | None = 5.0,
) -> PgNotifyBus:
    """A bus whose server is simulated."""
    with simulated():
        return PgNotifyBus(
            server, channels, capacity=capacity, probe_interval=probe_interval, observer=observer
        )
