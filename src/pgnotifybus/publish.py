"""Sending notifications. Layer: publish."""

from __future__ import annotations

import asyncio

from pgnotifybus.core.names import check_channel, check_payload
from pgnotifybus.errors import LinkError, LinkLost
from pgnotifybus.links.base import Link, ServerError
from pgnotifybus.links.sources import Connector


class Publisher:
    """Sends one notification at a time over a connection of its own.

    Not the listener's: a commit that waits for the disk, or for NOTIFY's lock, must not delay a
    LISTEN or a probe. The connection is made at the first use and kept.
    """

    def __init__(self, connector: Connector, *, connect_timeout: float, timeout: float) -> None:
        self._connector = connector
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._link: Link | None = None
        self._turn = asyncio.Lock()

    async def notify(self, channel: str, payload: str) -> None:
        """Send one notification; when this returns, the server has committed it.

        Raises:
            InvalidChannel, PayloadTooLarge, ValueError, TypeError: If it cannot be sent as it is.
            ConnectError, FatalLinkError: If there is no connection; nothing was sent.
            LinkLost: If the connection was lost while sending: whether it was sent is not known.
            LinkError: If the server refused, for instance because its notification queue is full;
                nothing was sent.

        Cancel safety: a notification that is being sent may be sent or not; none is sent twice.
        """
        check_channel(channel)
        check_payload(payload)
        async with self._turn:
            link = await self._ready()
            sent = False
            try:
                async with asyncio.timeout(self._timeout):
                    await link.notify(channel, payload)
                sent = True
            except TimeoutError:
                raise LinkLost(
                    f"the server has not answered for {self._timeout:g} s: whether the "
                    "notification was sent is not known"
                ) from None
            except ServerError as error:
                sent = True  # the link is as good as before
                raise LinkError(f"the server refused the notification: {error}") from error
            except LinkLost as error:
                raise LinkLost(
                    f"{error}: whether the notification was sent is not known"
                ) from error
            finally:
                if not sent:
                    await self._drop()

    async def close(self) -> None:
        """Close the connection, if there is one. Twice is harmless."""
        await self._drop()

    async def _ready(self) -> Link:
        # A connection that was lost while nothing was being sent costs nothing but a new one.
        if self._link is not None and self._link.lost.done():
            await self._drop()
        if self._link is None:
            self._link = await self._connector.connect("publisher", self._connect_timeout)
        return self._link

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abort()
            await link.close()
