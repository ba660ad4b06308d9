"""The outbox against a naive model, whatever is put, leaves, is settled and given up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgnotifybus.core.outbox import Item, Outbox

keys = st.sampled_from([None, None, "", "a", "b"])
identities = st.sampled_from([None, "x", "y", ("orders", "z")])


@dataclass
class Record:
    """What has become of one message; the model keeps all of them for ever."""

    item: Item[str]
    state: str = "waiting"


class OutboxMachine(RuleBasedStateMachine):
    """An outbox and the list of all messages that it ever took."""

    @initialize(capacity=st.integers(1, 8), max_bytes=st.sampled_from([0, 7, 20, math.inf]))
    def make(self, capacity: int, max_bytes: float) -> None:
        self.outbox: Outbox[str] = Outbox(capacity, max_bytes)
        self.records: list[Record] = []
        self.gone: list[int] = []
        """The numbers of those that have left, as they left."""

    def those(self, *states: str) -> list[Record]:
        return [record for record in self.records if record.state in states]

    @rule(size=st.integers(0, 9), key=keys, identity=identities)
    def put(self, size: int, key: str | None, identity: Any) -> None:
        older = [one for one in self.those("waiting") if key is not None and one.item.key == key]
        others = [one for one in self.those("waiting", "leaving") if one not in older]
        bytes_held = sum(one.item.size for one in others)
        full = len(others) >= self.outbox.capacity or (
            bool(others) and bytes_held + size > self.outbox.max_bytes
        )
        number = len(self.records) + 1
        taken = self.outbox.put(f"message {number}", size, key, identity)
        assert taken == (not full)
        if taken:
            for record in older:
                record.state = "replaced"
            self.records.append(
                Record(Item(number, f"message {number}", size, key, identity)),
            )

    @rule(limit=st.integers(1, 6), max_bytes=st.integers(0, 20))
    def leave(self, limit: int, max_bytes: int) -> None:
        expected: list[Record] = []
        for record in self.those("waiting"):
            together = [one.item for one in [*expected, record]]
            identified = [item.identity for item in together if item.identity is not None]
            fits = (
                len(together) <= limit
                and sum(item.size for item in together) <= max_bytes
                and len(set(identified)) == len(identified)
            )
            if expected and not fits:
                break
            expected.append(record)
        batch = self.outbox.leave(limit, max_bytes)
        assert batch == [record.item for record in expected]
        for record in expected:
            record.state = "leaving"
            self.gone.append(record.item.number)

    @precondition(lambda self: self.those("leaving"))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """In any order: those that are refused are told apart from the others."""
        record = data.draw(st.sampled_from(self.those("leaving")))
        self.outbox.settle(record.item)
        record.state = "settled"

    @precondition(lambda self: self.those("leaving"))
    @rule()
    def settle_all(self) -> None:
        for record in self.those("leaving"):
            self.outbox.settle(record.item)
            record.state = "settled"

    @rule(really=st.sampled_from([False, False, False, True]))
    def drain(self, really: bool) -> None:
        if really:
            held = self.those("waiting", "leaving")
            assert self.outbox.drain() == [record.item for record in held]
            for record in held:
                record.state = "drained"

    @invariant()
    def every_message_is_accounted_for(self) -> None:
        """taken = settled + replaced + held + drained."""
        if hasattr(self, "outbox"):
            outbox = self.outbox
            settled, drained = len(self.those("settled")), len(self.those("drained"))
            assert outbox.replaced == len(self.those("replaced"))
            assert outbox.waiting == len(self.those("waiting"))
            assert outbox.held == len(self.those("waiting", "leaving"))
            assert outbox.taken == settled + outbox.replaced + outbox.held + drained
            assert outbox.taken == len(self.records)

    @invariant()
    def it_never_holds_more_than_its_capacity(self) -> None:
        if hasattr(self, "outbox"):
            held = self.those("waiting", "leaving")
            assert self.outbox.held <= self.outbox.capacity
            assert self.outbox.bytes == sum(one.item.size for one in held)
            assert self.outbox.bytes <= self.outbox.max_bytes or len(held) == 1

    @invariant()
    def the_oldest_is_the_first_that_is_not_settled(self) -> None:
        if hasattr(self, "outbox"):
            held = [record.item.number for record in self.those("waiting", "leaving")]
            assert self.outbox.oldest == min(held, default=len(self.records) + 1)

    @invariant()
    def the_order_is_kept(self) -> None:
        """Over all that ever left, nothing twice."""
        assert getattr(self, "gone", []) == sorted(set(getattr(self, "gone", [])))

    @invariant()
    def one_of_a_key_waits(self) -> None:
        if hasattr(self, "outbox"):
            waiting = [one.item.key for one in self.those("waiting") if one.item.key is not None]
            assert len(waiting) == len(set(waiting)) == len(self.outbox._by_key)


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, print_blob=True
)
