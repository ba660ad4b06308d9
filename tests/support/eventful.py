"""A bus to which everything has happened that leaves a number behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from pgnotifybus import Lagged, PgNotifyBus, observe
from pgnotifybus.testing import RecordingObserver
from support.sql import kill_listener


@asynccontextmanager
async def eventful(
    dsn: str, *instruments: Callable[[PgNotifyBus], object]
) -> AsyncIterator[PgNotifyBus]:
    """The bus, live; instrumented before it all happened.

    Of `orders`, with a ring of two, two receivers have been handed 5 messages, and one has missed
    three and has two unread. A channel of run time was left after one message, another is there and
    has had one. The link was lost once, and has been probed since.
    """
    recorder = RecordingObserver()
    async with PgNotifyBus(
        dsn, ["orders", "jobs"], capacity=2, probe_interval=0.02, observer=recorder
    ) as bus:
        for instrument in instruments:
            instrument(bus)
        slow, quick = bus.subscribe("orders"), bus.subscribe("orders")
        assert slow is not None
        assert quick is not None
        room = await bus.listen("room")
        await bus.notify("room", "left")
        await room.recv()
        room.close()
        await recorder.wait_for(observe.ChannelsChanged, where=lambda e: bool(e.unlistened))
        other = await bus.listen("another room")
        await bus.notify("another room", "kept")
        await other.recv()
        for number in range(5):
            await bus.notify("orders", str(number), envelope=bus.envelope(timed=True))
            assert await quick.recv() == str(number)
        with pytest.raises(Lagged):
            slow.try_recv()
        await kill_listener(dsn)
        await recorder.wait_for(observe.LinkUp, 2)
        await recorder.wait_for(observe.ProbeAnswered, where=lambda e: e.generation == 2)
        await bus.wait_until("live", timeout=10)
        yield bus
