"""A TCP proxy that misbehaves on demand: refuses, cuts, stalls, drips, hides the server's end.

::

    async with FaultProxy("127.0.0.1", server.port) as proxy:
        dsn = proxy.dsn_from(server.dsn)
        ...
        await proxy.wait_connected(1)
        await proxy.cut_rst()

A fault is in effect when its coroutine has returned, for the connections that are open and for
those to come; `heal` ends all of them. Raw sockets, not streams: only so is it certain which
packets are sent, and the sockets never wait for buffers of ours to empty.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from pgnotifybus.embedded.ports import free_port
from support.proxied import Conditions, Connection, Direction

Fault = Literal["both", "up", "down"]


class FaultProxy:
    """A proxy on 127.0.0.1; enter it as a context manager, which leaves no task or socket.

    Args:
        target_host: The host to forward to.
        target_port: The port to forward to.

    Attributes:
        accepted: How many connections have been accepted so far.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._port = 0
        self._listener: socket.socket | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._conditions = Conditions()
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def dsn_from(self, dsn: str) -> str:
        """Return a DSN in URI form with the proxy in the place of its server.

        Raises:
            ValueError: The DSN names no TCP server.
        """
        parts = urlsplit(dsn)
        if not parts.hostname:
            raise ValueError("the DSN of a TCP server is needed, this one has no host in it")
        who = parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self.port}"
        return parts._replace(netloc=f"{who}@{place}" if who else place).geturl()

    async def wait_connected(self, count: int) -> None:
        """Wait until at least so many connections have been accepted since the proxy exists."""
        await self._conditions.wait_for(lambda: self.accepted >= count)

    async def wait_open(self, count: int) -> None:
        """Wait until exactly so many connections are open."""
        await self._conditions.wait_for(lambda: self.open == count)

    async def wait_forwarded(self, direction: Direction, size: int) -> None:
        """Wait until at least so many bytes have been forwarded in a direction."""
        await self._conditions.wait_for(lambda: self.forwarded[direction] >= size)

    # -- faults -----------------------------------------------------------------------------------

    async def heal(self) -> None:
        """End every fault; what was held back is delivered now."""
        self._conditions.heal()
        if self._listener is None:
            self._listen()

    async def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def cut_fin(self) -> None:
        """Close both sides of every open connection in an orderly way (FIN)."""
        await self._end_all(Connection.end_with_fin)

    async def cut_rst(self) -> None:
        """Reset both sides of every open connection (RST)."""
        await self._end_all(Connection.end_with_rst)

    async def stall(self, direction: Fault = "both") -> None:
        """Forward nothing more, not even the end of a connection, and keep everything open.

        Args:
            direction: "up" holds back what goes to the server, "down" what comes from it.
        """
        if direction != "down":
            self._conditions.stall("up")
        if direction != "up":
            self._conditions.stall("down")

    async def drip(self, bytes_per_second: int) -> None:
        """Forward only so many bytes a second, each way of each connection; at least 1."""
        self._conditions.rate = max(1, bytes_per_second)

    async def half_close(self) -> None:
        """Close the server's side of every open connection, and hide it from the client.

        What the client sends from now on is swallowed. When the server ends a connection made
        later, that is hidden too.
        """
        self._conditions.hide_ends()
        for connection in self._connections:
            connection.leave_server()

    # -- inside -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setblocking(False)
        # The port is free again at once although connections that came through it are open.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._port = self._port or free_port()
            listener.bind(("127.0.0.1", self._port))
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
        tasks = list(self._connections.values())
        for connection, task in self._connections.items():
            how(connection)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections):
            # Its task was cancelled before it began, and so has not closed anything.
            connection.close()
            del self._connections[connection]
        self._conditions.tell()
