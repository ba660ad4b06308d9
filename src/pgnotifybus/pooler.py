"""Whether something between here and the server swallows notifications. Layer: over links.

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
from typing import Any
from uuid import uuid4

from pgnotifybus.errors import BehindPooler
from pgnotifybus.links.base import NOTIFY, Connector, Link

_CLOSE_SECONDS = 2.0


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
    name = f"pgnotifybus:probe:{uuid4().hex}"
    listener = await connector.connect("delivery probe", timeout)
    try:
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def note(*_: object) -> None:
            if not arrived.done():
                arrived.set_result(None)

        await listener.change((name,), ())
        listener.start(note)
        await link.fetch(NOTIFY, name, "")
        await asyncio.wait(
            {arrived, listener.lost}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if listener.lost.done():
            raise listener.lost.result()
        if not arrived.done():
            raise BehindPooler(
                f"{connector.describe()} is a pooler that takes LISTEN and delivers nothing"
            )
        await listener.change((), (name,))
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await listener.close()
        listener.abort()
