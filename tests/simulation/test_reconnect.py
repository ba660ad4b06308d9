"""Every way to lose a link: the generation rises once, and the gap stands where it should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from pgnotifybus import Gap, Notification, observe
from pgnotifybus.errors import AuthenticationFailed, ConnectError, ListenRejected, ProbeTimeout
from pgnotifybus.subscription import Subscription
from pgnotifybus.testing import RecordingObserver
from simulation.server import SimulatedServer, bus_on

Fault = Callable[[SimulatedServer], object]


def killed(server: SimulatedServer) -> None:
    server.session.kill()


def reset(server: SimulatedServer) -> None:
    server.session.kill(politely=False)


def swallowed(server: SimulatedServer) -> None:
    server.session.cut()


def swapped(server: SimulatedServer) -> None:
    """What a transaction pooler does: another session answers, which listens to nothing."""
    server.session.listening.clear()


def demoted(server: SimulatedServer) -> None:
    server.in_recovery = True
    asyncio.get_running_loop().call_later(12, setattr, server, "in_recovery", False)


def moved(server: SimulatedServer) -> None:
    """As well, but the other session had listened to the same channels before."""
    server.session.backend += 1


FAULTS = [killed, reset, swallowed, swapped, moved, demoted]


def describe(items: list[Notification | Gap]) -> list[str | int]:
    """Payloads as they are, gaps as the generation that they announce."""
    return [item.generation if isinstance(item, Gap) else item.payload for item in items]


async def read(receiver: Subscription | None, count: int) -> list[str | int]:
    assert receiver is not None
    events = receiver.events()
    return describe([await anext(events) for _ in range(count)])


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_loss_is_one_generation_and_one_gap_in_every_ring(fault: Fault) -> None:
    """Traps 1, 2, 5, 10, 11: behind the last old message, in front of the first new one."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, ["orders", "jobs"], recorder) as bus:
        receivers = [bus.subscribe("orders"), bus.subscribe("jobs"), await bus.listen("room")]
        seen = bus.subscribe_reconnects()
        old = [str(server.commit(channel)) for channel in ("orders", "jobs", "room")]
        await asyncio.sleep(0.02)
        fault(server)
        await recorder.wait_for(observe.LinkUp, 2, timeout=60)
        new = [str(server.commit(channel)) for channel in ("orders", "jobs", "room")]
        for index, receiver in enumerate(receivers):
            assert await read(receiver, 3) == [old[index], 2, new[index]]
        assert (seen.has_changed(), seen.borrow()) == (True, 2)
        await asyncio.sleep(20)
        assert bus.health().generation == 2


async def test_what_comes_with_the_answer_to_listen_stands_behind_the_gap() -> None:
    """Trap 2: it is in the same packet, before the bus could have said that there is a new link."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        receiver = bus.subscribe("orders")
        server.session.kill()
        server.connect_seconds = 1
        await asyncio.sleep(0.02)
        assert bus.health().state == "down"
        due = server.attempts  # the next attempt tells when its LISTEN will be answered
        async with asyncio.timeout(1):
            while len(due) < 2:  # noqa: ASYNC110 - the server is no part of what is tested
                await asyncio.sleep(0.001)
        await asyncio.sleep(due[1] + 1.015 - asyncio.get_running_loop().time())
        assert "orders" in server.session.listening, "committed, but not yet acknowledged"
        number = str(server.commit("orders"))
        server.session.merge_packets()
        assert bus.health().generation == 1
        assert await read(receiver, 2) == [2, number]


async def test_a_relisten_that_fails_is_no_generation() -> None:
    """Trap 1: only the attempt that got everything counts, and it counts once."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, ["orders"], recorder) as bus:
        receiver = bus.subscribe("orders")
        server.refused = {"orders"}
        server.session.kill()
        await recorder.wait_for(observe.ConnectFailed, 3)
        assert all(isinstance(e.error, ListenRejected) for e in recorder.of(observe.ConnectFailed))
        assert bus.health().generation == 1
        server.refused.clear()
        await recorder.wait_for(observe.LinkUp, 2)
        assert await read(receiver, 1) == [2]
        assert bus.health().generation == 2


async def test_a_receiver_that_lagged_over_a_gap_is_told_both() -> None:
    """Trap 13: the count stays exact, and the gap is not lost with the messages around it."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, ["orders"], recorder, capacity=2) as bus:
        receiver = bus.subscribe("orders")
        assert receiver is not None
        for _ in range(5):
            server.commit("orders")
        await asyncio.sleep(0.1)
        server.session.kill()
        await recorder.wait_for(observe.LinkUp, 2)
        last = [str(server.commit("orders")) for _ in range(3)][-2:]
        await asyncio.sleep(0.1)
        events = receiver.events()
        items = [await anext(events) for _ in range(4)]
        gaps = [(i.reason, i.skipped) for i in items if isinstance(i, Gap)]
        assert gaps == [("lagged", 6), ("reconnected", None)]
        assert [i.payload for i in items if isinstance(i, Notification)] == last


# -- when to try again ----------------------------------------------------------------------------


async def test_the_delays_double_and_are_kept() -> None:
    """Trap 9: with jitter downwards, up to 30 s; each attempt is as late as was announced."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    times: list[float] = []

    def observer(event: observe.Event) -> None:
        recorder(event)
        if isinstance(event, observe.ConnectFailed):
            times.append(asyncio.get_running_loop().time())

    bus = bus_on(server, [], observer)
    server.door = "refuses"
    stop = asyncio.Event()
    task = asyncio.create_task(bus.run(stop))
    await recorder.wait_for(observe.ConnectFailed, 10, timeout=200)
    stop.set()
    await task
    failures = recorder.of(observe.ConnectFailed)
    nominal = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert all(0.5 * n <= f.retry_in <= n for n, f in zip(nominal, failures, strict=True))
    assert [f.attempt for f in failures] == list(range(1, 11))
    pairs = zip(times, server.attempts[1:], strict=False)  # the last one was not tried again
    for failure, (failed, tried) in zip(failures, pairs, strict=False):
        assert tried - failed == pytest.approx(failure.retry_in, abs=1e-4)


@pytest.mark.parametrize(("lives", "starts_over"), [(4.9, False), (5.1, True)])
async def test_only_a_link_that_proved_healthy_resets_the_delays(
    lives: float, starts_over: bool
) -> None:
    """Trap 9: a server that drops who it let in would be asked twice a second for ever."""
    server = SimulatedServer(latency=0)
    recorder = RecordingObserver()
    async with bus_on(server, [], recorder):
        for count in range(1, 5):
            await recorder.wait_for(observe.LinkUp, count)
            await asyncio.sleep(lives)
            server.session.kill()
        delays = [event.retry_in for event in recorder.of(observe.LinkDown)][:3]
        if starts_over:
            assert all(0.25 <= delay <= 0.5 for delay in delays)
        else:
            assert all(a < b for a, b in pairwise(delays))


async def test_a_standby_is_tried_again_until_it_is_promoted() -> None:
    """Traps 9 and 10: it refuses LISTEN, and waiting helps; the attempts come ever more slowly."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    server.in_recovery = True
    bus = bus_on(server, ["orders"], recorder)
    stop = asyncio.Event()
    task = asyncio.create_task(bus.run(stop))
    await recorder.wait_for(observe.ConnectFailed, 4)
    assert not server.open_links()
    assert all("standby" in str(event.error) for event in recorder.of(observe.ConnectFailed))
    server.in_recovery = False
    await recorder.wait_for(observe.LinkUp)
    stop.set()
    await task


async def test_the_door_is_strict_and_the_house_is_patient() -> None:
    """`async with` raises what waiting will not help; later the same error is tried again."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    server.failure = AuthenticationFailed("wrong password")
    with pytest.raises(AuthenticationFailed):
        await bus_on(server, []).__aenter__()
    server.failure = None
    async with bus_on(server, [], recorder):
        server.failure = AuthenticationFailed("wrong password")
        server.session.kill()
        await recorder.wait_for(observe.ConnectFailed, 2)
        server.failure = None
        await recorder.wait_for(observe.LinkUp, 2)


async def test_the_door_waits_for_a_server_that_is_starting_but_not_for_ever() -> None:
    server = SimulatedServer()
    server.door = "full"
    began = asyncio.get_running_loop().time()
    with pytest.raises(ConnectError, match="too many"):
        await bus_on(server, []).__aenter__()
    assert 30 <= asyncio.get_running_loop().time() - began <= 60
    asyncio.get_running_loop().call_later(3, setattr, server, "door", "open")
    async with bus_on(server, []) as bus:
        assert bus.health().generation == 1


async def test_a_mistake_in_the_source_ends_the_bus_and_is_told() -> None:
    """A factory that brings something else: no server will mend that."""
    server = SimulatedServer()
    server.failure = TypeError("not a connection")
    with pytest.raises(TypeError, match="not a connection"):
        await bus_on(server, []).__aenter__()
    server.failure = None
    bus = bus_on(server, ["orders"])

    async def use() -> None:
        async with bus:
            receiver = bus.subscribe("orders")
            assert receiver is not None
            server.failure = TypeError("not a connection")
            server.session.kill()
            assert [payload async for payload in receiver] == []

    with pytest.raises(TypeError, match="not a connection"):
        await use()
    assert bus.health().state == "stopped"


# -- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0.5, 4.995, 5.005])
async def test_a_black_hole_is_noticed_within_nine_seconds(before: float) -> None:
    """Trap 5: idle, just before a probe, and with the probe already under way."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, ["orders"], recorder):
        await asyncio.sleep(before)
        server.session.cut()
        began = asyncio.get_running_loop().time()
        down = await recorder.wait_for(observe.LinkDown)
        assert asyncio.get_running_loop().time() - began <= 9.1
        assert isinstance(down.error, ProbeTimeout)


async def test_a_black_hole_with_a_listen_under_way_is_noticed() -> None:
    """Trap 5: every statement has a deadline of ours, not only the probe."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, [], recorder, probe_interval=None) as bus:
        server.session.cut()
        task = asyncio.create_task(bus.listen("room"))
        await recorder.wait_for(observe.LinkDown, timeout=5)
        await task
        assert bus.health().generation == 2


async def test_an_idle_link_is_probed_after_silence_only() -> None:
    """Trap 35: and never by NOTIFY."""
    server = SimulatedServer(latency=0)
    recorder = RecordingObserver()
    async with bus_on(server, ["orders"], recorder) as bus:
        for _ in range(20):
            await asyncio.sleep(1)
            server.commit("orders")
        assert server.session.statements == ["LISTEN orders", "INSPECT"]  # one when it connects
        await asyncio.sleep(15.5)
        assert server.session.statements == ["LISTEN orders"] + 4 * ["INSPECT"]
        assert len(recorder.of(observe.ProbeAnswered)) == 3
        probed_at = bus.health().last_probe_at
        assert probed_at is not None
        ago = datetime.now(UTC) - probed_at
        assert ago.total_seconds() == pytest.approx(0.5, abs=0.1)


async def test_without_probes_an_idle_bus_says_nothing() -> None:
    """Trap 12: a database that scales to zero may sleep."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"], probe_interval=None):
        await asyncio.sleep(15_000)
        assert server.session.statements == ["LISTEN orders", "INSPECT"]


async def test_a_blocked_loop_does_not_cost_a_good_link() -> None:
    """Trap 8: the answer lies unread in the socket while the loop did something else."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, ["orders"], recorder):
        await recorder.wait_for(observe.ProbeAnswered)
        await asyncio.sleep(5.005 - 0.01)  # the next probe is under way
        loop = asyncio.get_running_loop()
        loop._selector.clock.advance(30)  # type: ignore[attr-defined]  # nobody ran for 30 s
        await recorder.wait_for(observe.ProbeAnswered, 3)
        assert not recorder.of(observe.LinkDown)


async def test_a_link_that_fails_to_close_is_replaced_like_any_other() -> None:
    """What a pool says when it gets a dead connection back must not end the bus."""
    server = SimulatedServer()
    recorder = RecordingObserver()
    async with bus_on(server, ["orders"], recorder):

        async def close() -> None:
            server.links[0].abort()
            raise RuntimeError("the pool does not know this connection")

        server.session.close = close  # type: ignore[method-assign]
        server.session.kill()
        await recorder.wait_for(observe.LinkUp, 2)
