"""A bus for unit tests: the real one, on a server that is in this process. Layer: testing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

from pgnotifybus import observe
from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.testing.killing import kill_link
from pgnotifybus.testing.server import MemoryConnector, MemoryServer, MemoryTransaction
from pgnotifybus.typed import Channel

_WITHIN = 10.0
"""The seconds within which a bus must have noticed; it takes about a hundredth."""


class MemoryBus(PgNotifyBus):
    """A `PgNotifyBus` without PostgreSQL, whose link can be taken away at will.

    Everything but the server is the real thing: receivers, rings, gaps, envelopes, publishers,
    health, observers::

        async with MemoryBus(["orders"]) as bus:
            orders = bus.subscribe("orders")
            async with bus.transaction() as transaction:
                await transaction.notify("orders", "42")
            assert await orders.recv() == "42"

    What it does not have is a database: no spill table (what does not fit is refused, as by a
    server without one), no event log, no triggers, no schema.
    """

    def __init__(
        self,
        channels: Iterable[str | Channel[Any]] = (),
        *,
        server: MemoryServer | None = None,
        capacity: int = 256,
        probe_interval: float | None = None,
        backoff_initial: float = 0.001,
        backoff_maximum: float = 0.01,
        observer: observe.Observer | None = None,
    ) -> None:
        """Describe a bus; no I/O.

        Args:
            channels: The channels to listen to from the start; typed ones too.
            server: One that is shared with other in-memory buses; None for one of its own.
            capacity: How many messages a channel keeps for a receiver that is behind; at least 1.
            probe_interval: The seconds of silence after which the server is asked; None for never.
            backoff_initial: The seconds before the first attempt to connect again.
            backoff_maximum: The most seconds between two attempts.
            observer: Called with every event of `pgnotifybus.observe`.

        Raises:
            InvalidChannel: If a name cannot be a channel; the message says why.
            ValueError: If a number is outside its range.
        """
        self._server = server or MemoryServer()
        self._way = MemoryConnector(self._server)
        super().__init__(
            self._way,
            channels,
            capacity=capacity,
            probe_interval=probe_interval,
            backoff_initial=backoff_initial,
            backoff_maximum=backoff_maximum,
            observer=observer,
        )

    async def __aenter__(self) -> Self:
        """Start the bus, as `PgNotifyBus` does.

        Raises:
            ConnectError: If it is down.

        Cancel safety: nothing is left running.
        """
        await super().__aenter__()
        return self

    @property
    def server(self) -> MemoryServer:
        """The server: what is sent on it comes from somebody else."""
        return self._server

    def transaction(self) -> AbstractAsyncContextManager[MemoryTransaction]:
        """A transaction on the server, over a connection of its own.

        Committed at the end of the block, rolled back by an exception. It works also while the bus
        is down: what is committed then is missed.
        """
        return self._server.transaction()

    async def reconnect(self) -> int:
        """Lose the link and wait until there is another; its generation.

        Raises:
            TimeoutError: If there is none within 10 s.
            Closed: If the bus ends meanwhile.
            RuntimeError: If the bus has not been started.

        Cancel safety: the link may have been lost or not.
        """
        return await kill_link(self, timeout=_WITHIN)

    @contextlib.asynccontextmanager
    async def gap(self) -> AsyncIterator[None]:
        """Lose the link until the end of the block: what commits in it is missed.

        Only the listener's connection is lost: `notify` and publishers go on. At the end of the
        block the bus is live again, and a `Gap` stands on every channel.

        Raises:
            TimeoutError: If the bus is not live again within 10 s.
            Closed: If the bus ends meanwhile.

        Cancel safety: the way to the server is open again.
        """
        self._way.close_door("listeners")
        try:
            await self._noticed()
            yield
        finally:
            self._way.open_door()
        await self._back()

    async def down(self) -> None:
        """Take the server away from this bus, until `up`; returns once the bus has noticed.

        Every connection is lost, and new ones are refused. A bus that has not been started will
        find it so.

        Cancel safety: the server is away.
        """
        self._way.close_door("all")
        await self._noticed()

    async def up(self) -> int:
        """Give the server back to this bus, and wait until it is live; the generation then.

        Raises:
            TimeoutError: If it is not live within 10 s.
            Closed: If the bus ends meanwhile.

        Cancel safety: the server is there.
        """
        self._way.open_door()
        return await self._back()

    async def _noticed(self) -> None:
        if self.health().state not in ("new", "stopped"):
            await self.wait_until("down", timeout=_WITHIN)

    async def _back(self) -> int:
        if self.health().state not in ("new", "stopped"):
            await self.wait_until("live", "lagging", timeout=_WITHIN)
        return self.health().generation
