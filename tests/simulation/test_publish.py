"""`bus.notify`: one connection of its own, one notification at a time, and an end."""

from __future__ import annotations

import asyncio

import pytest

from pgnotifybus import Closed
from pgnotifybus.errors import ConnectError, LinkError, LinkLost
from simulation.server import SimulatedServer, bus_on


async def test_a_notification_is_committed_when_notify_returns() -> None:
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        receiver = bus.subscribe("orders")
        assert receiver is not None
        await bus.notify("orders", "")
        assert len(server.commits) == 1
        assert await receiver.recv() == "0"
        await asyncio.gather(*(bus.notify("orders") for _ in range(10)))
        assert [link.part for link in server.links] == ["listener", "notifier"]
    assert not server.open_links()


async def test_a_cancelled_notify_holds_up_nobody() -> None:
    """The lock is free again, and what was cancelled costs a connection and no more."""
    server = SimulatedServer()
    server.mute = {"jobs"}
    async with bus_on(server, []) as bus:
        stuck = asyncio.create_task(bus.notify("jobs"))
        waiting = asyncio.create_task(bus.notify("jobs"))
        await asyncio.sleep(0.1)
        waiting.cancel()
        stuck.cancel()
        await bus.notify("orders")
        assert [commit.channel for commit in server.commits] == ["orders"]
        assert len(server.open_links()) == 2


async def test_a_server_that_does_not_answer_ends_the_wait() -> None:
    server = SimulatedServer()
    server.mute = {"jobs"}
    async with bus_on(server, []) as bus:
        async with asyncio.timeout(11):
            with pytest.raises(LinkLost, match="not known"):
                await bus.notify("jobs")
        await bus.notify("orders")


async def test_a_connect_that_hangs_ends_as_a_connect_error() -> None:
    """House rule: every wait on the network has a deadline, also of a user's own factory."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        server.door = "hangs"
        async with asyncio.timeout(31):
            with pytest.raises(ConnectError, match="in time"):
                await bus.notify("orders")


async def test_a_connection_lost_between_two_notifications_is_replaced() -> None:
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        await bus.notify("orders")
        server.session.kill()
        await asyncio.sleep(0.1)
        await bus.notify("orders")
        assert len(server.commits) == 2


@pytest.mark.parametrize("door", ["open", "hangs"])
async def test_the_end_of_the_bus_ends_a_notify_that_connects(door: str) -> None:
    """Invariant 5: it must not open a connection that nobody will close."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        server.connect_seconds = 3
        if door == "hangs":
            server.door = "hangs"
        tasks = [asyncio.create_task(bus.notify("orders")) for _ in range(3)]
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began <= 1
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Closed | LinkError) for outcome in outcomes), outcomes
    await asyncio.sleep(10)
    assert not server.open_links()
    assert not server.commits


async def test_the_end_of_the_bus_ends_a_notify_that_is_under_way() -> None:
    server = SimulatedServer()
    server.mute = {"orders"}
    async with bus_on(server, []) as bus:
        task = asyncio.create_task(bus.notify("orders"))
        await asyncio.sleep(1)
    with pytest.raises(LinkLost, match="not known"):
        await task
    assert not server.open_links()
