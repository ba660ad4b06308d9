"""Sending notifications. Layer: publish."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from pgnotifybus.core.names import check_channel, check_payload
from pgnotifybus.errors import Closed, ConnectError, LinkError, LinkLost
from pgnotifybus.links.base import Connector, Outlet, ServerError

_CLOSE_SECONDS: Final = 2.0


class Publisher:
    """Sends one notification at a time, not over the listener's connection.

    A commit that waits for the disk, or for NOTIFY's lock, must not delay a LISTEN or a probe. The
    connection is made at the first use and kept; one of an asyncpg pool is borrowed each time.
    """

    def __init__(self, connector: Connector, *, connect_timeout: float, timeout: float) -> None:
        self._connector = connector
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._outlet: Outlet | None = None
        self._turn = asyncio.Lock()
        self._patience: asyncio.Timeout | None = None
        self._closed = False

    async def notify(self, channel: str, payload: str) -> None:
        """Send one notification; when this returns, the server has committed it.

        Raises:
            InvalidChannel, PayloadTooLarge, ValueError, TypeError: If it cannot be sent as it is.
            ConnectError, FatalLinkError: If there is no connection; nothing was sent.
            Closed: If `close` was called before; nothing was sent.
            LinkLost: If the connection was lost while sending: whether it was sent is not known.
            LinkError: If the server refused, for instance because its notification queue is full;
                nothing was sent.

        Cancel safety: a notification that is being sent may be sent or not; none is sent twice.
        """
        check_channel(channel)
        check_payload(payload)
        async with self._turn:
            outlet = await self._ready()
            sent = False
            try:
                async with self._patient(outlet.borrow_seconds + self._timeout):
                    await outlet.notify(channel, payload)
                sent = True
            except TimeoutError:
                silent = f"the server has not answered for {self._timeout:g} s"
                raise LinkLost(
                    f"{'the bus has ended' if self._closed else silent}: whether the notification "
                    "was sent is not known"
                ) from None
            except ServerError as error:
                sent = True  # the outlet is as good as before
                raise LinkError(f"the server refused the notification: {error}") from error
            except LinkLost as error:
                raise LinkLost(
                    f"{error}: whether the notification was sent is not known"
                ) from error
            finally:
                if not sent:
                    await self._drop()

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
                    self._outlet = await self._connector.outlet(self._connect_timeout)
            except TimeoutError:
                if self._closed:
                    raise Closed("the bus has ended: nothing was sent") from None
                raise ConnectError(
                    f"{self._connector.describe()} did not answer in time: nothing was sent"
                ) from None
        return self._outlet

    def _patient(self, seconds: float) -> asyncio.Timeout:
        """A timeout that `close` can bring forward."""
        self._patience = asyncio.timeout(seconds)
        return self._patience

    async def _drop(self) -> None:
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.abort()
            # A pool that gets its connection back may raise anything; it is gone either way.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await outlet.close()
