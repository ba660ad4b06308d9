"""The end, in every state and in every way: at once, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pgnotifybus import Closed, PgNotifyBus, observe, watch
from pgnotifybus.testing import RecordingObserver
from simulation.account import drained
from simulation.server import SimulatedServer, bus_on

Shutdown = asyncio.Event | watch.Receiver[bool]
TURNS = 40

STATES = [
    "new",
    "connecting",
    "in the first LISTEN",
    "pumping",
    "in a LISTEN",
    "in a probe",
    "down",
]
WAYS = ["event", "watch", "closed sender", "dropped sender", "cancel"]


async def reach(state: str, server: SimulatedServer, bus: PgNotifyBus) -> None:
    """Bring a bus that has just been started into a state."""
    match state:
        case "new":
            await asyncio.sleep(0)
            return
        case "connecting":
            server.door = "hangs"
        case "in the first LISTEN":
            server.mute = {"orders"}
        case "down":
            server.door = "refuses"
    await asyncio.sleep(0.1)
    match state:
        case "in a LISTEN":
            server.mute = {"room"}
        case "in a probe":
            server.session.cut()
            await asyncio.sleep(6)
    await asyncio.sleep(0.1)


@asynccontextmanager
async def nothing_left(server: SimulatedServer, bus: PgNotifyBus) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    receivers = [bus.subscribe("orders")]
    yield
    assert asyncio.all_tasks() <= before
    assert not server.open_links()
    assert bus.health().state == "stopped"
    for receiver in receivers:
        assert receiver is not None
        drained(receiver)
    with pytest.raises(Closed):
        await bus.subscribe_reconnects().changed()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", STATES)
async def test_run_ends_at_once(state: str, way: str) -> None:
    """Trap 20: the seed hung while it backed off, and spun when the handle was dropped."""
    server = SimulatedServer()
    bus = bus_on(server, ["orders"])
    event = asyncio.Event()
    sender, receiver = watch.channel(False)
    senders = [sender]
    del sender
    by_event = way in ("event", "cancel")
    async with nothing_left(server, bus):
        task = asyncio.create_task(bus.run(event if by_event else receiver))
        await reach(state, server, bus)
        waiting = None
        if state == "in a LISTEN":
            waiting = asyncio.create_task(bus.listen("room"))
            await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        match way:
            case "event":
                event.set()
            case "watch":
                senders[0].send(True)
            case "closed sender":
                senders[0].close()
            case "dropped sender":
                senders.clear()
            case "cancel":
                task.cancel()
        await asyncio.wait({task})
        assert asyncio.get_running_loop().time() == began
        assert task.cancelled() == (way == "cancel")
        if waiting is not None:
            with pytest.raises(Closed):
                await waiting


@pytest.mark.parametrize("by_watch", [False, True])
async def test_a_shutdown_that_has_fired_before_ends_the_run_at_once(by_watch: bool) -> None:
    """Trap 20: also true at the start counts."""
    server = SimulatedServer()
    server.door = "hangs"
    bus = bus_on(server, ["orders"])
    event = asyncio.Event()
    event.set()
    sender, receiver = watch.channel(True)
    async with nothing_left(server, bus):
        await bus.run(receiver if by_watch else event)
    assert sender.borrow()


async def test_receivers_drain_what_had_arrived() -> None:
    """Invariant 5."""
    server = SimulatedServer()
    async with bus_on(server, ["orders"]) as bus:
        receiver = bus.subscribe("orders")
        numbers = [str(server.commit("orders")) for _ in range(3)]
        await asyncio.sleep(0.1)
    assert receiver is not None
    assert drained(receiver) == numbers


async def test_a_bus_runs_once() -> None:
    server = SimulatedServer()
    bus = bus_on(server, ["orders"])
    async with bus:
        with pytest.raises(RuntimeError, match="runs once"):
            await bus.run(asyncio.Event())
        with pytest.raises(RuntimeError, match="runs once"):
            await bus.__aenter__()
        assert bus.health().state == "live"
    with pytest.raises(RuntimeError, match="runs once"):
        await bus.run(asyncio.Event())


@pytest.mark.parametrize("close_seconds", [0.0, 0.5])
@pytest.mark.parametrize("latency", [0.0, 0.01])
async def test_entering_that_is_cancelled_at_any_moment_leaves_nothing(
    latency: float, close_seconds: float
) -> None:
    """Also in the very turn in which the link has come up."""
    entered = 0
    for moment in range(TURNS):
        server = SimulatedServer(latency=latency)
        server.close_seconds = close_seconds
        bus = bus_on(server, ["orders"])
        before = asyncio.all_tasks()
        task = asyncio.create_task(bus.__aenter__())
        for _ in range(moment):
            await asyncio.sleep(0)
        if task.done():
            entered += 1
            await bus.__aexit__(None, None, None)
            continue
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert asyncio.all_tasks() <= before
        assert not server.open_links()
    assert (entered > 0) == (latency == 0)


async def test_a_second_cancel_while_the_bus_ends_leaves_nothing() -> None:
    """A TaskGroup cancels, and then the timeout around it does."""
    server = SimulatedServer()
    server.close_seconds = 0.5
    bus = bus_on(server, ["orders"])
    async with nothing_left(server, bus):
        task = asyncio.create_task(bus.run(asyncio.Event()))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


async def test_leaving_that_is_cancelled_leaves_nothing() -> None:
    """A timeout around `async with` fires while the link says goodbye."""
    server = SimulatedServer()
    server.close_seconds = 0.5
    bus = bus_on(server, ["orders"])

    async def use() -> None:
        async with asyncio.timeout(0.2), bus:
            await asyncio.sleep(0.1)

    async with nothing_left(server, bus):
        with pytest.raises(TimeoutError):
            await use()


async def test_cancelled_while_a_lost_link_is_closed() -> None:
    server = SimulatedServer()
    server.close_seconds = 0.5
    bus = bus_on(server, ["orders"])
    async with nothing_left(server, bus):
        task = asyncio.create_task(bus.run(asyncio.Event()))
        await asyncio.sleep(1)
        server.session.listening.clear()  # the next probe gives the link up
        await asyncio.sleep(4.3)
        assert bus.health().generation == 1
        task.cancel()
        await asyncio.wait({task})


def test_a_shutdown_of_another_loop_is_an_error_and_no_shutdown() -> None:
    """It could never fire: returning as if it had would look like a clean end."""

    async def bind() -> asyncio.Event:
        event = asyncio.Event()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(event.wait(), 0.001)
        return event

    foreign = asyncio.run(bind())

    async def main() -> None:
        bus = bus_on(SimulatedServer(), ["orders"])
        with pytest.raises(RuntimeError, match="different event loop"):
            await bus.run(foreign)
        assert bus.health().state == "stopped"

    asyncio.run(main())


async def test_what_else_could_be_the_shutdown_is_refused_before_anything_runs() -> None:
    bus = bus_on(SimulatedServer(), ["orders"])
    with pytest.raises(TypeError, match="shutdown must be"):
        await bus.run(object())  # type: ignore[arg-type]
    async with bus:
        pass


async def test_the_end_is_told_to_the_observer_last() -> None:
    recorder = RecordingObserver()
    async with bus_on(SimulatedServer(), ["orders"], recorder):
        pass
    states = [event.new for event in recorder.of(observe.StateChanged)]
    assert states == ["connecting", "live", "stopped"]
    others = [type(event) for event in recorder.events if type(event) is not observe.StateChanged]
    assert others == [observe.LinkUp, observe.Stopped]
    assert type(recorder.events[-1]) is observe.Stopped


async def test_no_error_is_left_unread() -> None:
    """Trap 14: the loop would log "exception was never retrieved" some time later."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    for moment in range(TURNS):
        server = SimulatedServer(latency=0)
        bus = bus_on(server, ["orders"])
        task = asyncio.create_task(bus.run(asyncio.Event()))
        await asyncio.sleep(0.1)
        server.refused = {"room"}
        waiting = asyncio.create_task(bus.listen("room"))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        waiting.cancel()
        await asyncio.wait({task, waiting})
        if not waiting.cancelled():
            waiting.exception()
        del task, waiting, bus, server
    gc.collect()
    assert not complaints
