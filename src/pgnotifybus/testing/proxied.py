"""One connection through the fault proxy, and the conditions that all of them are under.
Layer: testing.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Direction = Literal["up", "down"]

_CHUNK = 65_536
_DRIPS = 20  # a second
# SO_LINGER: on, 0 s. Windows has two unsigned shorts where all others have two ints.
_RESET_ON_CLOSE = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)


class Conditions:
    """What the network is like at this moment; shared by all connections of a proxy.

    Attributes:
        rate: Bytes a second, each way of each connection; None is as fast as it goes.
        forwarded: How many bytes went each way.
    """

    def __init__(self) -> None:
        self.rate: int | None = None
        self.forwarded: dict[Direction, int] = {"up": 0, "down": 0}
        self._flowing: dict[Direction, asyncio.Event] = {
            "up": asyncio.Event(),
            "down": asyncio.Event(),
        }
        self._ends_shown = asyncio.Event()
        self._changed = asyncio.Event()
        self.heal()

    def heal(self) -> None:
        """Let everything through again."""
        self.rate = None
        self._ends_shown.set()
        for each in self._flowing.values():
            each.set()

    def stall(self, direction: Direction) -> None:
        """Let nothing through any more in one direction."""
        self._flowing[direction].clear()

    def hide_ends(self) -> None:
        """Do not tell clients when the server's side ends."""
        self._ends_shown.clear()

    @property
    def ends_hidden(self) -> bool:
        """Whether clients are kept from noticing that the server's side has ended."""
        return not self._ends_shown.is_set()

    async def until_flowing(self, direction: Direction) -> None:
        """Wait while a direction is stalled."""
        await self._flowing[direction].wait()

    async def until_ends_shown(self) -> None:
        """Wait while the end of the server's side is hidden."""
        await self._ends_shown.wait()

    def tell(self) -> None:
        """Let everybody in `wait_for` look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until something is so; it is looked at after each `tell`."""
        while not predicate():
            await self._changed.wait()


class Connection:
    """A client's connection and the one to the server that belongs to it.

    Args:
        client: The accepted socket; closed when `serve` ends.
        target: Host and port of the server.
        conditions: What the network is like.
    """

    def __init__(
        self, client: socket.socket, target: tuple[str, int], conditions: Conditions
    ) -> None:
        self._client = client
        self._server = socket.socket()
        self._target = target
        self._conditions = conditions
        self._ended: set[Direction] = set()
        for each in (self._client, self._server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def serve(self) -> None:
        """Forward both ways until both have ended, or one was reset."""
        try:
            await self._serve()
        finally:
            self.close()

    async def _serve(self) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(self._server, self._target)
        except OSError:  # there is no server, and a reset is the nearest thing to a refusal
            self.end_with_rst()
            return
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump("up"), name="proxy pump up")
                pumps.create_task(self._pump("down"), name="proxy pump down")
        except* ConnectionError:
            self.end_with_rst()
        except* _ClientLeft:
            pass

    def end_with_fin(self) -> None:
        """Send FIN to both sides; `close` has to follow."""
        for each in (self._client, self._server):
            with suppress(OSError):  # the other side has already gone
                each.shutdown(socket.SHUT_RDWR)
            # A close with unread data would send RST after all.
            with suppress(OSError):
                while each.recv(_CHUNK):
                    pass

    def end_with_rst(self) -> None:
        """Have RST sent to both sides by the `close` that has to follow."""
        for each in (self._client, self._server):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def half_close(self, direction: Direction) -> None:
        """Send FIN one way, and swallow what else would have gone there."""
        self._ended.add(direction)
        with suppress(OSError):  # it is not connected yet, or has gone
            (self._server if direction == "up" else self._client).shutdown(socket.SHUT_WR)

    def leave_server(self) -> None:
        """End the server's side only."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close both sockets. Nothing may be waiting on them any more."""
        self._client.close()
        self._server.close()

    async def _pump(self, direction: Direction) -> None:
        """Forward one direction until its source ends.

        Raises:
            ConnectionError: One of the sides was reset, and the other has to be.
        """
        source, target = self._client, self._server
        if direction == "down":
            source, target = target, source
        reset: ConnectionError | None = None
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, _CHUNK):
                await self._conditions.until_flowing(direction)
                await self._forward(direction, data, target)
        except ConnectionError as error:
            reset = error
        await self._conditions.until_flowing(direction)
        if direction == "down":
            await self._conditions.until_ends_shown()
        elif self._conditions.ends_hidden:
            raise _ClientLeft  # nobody is left from whom to hide the server's end
        if reset is not None:
            raise reset
        with suppress(OSError):  # the other side has already gone
            target.shutdown(socket.SHUT_WR)

    async def _forward(self, direction: Direction, data: bytes, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view and direction not in self._ended:
            rate = self._conditions.rate
            size = len(view) if rate is None else max(1, rate // _DRIPS)
            part, view = view[:size], view[size:]
            try:
                await loop.sock_sendall(target, part)
            except ConnectionError:
                if direction in self._ended:
                    return
                if direction == "down" or not self._conditions.ends_hidden:
                    raise
                return  # swallowed: the client must not learn that the server has gone
            self._conditions.forwarded[direction] += len(part)
            self._conditions.tell()
            if rate is not None:
                await asyncio.sleep(len(part) / rate)
                await self._conditions.until_flowing(direction)


class _ClientLeft(Exception):
    """The client ended its side while the server's end was hidden from it."""
