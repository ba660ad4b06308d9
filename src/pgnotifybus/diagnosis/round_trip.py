"""Whether a notification arrives, and how soon. Layer: diagnosis."""

from __future__ import annotations

import asyncio
import statistics
from typing import Final
from uuid import uuid4

from pgnotifybus.errors import LinkLost
from pgnotifybus.links.base import NOTIFY, Connector, Link

_TIMES: Final = 5


async def measure(connector: Connector, link: Link, timeout: float) -> float:
    """The median of a few, from before the statement until it is here, in seconds.

    Args:
        connector: What made the link; it makes another one, which listens.
        link: Where to send.
        timeout: The seconds after which one will not come any more.

    Raises:
        TimeoutError: If one does not come.
        LinkError, FatalLinkError, ServerError: If it cannot be tried.

    Cancel safety: no connection is left behind.
    """
    loop = asyncio.get_running_loop()
    name = f"pgnotifybus:doctor:{uuid4().hex}"
    listener = await connector.connect("doctor", timeout)
    try:
        arrived: asyncio.Queue[str] = asyncio.Queue()

        def note(channel: str, payloads: list[str], pids: list[int]) -> None:
            for payload in payloads:
                arrived.put_nowait(payload)

        await listener.change((name,), ())
        listener.start(note)
        seconds: list[float] = []
        for number in range(_TIMES):
            began = loop.time()
            async with asyncio.timeout(timeout):
                await link.fetch(NOTIFY, name, str(number))
                while await arrived.get() != str(number):
                    pass
            seconds.append(loop.time() - began)
        if listener.lost.done():
            raise LinkLost(str(listener.lost.result()))
        return statistics.median(seconds)
    finally:
        listener.abort()
        await listener.close()
