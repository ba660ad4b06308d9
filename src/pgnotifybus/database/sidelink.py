"""A connection beside the listener's, for whatever is not listening. Layer: database.

A commit that waits for the disk, or for NOTIFY's lock, must not delay a LISTEN or a probe: so
sending, fetching and installing have connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from pgnotifybus.errors import Closed, ConnectError, LinkLost
from pgnotifybus.links.base import HARMLESS, Connector, Outlet, Runner, discard

# active_sql_transaction, in_failed_sql_transaction
_IN_TRANSACTION: Final = ("25001", "25P02")

SLOWEST: Final = 128 * 1024
"""The bytes a second that even a slow network carries: much data has more time."""


class SideLink:
    """One connection, made at its first use and kept, for one user at a time.

    One of an asyncpg pool is borrowed for each use instead.
    """

    def __init__(
        self, connector: Connector, *, part: str, connect_timeout: float, timeout: float
    ) -> None:
        """Make no connection yet.

        Args:
            connector: What makes it.
            part: What it is for; becomes part of its application_name.
            connect_timeout: The seconds that connecting to one host may take.
            timeout: The seconds that one use may take, connecting aside.
        """
        self._connector = connector
        self._part = part
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._outlet: Outlet | None = None
        self._turn = asyncio.Lock()
        self._patience: asyncio.Timeout | None = None
        self._closed = False

    @contextlib.asynccontextmanager
    async def use(self, *, size: int = 0) -> AsyncIterator[Runner]:
        """Run statements, while nobody else does.

        After a `ServerError` or a `PayloadTooLarge` the connection is kept: who had a transaction
        open has ended it. After any other exception the connection is dropped.

        Args:
            size: How many bytes will go to and fro; above a few hundred kilobytes they have more
                time than usual.

        Raises:
            ConnectError, FatalLinkError: If there is no connection; no statement was run.
            Closed: If `close` was called before; no statement was run.
            LinkLost: If the connection was lost meanwhile, or did not answer in time.

        Cancel safety: the connection is dropped, so that what has not been committed is not.
        """
        patience = self._timeout + size / SLOWEST
        async with self._my_turn():
            outlet = await self._ready()
            good = False
            try:
                async with (
                    self._patient(outlet.borrow_seconds + patience),
                    outlet.lend() as runner,
                ):
                    yield runner
                good = True
            except TimeoutError:
                if self._patience is None or not self._patience.expired():
                    raise  # not ours
                silent = f"the server has not answered for {patience:g} s"
                raise LinkLost("the bus has ended" if self._closed else silent) from None
            except HARMLESS as error:
                # In a transaction that nobody has ended, the next one could do nothing.
                good = getattr(error, "sqlstate", None) not in _IN_TRANSACTION
                raise
            finally:
                if not good:
                    await self._drop()

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(3 * self._connect_timeout + self._timeout):
                await self._turn.acquire()
        except TimeoutError:
            raise ConnectError(
                f"{self._connector.describe()} did not answer those in front in time: nothing was "
                "sent"
            ) from None
        try:
            yield
        finally:
            self._turn.release()

    async def close(self) -> None:
        """End what is under way and close the connection. Twice is harmless."""
        self._closed = True
        if self._patience is not None:
            with contextlib.suppress(RuntimeError):  # it has run out, or was not needed
                self._patience.reschedule(asyncio.get_running_loop().time())
        async with self._turn:
            await self._drop()

    async def _ready(self) -> Outlet:
        # A connection that was lost while nothing was being sent costs nothing but a new one.
        if self._outlet is not None and self._outlet.lost.done():
            await self._drop()
        if self._closed:
            raise Closed("the bus has ended: nothing was sent")
        if self._outlet is None:
            try:
                # Room for several hosts of one DSN: each has the timeout for itself.
                async with self._patient(3 * self._connect_timeout):
                    self._outlet = await self._connector.outlet(self._part, self._connect_timeout)
            except TimeoutError:
                if self._closed:
                    raise Closed("the bus has ended: nothing was sent") from None
                raise ConnectError(
                    f"{self._connector.describe()} did not answer in time: nothing was sent"
                ) from None
            if self._has_ended():  # in the turn in which the connection came
                await self._drop()
                raise Closed("the bus has ended: nothing was sent")
        return self._outlet

    def _has_ended(self) -> bool:
        return self._closed

    def _patient(self, seconds: float) -> asyncio.Timeout:
        """A timeout that `close` can bring forward."""
        self._patience = asyncio.timeout(seconds)
        return self._patience

    async def _drop(self) -> None:
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            await discard(outlet)


@contextlib.asynccontextmanager
async def one_connection(
    connector: Connector, *, part: str, timeout: float
) -> AsyncIterator[Runner]:
    """A connection for one errand; what is not committed by then is not.

    Args:
        connector: What makes it.
        part: What it is for; becomes part of its application_name.
        timeout: The seconds that connecting to one host, and then all of the errand, may take.

    Raises:
        ConnectError, FatalLinkError: If there is no connection.
        LinkLost: If it was lost, or did not answer in time.

    Cancel safety: the connection is closed.
    """
    side = SideLink(connector, part=part, connect_timeout=timeout, timeout=timeout)
    try:
        async with side.use() as runner:
            yield runner
    finally:
        await side.close()
