"""Channels at run time: returned means acknowledged, and whatever leaves, leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from pgnotifybus import Closed, Notification, PgNotifyBus, observe
from pgnotifybus.channels import Channels
from pgnotifybus.errors import ListenRejected
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import RecordingObserver
from simulation.server import SimulatedServer, bus_on

TURNS = 25  # of the loop, in which a LISTEN without latency is long done


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_listen_returns_once_the_server_listens_and_what_commits_then_arrives() -> None:
    """Trap 4: not before the LISTEN has committed, or the snapshot read next would miss some."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        task = asyncio.create_task(bus.listen("room"))
        await asyncio.sleep(0.015)  # committed, and the answer is under way
        assert "room" in server.session.listening
        assert not task.done()
        early = server.commit("room")
        receiver = await task
        number = server.commit("room")
        got = [await receiver.recv()]
        if got == [str(early)]:  # it may come, as it committed after the LISTEN
            got = [await receiver.recv()]
        assert got == [str(number)]


async def test_a_late_joiner_waits_for_the_first_listen_of_its_channel() -> None:
    """Trap 4: another task asked first, but the server has not yet answered."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        first = asyncio.create_task(bus.listen("room"))
        await asyncio.sleep(0.005)
        second = asyncio.create_task(bus.listen("room"))
        await asyncio.sleep(0.01)
        assert not second.done()
        await asyncio.gather(first, second)
        assert server.session.statements.count("LISTEN room") == 1


@pytest.mark.parametrize("latency", [0.0, 0.01])
async def test_a_listen_cancelled_at_any_moment_leaves_nothing(latency: float) -> None:
    """Trap 14: before, while and after the LISTEN is under way; the count is rolled back."""
    server = SimulatedServer(latency=latency)
    async with bus_on(server, ["orders"]) as bus:
        for moment in range(TURNS):
            task = asyncio.create_task(bus.listen("room"))
            await turns(moment)
            task.cancel()
            await asyncio.wait({task})
            del task
            await asyncio.sleep(0.1)
            assert set(server.session.listening) == {"orders"}
            assert set(bus.statistics().channels) == {"orders"}


@pytest.mark.parametrize("moment", range(TURNS))
async def test_the_last_receiver_leaves_while_a_new_one_comes(moment: int) -> None:
    """Trap 14: the UNLISTEN must not land behind the LISTEN."""
    server = SimulatedServer(latency=0)
    async with bus_on(server, []) as bus:
        (await bus.listen("room")).close()
        await turns(moment)
        receiver = await bus.listen("room")
        number = server.commit("room")
        assert await receiver.recv() == str(number)
        await asyncio.sleep(1)
        assert set(server.session.listening) == {"room"}


async def test_a_channel_that_is_being_left_is_not_there_for_who_comes_now() -> None:
    """Trap 14: nobody ever received on it, as the one who asked was cancelled."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        task = asyncio.create_task(bus.listen("room"))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.sleep(0.02)
        # With nothing to listen to at the start, the server was asked whether it is a standby.
        assert server.session.statements == ["INSPECT", "LISTEN room", "UNLISTEN room"]
        assert "room" in server.session.listening, "the UNLISTEN is on its way"
        receiver = await bus.listen("room")
        number = server.commit("room")
        async with asyncio.timeout(1):
            assert await receiver.recv() == str(number)


async def test_what_is_in_flight_after_unlisten_does_not_reach_the_next_subscriber() -> None:
    """Trap 16: it was not for them, and they may have read the database already."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        old = await bus.listen("room")
        server.latency = 0.1
        old.close()
        await asyncio.sleep(0.05)  # the UNLISTEN is on its way to the server
        server.commit("room")
        receiver = await bus.listen("room")
        number = server.commit("room")
        assert await receiver.recv() == str(number)
        assert bus.statistics().unrouted == 1


async def test_what_is_in_flight_does_not_reach_who_comes_before_the_unlisten_is_sent() -> None:
    """Trap 16: the last one leaves and the next one comes in one turn."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        old = await bus.listen("room")
        server.commit("room")
        old.close()
        receiver = await bus.listen("room")
        number = server.commit("room")
        assert await receiver.recv() == str(number)
        await asyncio.sleep(1)
        assert set(server.session.listening) == {"room"}


async def test_without_a_link_listen_waits_also_for_a_channel_that_was_listened_to() -> None:
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        server.session.kill()
        await asyncio.sleep(0.1)
        task = asyncio.create_task(bus.listen("orders"))
        await asyncio.sleep(0.1)
        assert not task.done()
        await task
        assert bus.health().generation == 2


async def test_a_refused_channel_tells_who_waits_for_it_and_nobody_else() -> None:
    """Trap 14: a LISTEN that fails rolls the count back, and the link is as good as before."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    server.refused = {"bad"}
    async with bus_on(server, ["orders"], recorder) as bus:
        names = ["a", "bad", "b", "bad"]
        outcomes = await asyncio.gather(*map(bus.listen, names), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            Subscription,
            ListenRejected,
            Subscription,
            ListenRejected,
        ]
        assert "'bad'" in str(outcomes[1])
        await asyncio.sleep(1)
        assert set(server.session.listening) == {"orders", "a", "b"}
        assert set(bus.statistics().channels) == {"orders", "a", "b"}
        assert len(recorder.of(observe.ListenRefused)) == 1
        assert bus.health().generation == 1
        server.refused.clear()
        await bus.listen("bad")


async def test_a_suspect_that_nobody_wants_any_more_does_not_hold_up_the_others() -> None:
    """Of a refused batch the first to be asked for again may be gone; no probe comes to wake us."""
    server = SimulatedServer()
    server.refused = {"bad"}
    async with bus_on(server, [], probe_interval=None) as bus:
        gone = asyncio.create_task(bus.listen("gone"))
        bad = asyncio.create_task(bus.listen("bad"))
        good = asyncio.create_task(bus.listen("good"))
        await asyncio.sleep(0.01)  # the refusal is on its way back
        gone.cancel()
        async with asyncio.timeout(1):
            await good
        with pytest.raises(ListenRejected):
            await bad


async def test_a_refused_channel_does_not_keep_the_link_down() -> None:
    """Somebody waits for it when the link comes up: that one is told, the others listen."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        server.session.kill()
        await asyncio.sleep(0.1)
        server.refused = {"bad"}
        bad = asyncio.create_task(bus.listen("bad"))
        good = asyncio.create_task(bus.listen("good"))
        async with asyncio.timeout(5):
            with pytest.raises(ListenRejected, match="'bad'"):
                await bad
            await good
        assert set(server.session.listening) == {"orders", "good"}


async def test_a_link_lost_while_listening_is_no_failure_of_listen() -> None:
    """Trap 14: the next link brings it."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        task = asyncio.create_task(bus.listen("room"))
        await asyncio.sleep(0.005)
        server.session.kill(politely=False)
        receiver = await task
        number = server.commit("room")
        item = await anext(receiver.events())
        assert isinstance(item, Notification), "a gap from before it subscribed"
        assert (item.payload, item.generation) == (str(number), 2)
        assert set(server.session.listening) == {"orders", "room"}


async def test_a_new_channel_during_an_outage_does_not_replace_the_old_ones() -> None:
    """Trap 3: a drop, then a subscribe during the backoff."""
    server = SimulatedServer()
    async with bus_on(server, ["orders", "jobs"]) as bus:
        room = await bus.listen("room")
        server.session.kill()
        await asyncio.sleep(0.1)
        assert bus.health().state == "down"
        await bus.listen("hall")
        assert set(server.session.listening) == {"orders", "jobs", "room", "hall"}
        assert server.session.statements == [
            "LISTEN orders; LISTEN jobs; LISTEN room; LISTEN hall",
            "INSPECT",
        ]
        del room


async def test_a_collected_receiver_leaves_its_channel() -> None:
    """Trap 14: also one that is part of a cycle, which only the collector finds."""
    server = SimulatedServer()
    async with bus_on(server, []) as bus:
        cycle: list[object] = [await bus.listen("room")]
        cycle.append(cycle)
        del cycle
        gc.collect()
        await asyncio.sleep(0.1)
        assert server.session.listening == {}
        assert bus.statistics().channels == {}


def test_a_receiver_collected_in_another_thread_rings_the_supervisors_bell() -> None:
    """Trap 14: the collector runs in any thread. On a real loop: async-solipsism has one thread."""

    async def main() -> None:
        channels = Channels([], 1, lambda *_: None)
        bell = channels.bell()
        task = asyncio.create_task(channels.listen("room", Subscription))
        await asyncio.sleep(0)
        channels.begin()
        channels.acknowledge()
        held = [await task]
        del task
        bell = channels.bell()
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        async with asyncio.timeout(5):
            await bell
        assert channels.begin().unlisten == ("room",)

    asyncio.run(main())


async def test_ten_thousand_channels_at_once_are_few_statements() -> None:
    """Trap 36: to come, to come again, and to leave."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        names = [f"room:{number}" for number in range(10_000)]
        receivers = await asyncio.gather(*map(bus.listen, names))
        assert len(server.session.statements) <= 4
        server.session.kill()
        await asyncio.sleep(1)
        assert len(server.session.statements) == 2  # it is asked whether that is so
        assert len(server.session.listening) == 10_001
        receivers.clear()
        await asyncio.sleep(1)
        assert len(server.session.statements) == 3
        assert set(server.session.listening) == {"orders"}


async def test_who_waits_when_the_bus_ends_gets_closed() -> None:
    server = SimulatedServer()
    server.mute = {"room"}
    async with bus_on(server, []) as bus:
        task = asyncio.create_task(bus.listen("room"))
        await asyncio.sleep(0.005)
    with pytest.raises(Closed):
        await task
    with pytest.raises(Closed):
        await bus.listen("room")


def test_a_listen_abandoned_with_its_loop_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    """Trap 14: the loop is closed under it, as at the end of an interpreter that gave up."""
    loop = asyncio.new_event_loop()
    server = SimulatedServer()
    bus: PgNotifyBus = bus_on(server, [])
    tasks = [loop.create_task(bus.run(asyncio.Event()))]
    loop.run_until_complete(turns(20))
    server.mute = {"room"}
    steps = bus.listen("room")

    async def step() -> None:
        steps.send(None)

    loop.run_until_complete(step())
    loop.run_until_complete(turns(3))
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    loop.close()
    steps.close()
    assert not recwarn.list
