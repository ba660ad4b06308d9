"""Whether notifications arrive, and how soon; a pooler may swallow them. Layer: over links.

A pooler that lends a session to others between transactions (PgBouncer in transaction mode) takes
LISTEN, and nothing ever arrives. Asking one's own session tells nothing: what it notifies itself
comes with the answer to that very statement, while the pooler still has it linked
(tests/integration/test_pooler.py). So a second session listens, on a name of its own, and the first
one notifies it while it is idle. That takes a transaction id and a little WAL, so it is done only
where the server's process is not the one that was introduced when connecting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

from pgnotifybus.errors import BehindPooler
from pgnotifybus.links.base import NOTIFY, Connector, Link, discard

_SECONDS: Final = 2.0


async def check_delivery(connector: Connector, link: Link, timeout: float) -> None:
    """See that a session which listens is told of what another one notifies.

    Args:
        connector: What has made the link; it makes one more, for a moment.
        link: Where to notify.
        timeout: The seconds after which a notification will not come any more.

    Raises:
        BehindPooler: If it does not come.
        LinkError, FatalLinkError, ServerError: If it could not be tried.

    Cancel safety: no connection is left behind.
    """
    async with echo(connector, link, timeout) as once:
        if await once() is None:
            raise BehindPooler(
                f"{connector.describe()} is a pooler that takes LISTEN and delivers nothing"
            )


@contextlib.asynccontextmanager
async def echo(
    connector: Connector, link: Link, timeout: float
) -> AsyncIterator[Callable[[], Awaitable[float | None]]]:
    """A function that notifies a session of ours, and says how many seconds it took to arrive.

    From before the statement until it is here; None if it does not come. Otherwise as
    `check_delivery`.
    """
    loop = asyncio.get_running_loop()
    name = f"pgnotifybus:probe:{uuid4().hex}"
    listener = await connector.connect("delivery probe", timeout)
    try:
        arrived = asyncio.Event()
        await listener.change((name,), ())
        listener.start(lambda *_: arrived.set())

        async def once() -> float | None:
            arrived.clear()
            began = loop.time()
            await link.fetch(NOTIFY, name, "")
            waiting = asyncio.ensure_future(arrived.wait())
            ends: set[asyncio.Future[Any]] = {waiting, listener.lost}
            try:
                await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if listener.lost.done():
                raise listener.lost.result()
            return loop.time() - began if arrived.is_set() else None

        yield once
    finally:
        await hand_back(listener)
        await discard(listener)


async def hand_back(link: Link) -> None:
    """Leave nothing of ours in a session that may only be lent: others get it after us."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_SECONDS):
            await link.execute("UNLISTEN *; RESET application_name")
