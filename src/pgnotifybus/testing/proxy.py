"""A TCP proxy that misbehaves on demand: refuses, cuts, stalls, drips, hides the server's end.
Layer: testing.

::

    async with FaultProxy.in_front_of(dsn) as proxy:
        async with PgNotifyBus(proxy.dsn, ["orders"]) as bus:
            await proxy.reset()

A fault is in effect when its coroutine has returned, for the connections that are open and for
those to come, where nothing else is said; `heal` ends all of them. The proxy forwards bytes and
knows nothing of what they mean: TLS goes through it, and so does any driver.

Raw sockets, not streams: only so is it certain which packets are sent, and the sockets never wait
for buffers of ours to empty.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Literal, Self
from urllib.parse import SplitResult, urlsplit

from pgnotifybus.embedded.ports import free_port
from pgnotifybus.testing.proxied import Conditions, Connection, Direction

__all__ = ["Direction", "FaultProxy"]

_DEFAULT_PORT = 5432


class FaultProxy:
    """A proxy on this machine; enter it as a context manager, which leaves no task and no socket.

    It needs an event loop that can watch sockets (`add_reader`): asyncio's own, but for the
    proactor of Windows, or uvloop.

    Args:
        target_host: The host to forward to: a name, or an IPv4 address.
        target_port: The port to forward to.
        host: The IPv4 address to listen on; any of 127.0.0.0/8 will do on Linux.
        port: The port to listen on; 0 for one that is free.

    Attributes:
        accepted: How many connections have been accepted so far.
    """

    def __init__(
        self, target_host: str, target_port: int, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._target = (target_host, target_port)
        self._target_dsn: str | None = None
        self._host = host
        self._port = port
        self._listener: socket.socket | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._conditions = Conditions()
        self.accepted = 0

    @classmethod
    def in_front_of(cls, dsn: str) -> Self:
        """A proxy for the server of a DSN; `dsn` is then the way through it.

        Args:
            dsn: In URI form, with a host.

        Raises:
            ValueError: If the DSN names no TCP server.
        """
        parts = _split(dsn)
        proxy = cls(parts.hostname or "", parts.port or _DEFAULT_PORT)
        proxy._target_dsn = dsn
        return proxy

    def __repr__(self) -> str:
        return f"<FaultProxy port={self._port} open={self.open} accepted={self.accepted}>"

    async def __aenter__(self) -> Self:
        """Take connections from now on, as a healthy network would.

        Cancel safety: it does not wait.
        """
        self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Reset all connections and take no more.

        Cancel safety: nothing is left behind.
        """
        await self.refuse()
        await self._end_all(Connection.end_with_rst)

    # -- facts ------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port to connect to; it stays the same, also while connections are refused."""
        return self._port

    @property
    def open(self) -> int:
        """How many connections are open at this moment."""
        return len(self._connections)

    @property
    def forwarded(self) -> dict[Direction, int]:
        """How many bytes have been forwarded each way."""
        return dict(self._conditions.forwarded)

    @property
    def dsn(self) -> str:
        """The DSN through the proxy, if it was made by `in_front_of`. It may hold a password.

        The host is where the proxy listens: with `sslmode=verify-full` the server's certificate
        has to be for that.

        Raises:
            ValueError: If the proxy knows no DSN; see `dsn_from`.
        """
        if self._target_dsn is None:
            raise ValueError("the proxy was not made by FaultProxy.in_front_of: use dsn_from")
        return self.dsn_from(self._target_dsn)

    def dsn_from(self, dsn: str) -> str:
        """A DSN in URI form with the proxy in the place of its server.

        Raises:
            ValueError: If the DSN names no TCP server.
        """
        parts = _split(dsn)
        who = parts.netloc.rpartition("@")[0]
        place = f"{self._host}:{self.port}"
        return parts._replace(netloc=f"{who}@{place}" if who else place).geturl()

    async def wait_connected(self, count: int) -> None:
        """Wait until at least so many connections have been accepted since the proxy exists.

        Cancel safety: nothing is left behind.
        """
        await self._conditions.wait_for(lambda: self.accepted >= count)

    async def wait_open(self, count: int) -> None:
        """Wait until exactly so many connections are open.

        Cancel safety: nothing is left behind.
        """
        await self._conditions.wait_for(lambda: self.open == count)

    async def wait_forwarded(self, direction: Direction, size: int) -> None:
        """Wait until at least so many bytes have been forwarded in a direction.

        Cancel safety: nothing is left behind.
        """
        await self._conditions.wait_for(lambda: self.forwarded[direction] >= size)

    # -- faults -----------------------------------------------------------------------------------

    async def heal(self) -> None:
        """End every fault; what was held back is delivered now. What was cut stays cut.

        Cancel safety: it does not wait.
        """
        self._conditions.heal()
        if self._listener is None:
            self._listen()

    async def refuse(self) -> None:
        """Refuse new connections; those that are open stay.

        Cancel safety: it does not wait.
        """
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def cut(self) -> None:
        """Close both sides of every open connection in an orderly way (FIN).

        Cancel safety: all of them are closed.
        """
        await self._end_all(Connection.end_with_fin)

    async def reset(self) -> None:
        """Reset both sides of every open connection (RST).

        Cancel safety: all of them are reset.
        """
        await self._end_all(Connection.end_with_rst)

    async def half_close(self, direction: Direction = "down") -> None:
        """Send FIN one way on every open connection; the other way stays open.

        What would have gone that way from now on is swallowed.

        Args:
            direction: "down" has the client see the end of what comes from the server, "up" the
                server the end of what comes from the client.

        Cancel safety: it does not wait.
        """
        for connection in self._connections:
            connection.half_close(direction)

    async def close_server_side(self) -> None:
        """Close the server's side of every open connection, and hide it from the client.

        The client's side stays open, and what it sends is swallowed, as by a load balancer that
        does not tell. When the server ends a connection made later, that is hidden too.

        Cancel safety: it does not wait.
        """
        self._conditions.hide_ends()
        for connection in self._connections:
            connection.leave_server()

    async def stall(self, direction: Literal["both", "up", "down"] = "both") -> None:
        """Forward nothing more, not even the end of a connection, and keep everything open.

        Args:
            direction: "up" holds back what goes to the server, "down" what comes from it.

        Cancel safety: it does not wait.
        """
        if direction != "down":
            self._conditions.stall("up")
        if direction != "up":
            self._conditions.stall("down")

    async def drip(self, bytes_per_second: int) -> None:
        """Forward only so many bytes a second, each way of each connection; at least 1.

        Cancel safety: it does not wait.
        """
        self._conditions.rate = max(1, bytes_per_second)

    # -- inside -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setblocking(False)
        # The port is free again at once although connections that came through it are open.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._port = self._port or free_port()
            listener.bind((self._host, self._port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        # Not sock_accept in a task: cancelling that can lose a connection just accepted.
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has already gone
            return
        connection = Connection(client, self._target, self._conditions)
        task = asyncio.create_task(self._serve(connection), name="proxy connection")
        self._connections[connection] = task
        self.accepted += 1
        self._conditions.tell()

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._connections.pop(connection, None)
            self._conditions.tell()

    async def _end_all(self, how: Callable[[Connection], None]) -> None:
        ending = dict(self._connections)
        for connection, task in ending.items():
            how(connection)
            task.cancel()
        try:
            await _ended(ending.values())
        finally:
            for connection in ending:
                if self._connections.pop(connection, None) is not None:
                    connection.close()  # its task was cancelled before it began
            self._conditions.tell()


def _split(dsn: str) -> SplitResult:
    parts = urlsplit(dsn)
    if not parts.hostname:
        raise ValueError("the DSN of a TCP server is needed, in URI form: this one has no host")
    return parts


async def _ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait until tasks that were cancelled have ended, also if we are cancelled ourselves."""
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        _ = task.cancelled() or task.exception()
    if cancelled is not None:
        raise cancelled
