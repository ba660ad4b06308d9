"""The fault proxy does not care what it forwards, nor which loop it runs in."""

from __future__ import annotations

import pytest

from pgnotifybus import PgNotifyBus
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import FaultProxy
from support.tls import tls_in_front_of


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_bus_through_the_proxy_and_tls(pg18: EmbeddedServer, driver: Driver) -> None:
    async with tls_in_front_of(pg18.dsn) as tls, FaultProxy.in_front_of(tls.dsn) as proxy:
        assert proxy.dsn.endswith("?sslmode=require")
        async with PgNotifyBus(proxy.dsn, ["a"], driver=driver, backoff_initial=0.01) as bus:
            receiver = bus.subscribe("a")
            assert receiver is not None
            for generation, fault in enumerate((proxy.reset, proxy.cut, proxy.half_close), 2):
                await fault()
                await bus.subscribe_reconnects().wait_for(generation.__eq__)
                await bus.notify("a", "heard")
                assert await receiver.recv() == "heard"
            assert proxy.forwarded["down"] > 0
