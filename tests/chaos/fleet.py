"""A fleet that loses its server in one moment: when each of it is back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass

from pgnotifybus import PgNotifyBus, observe
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver


@dataclass(frozen=True)
class Return:
    """How a fleet has come back."""

    seconds: list[float]
    """From when the server was up again until each bus was live, in order."""
    knocked: list[float]
    """From then until each began the attempt that succeeded: what a server gets to see of them."""
    attempts: int
    """How often they have tried to connect."""

    def busiest(self, width: float) -> int:
        """How many knocked within so many seconds, at the most, counted from a multiple."""
        return max(Counter(each // width for each in self.knocked).values())


async def fleet(server: EmbeddedServer, driver: Driver, buses: int, away: float) -> Return:
    """Have so many buses lose a server that is away for so many seconds."""
    up: list[float] = []
    knocked: list[float] = []
    attempts = 0
    all_of_it = asyncio.Event()

    def observer(event: observe.Event) -> None:
        nonlocal attempts
        attempts += isinstance(event, observe.LinkUp | observe.ConnectFailed)
        if isinstance(event, observe.LinkUp) and event.generation == 2:
            up.append(time.monotonic())
            knocked.append(up[-1] - event.seconds)
            if len(up) == buses:
                all_of_it.set()

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(buses):
            await stack.enter_async_context(
                PgNotifyBus(server.dsn, ["a"], driver=driver, observer=observer)
            )
        attempts = 0
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(server.start)
        began = time.monotonic()
        async with asyncio.timeout(90):
            await all_of_it.wait()
    return Return(
        sorted(each - began for each in up), sorted(each - began for each in knocked), attempts
    )
