"""Killing the link of a bus, and waiting until it has another. Layer: testing."""

from __future__ import annotations

import asyncio
from typing import Final

from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.database.sidelink import one_connection
from pgnotifybus.errors import Closed, LinkError
from pgnotifybus.links.base import ServerError

KILL: Final = "SELECT pg_catalog.pg_terminate_backend(CAST(CAST($1 AS text) AS int))::text"


async def kill_link(bus: PgNotifyBus, *, timeout: float = 20.0) -> int:
    """Terminate the backend of a bus's link; return once the bus has noticed and is live again.

    Over another connection of the same source, with `pg_terminate_backend`: the role of the bus may
    do that to its own. What commits meanwhile is missed, and every channel has a `Gap` in its
    place.

    Args:
        bus: A bus that is running; an in-memory one too.
        timeout: The seconds that all of it may take.

    Returns:
        The generation of the new link.

    Raises:
        TimeoutError: If it takes longer.
        Closed: If the bus ends meanwhile.
        RuntimeError: If the bus has not been started.
        LinkError, FatalLinkError: If there is no other connection, or the server refuses.

    Cancel safety: the link may have been killed or not; nothing is left behind.
    """
    state = bus.health().state
    if state == "new":
        raise RuntimeError("the bus is not running: enter it with `async with`, or run it")
    if state == "stopped":
        raise Closed("the bus has ended")
    try:
        async with asyncio.timeout(timeout):
            await bus.wait_until("live", "lagging")
            generations = bus.subscribe_reconnects()
            before = generations.borrow()
            await _terminate(bus, timeout)
            return await generations.wait_for(lambda generation: generation > before)
    except TimeoutError:
        now = bus.health()
        raise TimeoutError(
            f"the bus is {now.state} and has no new link after {timeout:g} s: {now.cause}"
        ) from None


async def _terminate(bus: PgNotifyBus, timeout: float) -> None:
    pid = bus._supervisor.status.pid
    async with one_connection(bus._connector, part="kill_link", timeout=timeout) as runner:
        try:
            # False if it has gone already, by itself: there will be a new one all the same.
            await runner.fetch(KILL, str(pid))
        except ServerError as error:
            raise LinkError(f"the server refuses to terminate the link: {error}") from error
