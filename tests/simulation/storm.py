"""A bus in a storm: Hypothesis draws the faults, the subscribers and the moments.

Everything that a bus promises is checked after each step, and at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgnotifybus import Closed, observe, watch
from pgnotifybus.errors import ListenRejected
from pgnotifybus.subscription import Subscription
from simulation.account import Account
from simulation.server import Door, SimulatedServer, bus_on
from simulation.virtual import EventLoop

T = TypeVar("T")

CONFIGURED = ("orders", "jobs")
DYNAMIC = ("room:1", "room:2")
CHANNELS = (*CONFIGURED, *DYNAMIC)
FAULTY_DOORS: tuple[Door, ...] = ("refuses", "hangs", "rejects", "full")
MANY = st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=5)
WHICH = st.integers(0, 7)  # not the thing itself: Hypothesis would keep it alive
SOON = st.sampled_from([0.0, 0.005, 0.02, 0.1, 1.0])
NOTICED_WITHIN = 5.0 + 4.0 + 0.1  # probe_interval + probe_timeout + 2 ms for each channel


class Storm(RuleBasedStateMachine):
    """One bus on one server."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop = EventLoop()
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.complaints: list[dict[str, Any]] = []
        self.server = SimulatedServer()
        self.events: list[observe.Event] = []
        self.generations: dict[int, int] = {}
        self.lazy: list[Account] = []
        self.eager: list[tuple[Account, asyncio.Task[None]]] = []
        self.listening: list[tuple[str, asyncio.Task[Subscription]]] = []
        self.finished = False

    @initialize(
        capacity=st.sampled_from([1, 3, 64]),
        stop_by=st.sampled_from(["event", "watch", "closed sender", "dropped sender", "cancel"]),
        close_seconds=st.sampled_from([0.0, 0.3]),
        settles=st.booleans(),
        seconds=SOON,
    )
    def begin(
        self, capacity: int, stop_by: str, close_seconds: float, settles: bool, seconds: float
    ) -> None:
        self.settles = settles
        self.server.close_seconds = close_seconds
        self.bus = bus_on(self.server, CONFIGURED, self.observe, capacity=capacity)
        self.reconnects = self.bus.subscribe_reconnects()
        self.stop: Callable[[], object]
        self.stopped_by_cancel = stop_by == "cancel"
        event = asyncio.Event()
        sender, receiver = watch.channel(False)
        shutdown: asyncio.Event | watch.Receiver[bool] = receiver
        senders = [sender]  # nobody else may hold it, or it would not be dropped
        del sender
        match stop_by:
            case "watch":
                self.stop = lambda: senders[0].send(True)
            case "closed sender":
                self.stop = senders[0].close
            case "dropped sender":
                self.stop = senders.clear
            case _:
                shutdown, self.stop = event, event.set
        self.run_task = self.loop.create_task(self.bus.run(shutdown))
        if self.stopped_by_cancel:
            self.stop = self.run_task.cancel
        self.time_passes(seconds)

    def observe(self, event: observe.Event) -> None:
        self.events.append(event)
        if isinstance(event, observe.LinkUp):
            link = self.server.session
            assert self.generations.setdefault(link.pid, event.generation) == event.generation
            assert event.pid == link.pid
            listened = {*CONFIGURED, *(account.channel for account in self.accounts())}
            assert listened <= set(link.listening), "announced before every LISTEN was acknowledged"
            assert not link.starts, "announced after its messages began"

    def accounts(self) -> list[Account]:
        return self.lazy + [account for account, _ in self.eager]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    # -- time -------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1, 0.7, 4.0, 9.5, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(turns=st.integers(1, 6))
    def a_few_turns(self, turns: int) -> None:
        async def work() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(work())

    # -- the server -------------------------------------------------------------------------------

    @rule(channels=MANY, times=st.integers(1, 3), seconds=SOON)
    def messages(self, channels: list[str], times: int, seconds: float) -> None:
        for channel in channels * times:
            self.server.commit(channel)
        self.time_passes(seconds)

    @precondition(lambda self: self.server.links)
    @rule(politely=st.booleans())
    def the_session_is_killed(self, politely: bool) -> None:
        self.server.session.kill(politely=politely)

    @precondition(lambda self: self.server.links)
    @rule()
    def the_network_swallows_everything(self) -> None:
        self.server.session.cut()

    @rule(door=st.sampled_from(FAULTY_DOORS))
    def nobody_gets_in(self, door: Door) -> None:
        self.server.door = door

    @rule(seconds=st.sampled_from([0.0, 0.05, 2.0]), latency=st.sampled_from([0.0, 0.01, 0.3]))
    def the_network_changes(self, seconds: float, latency: float) -> None:
        self.server.connect_seconds, self.server.latency = seconds, latency

    @rule()
    def the_server_is_demoted(self) -> None:
        self.server.in_recovery = True

    @rule(seconds=st.sampled_from([0.0, 2.0, 40.0]))
    def the_server_recovers(self, seconds: float) -> None:
        self.server.door, self.server.in_recovery = "open", False
        self.run(asyncio.sleep(seconds))

    @rule(channels=st.sets(st.sampled_from(DYNAMIC), max_size=2))
    def the_server_refuses_channels(self, channels: set[str]) -> None:
        self.server.refused = channels

    # -- the subscribers --------------------------------------------------------------------------

    @rule(channel=st.sampled_from(CONFIGURED), eager=st.booleans())
    def somebody_subscribes(self, channel: str, eager: bool) -> None:
        receiver = self.bus.subscribe(channel)
        assert receiver is not None
        self.enter(receiver, channel, eager=eager)

    @rule(channels=MANY, eager=st.booleans(), seconds=SOON)
    def somebody_listens(self, channels: list[str], eager: bool, seconds: float) -> None:
        self.run(asyncio.sleep(0))  # the run itself has begun
        for channel in channels:
            work = self.listen(channel, eager=eager)
            self.listening.append((channel, self.loop.create_task(work)))
        self.time_passes(seconds)

    async def come_and_go(self, steps: list[tuple[str, str]]) -> None:
        """Within turns of the loop, and travel times of a message; for a test of its own."""
        for step, channel in steps:
            match step:
                case "listen":
                    work = self.listen(channel, eager=False)
                    self.listening.append((channel, self.loop.create_task(work)))
                case "leave":
                    self.forget_finished()
                    there = [each for each in self.lazy if each.channel == channel]
                    if there:
                        self.lazy.remove(there[0])
                        await self.leave(there.pop(0), "close")
                case "cancel":
                    for name, task in self.listening:
                        if name == channel:
                            task.cancel()
                case "message":
                    self.server.commit(channel)
                case "turn":
                    await asyncio.sleep(0)
                case "travel":
                    await asyncio.sleep(self.server.latency / 2)
                case "kill":
                    self.server.session.kill()
                case "swap":
                    self.server.session.listening.clear()
                case "refuse":
                    self.server.refused = {channel}
                case "wait":
                    await asyncio.sleep(1)

    async def listen(self, channel: str, *, eager: bool) -> Subscription:
        receiver = await self.bus.listen(channel)
        # In the same turn: from here on, everything is promised.
        self.enter(receiver, channel, eager=eager)
        return receiver

    def enter(self, receiver: Subscription, channel: str, *, eager: bool) -> None:
        account = Account(self.server, receiver, channel, self.reconnects.borrow())
        if eager:
            self.eager.append((account, self.loop.create_task(account.collect())))
        else:
            self.lazy.append(account)

    @precondition(lambda self: self.listening)
    @rule(which=WHICH)
    def somebody_no_longer_waits(self, which: int) -> None:
        _, task = self.listening[which % len(self.listening)]
        task.cancel()

    @precondition(lambda self: self.lazy)
    @rule(which=WHICH, limit=st.sampled_from([1, 2, None]))
    def somebody_reads(self, which: int, limit: int | None) -> None:
        self.run(self.lazy[which % len(self.lazy)].read(limit))

    @precondition(lambda self: self.lazy)
    @rule(which=WHICH, how=st.sampled_from(["close", "drop"]))
    def somebody_leaves(self, which: int, how: str) -> None:
        self.forget_finished()
        self.run(self.leave(self.lazy.pop(which % len(self.lazy)), how))

    async def leave(self, account: Account, how: str) -> None:
        account.check(self.generations, settled=False)
        if how == "close":
            account.receiver.close()

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def one_connection(self) -> None:
        assert len(self.server.open_links()) <= 1

    @invariant()
    def each_link_that_came_up_is_one_generation(self) -> None:
        ups = [event.generation for event in self.events if isinstance(event, observe.LinkUp)]
        assert ups == list(range(1, len(ups) + 1))
        if not self.finished and hasattr(self, "reconnects"):
            assert self.reconnects.borrow() == len(ups)
        assert [link.starts for link in self.server.links if link.starts] == [1] * len(ups)

    @invariant()
    def silence_is_noticed(self) -> None:
        for link in self.server.links:
            if link.cut_at is not None and self.loop.time() - link.cut_at > NOTICED_WITHIN:
                assert link.closed, "a black hole was not noticed"

    @invariant()
    def delays_are_as_promised(self) -> None:
        nominal = 0.5
        for event in self.events:
            if isinstance(event, observe.LinkDown) and event.seconds >= 5:
                nominal = 0.5
            if isinstance(event, observe.LinkDown | observe.ConnectFailed):
                assert 0.5 * nominal <= event.retry_in <= nominal
                nominal = min(2 * nominal, 30)

    @invariant()
    def nobody_complains(self) -> None:
        assert not self.complaints
        if hasattr(self, "run_task") and not self.finished:
            assert not self.run_task.done()

    @invariant()
    def every_stream_is_right(self) -> None:
        for account in self.accounts():
            account.check(self.generations, settled=False)

    def forget_finished(self) -> None:
        """A task that has ended keeps its receiver alive: let go of it."""
        for _, task in self.listening:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, ListenRejected)
        self.listening = [pair for pair in self.listening if not pair[1].done()]

    # -- the end ----------------------------------------------------------------------------------

    def the_storm_is_over(self) -> None:
        """Everything settles: exactly what is wanted is listened to, and nothing was lost."""
        server = self.server
        server.door, server.connect_seconds, server.latency = "open", 0.0, 0.01
        server.in_recovery, server.refused = False, set()
        self.run(asyncio.sleep(90))  # the slowest: 30 s to connect, and 30 s of backoff
        self.forget_finished()
        assert not self.listening, "somebody still waits"
        assert self.bus.health().state in ("live", "lagging")
        wanted = {*CONFIGURED, *(account.channel for account in self.accounts())}
        assert set(server.session.listening) == wanted
        for channel in CHANNELS:
            server.commit(channel)
        self.run(asyncio.sleep(1))
        for account in self.lazy:
            self.run(account.read())
        for account in self.accounts():
            account.check(self.generations, settled=True)

    def teardown(self) -> None:
        try:
            if hasattr(self, "bus"):
                if self.settles:
                    self.the_storm_is_over()
                self.run(self.shut_down())
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(asyncio.sleep(10))
            self.loop.close()

    async def shut_down(self) -> None:
        """In whatever state: promptly, and nothing is left."""
        asked = self.loop.time()
        self.stop()
        await asyncio.wait({self.run_task})
        self.finished = True
        assert self.loop.time() - asked <= self.server.close_seconds + 1e-3
        assert self.run_task.cancelled() == self.stopped_by_cancel
        if not self.stopped_by_cancel:
            self.run_task.result()
        assert self.bus.health().state == "stopped"
        assert not self.server.open_links()
        for _, task in self.listening:
            with contextlib.suppress(Closed, ListenRejected, asyncio.CancelledError):
                await task
        for account in self.lazy:
            await account.read()
        for _, reading in self.eager:
            await reading
        for account in self.accounts():
            assert account.ended
            account.check(self.generations, settled=False)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others
        self.nobody_complains()
        self.delays_are_as_promised()
