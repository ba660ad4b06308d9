"""Ten thousand channels, and ten thousand receivers: each is told, and each goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chaos.world import CHANNELS, World
from pgnotifybus import Gap, Notification
from pgnotifybus.subscription import Subscription

_LAST = "0"  # no number that the writer sends


class Crowd:
    """Receivers beside those that are counted exactly."""

    def __init__(self, channels: list[str], receivers: list[Subscription]) -> None:
        self._channels = channels
        self._receivers = receivers

    @classmethod
    async def gather(cls, world: World, channels: int, receivers: int) -> Crowd:
        """Have so many more channels of run time, and so many more receivers of one channel."""
        names = [f"crowd {number}" for number in range(channels)]
        joined = await asyncio.gather(*(world.bus.listen(name) for name in names))
        for _ in range(receivers):
            receiver = world.bus.subscribe(CHANNELS[0])
            assert receiver is not None
            joined.append(receiver)
        return cls([*names, *([CHANNELS[0]] if receivers else [])], joined)

    async def check(self, world: World) -> None:
        """See that each has one gap, and hears on all channels what is sent now."""
        if not self._receivers:
            return
        names = ", ".join(f"('{name}')" for name in self._channels)
        statement = f"SELECT pg_notify(name, '{_LAST}') FROM (VALUES {names}) AS all_of (name)"
        await world.sql(statement, world.dsn)
        async with asyncio.timeout(60):
            for receiver in self._receivers:
                assert await _gaps(receiver.events()) == [2], receiver
        for receiver in self._receivers:
            receiver.close()


async def _gaps(events: AsyncIterator[Notification | Gap]) -> list[int]:
    """The generations of the gaps up to the last message."""
    found: list[int] = []
    async for event in events:
        if isinstance(event, Gap):
            found.append(event.generation)
        elif event.payload == _LAST:
            break
    return found
