"""The watch channel against a list of all values: the newest is kept, nobody misses the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgnotifybus import watch
from pgnotifybus.errors import Closed
from unit.polling import Polled

T = TypeVar("T")

VALUES = st.integers(0, 3)


@dataclass
class Waiting:
    """A parked `changed` (no wish) or `wait_for` (the value wished for)."""

    polled: Polled[object]
    wish: int | None


@dataclass
class Observer:
    """A receiver, and how many of all values it has seen."""

    receiver: watch.Receiver[int]
    seen: int
    waiting: list[Waiting] = field(default_factory=list)


class WatchMachine(RuleBasedStateMachine):
    """One sender, which may be dropped or closed, and observers that look and wait."""

    @initialize(initial=VALUES)
    def make(self, initial: int) -> None:
        self.loop = asyncio.new_event_loop()
        sender, receiver = watch.channel(initial)
        self.parking = receiver._shared.parking
        self.sender: watch.Sender[int] | None = sender
        self.open = True
        self.values = [initial]
        self.observers = [Observer(receiver, 1)]

    def inside(self, call: Callable[[], T]) -> T:
        """Call something where an event loop is running."""

        async def main() -> T:
            return call()

        return self.loop.run_until_complete(main())

    # -- sending --

    @precondition(lambda self: self.sender is not None)
    @rule(value=VALUES, way=st.sampled_from(["send", "modify", "different", "modify raises"]))
    def send(self, value: int, way: str) -> None:
        assert self.sender is not None
        old = self.values[-1]
        try:
            match way:
                case "send":
                    self.sender.send(value)
                case "modify":
                    self.sender.send_modify(lambda old: (old + value) % 4)
                    value = (old + value) % 4
                case "different":
                    assert self.sender.send_if_different(value) == (value != old)
                case _:
                    self.sender.send_modify(lambda _: 1 // 0)
        except Closed:
            assert not self.open
            return
        except ZeroDivisionError:
            assert way == "modify raises"
            assert self.open
            return
        assert self.open
        if way != "different" or value != old:
            self.values.append(value)

    @precondition(lambda self: self.sender is not None)
    @rule(really=st.sampled_from([False, False, False, True]), drop=st.booleans())
    def end(self, really: bool, drop: bool) -> None:
        if not really:
            return
        assert self.sender is not None
        if drop:
            self.sender = None
            self.inside(lambda: None)  # a dropped sender speaks through the loop
        else:
            self.sender.close()
        self.open = False

    # -- observing --

    @precondition(lambda self: self.sender is not None and len(self.observers) < 5)
    @rule()
    def subscribe(self) -> None:
        assert self.sender is not None
        self.observers.append(Observer(self.sender.subscribe(), len(self.values)))

    @rule(data=st.data(), update=st.booleans())
    def borrow(self, data: st.DataObject, update: bool) -> None:
        observer = data.draw(st.sampled_from(self.observers))
        if update:
            assert observer.receiver.borrow_and_update() == self.values[-1]
            observer.seen = len(self.values)
        else:
            assert observer.receiver.borrow() == self.values[-1]

    @rule(data=st.data(), wish=st.none() | VALUES)
    def wait(self, data: st.DataObject, wish: int | None) -> None:
        observer = data.draw(st.sampled_from(self.observers))
        receiver = observer.receiver
        polled: Polled[object] = (
            Polled(receiver.changed())
            if wish is None
            else Polled(receiver.wait_for(lambda value: value == wish))
        )
        self.poll(observer, Waiting(polled, wish), first=True)

    @precondition(lambda self: any(one.waiting for one in self.observers))
    @rule(data=st.data())
    def run_who_is_woken(self, data: st.DataObject) -> None:
        woken = [
            (observer, waiting)
            for observer in self.observers
            for waiting in observer.waiting
            if waiting.polled.woken()
        ]
        for observer, waiting in data.draw(st.permutations(woken)):
            observer.waiting.remove(waiting)
            self.poll(observer, waiting, first=False)

    def poll(self, observer: Observer, waiting: Waiting, *, first: bool) -> None:
        unseen = observer.seen < len(self.values)
        wish, newest = waiting.wish, self.values[-1]
        expected: object = "it waits"
        if wish is None:
            if unseen:
                expected = None
        elif (first or unseen) and newest == wish:
            expected = wish
        # Whoever asked a value has seen it, also if it was not the one wished for.
        if unseen:
            observer.seen = len(self.values)
        if expected == "it waits" and not self.open:
            expected = Closed
        if not self.inside(waiting.polled.poll):
            assert expected == "it waits"
            observer.waiting.append(waiting)
            return
        try:
            got: object = waiting.polled.result()
        except Closed:
            got = Closed
        assert got == expected

    @precondition(lambda self: any(one.waiting for one in self.observers))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        observer = data.draw(st.sampled_from([one for one in self.observers if one.waiting]))
        waiting = observer.waiting.pop(data.draw(st.integers(0, len(observer.waiting) - 1)))
        waiting.polled.cancel()
        try:
            waiting.polled.result()
        except asyncio.CancelledError:
            return
        raise AssertionError("it swallowed the cancellation")

    # -- always --

    @invariant()
    def everybody_sees_what_the_model_says(self) -> None:
        for observer in getattr(self, "observers", ()):
            assert observer.receiver.has_changed() == (observer.seen < len(self.values))
            assert observer.receiver.borrow() == self.values[-1]
            assert observer.receiver.closed == (not self.open)

    @invariant()
    def nobody_is_left_asleep(self) -> None:
        """Who waits for a value that it has not seen, or for the end, has been woken."""
        asleep = 0
        for observer in getattr(self, "observers", ()):
            for waiting in observer.waiting:
                if not waiting.polled.woken():
                    asleep += 1
                    assert self.open
                    assert observer.seen == len(self.values)
        if hasattr(self, "parking"):
            assert len(self.parking) == asleep

    def teardown(self) -> None:
        for observer in getattr(self, "observers", ()):
            for waiting in observer.waiting:
                waiting.polled.cancel()
        if hasattr(self, "loop"):
            assert len(self.parking) == 0
            self.loop.close()


TestWatch: Any = WatchMachine.TestCase
TestWatch.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, print_blob=True
)
