"""The publisher: batches, order, keys, back-pressure, faults, and an account that adds up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgnotifybus import BufferFull, Closed, Publisher, PublishFailed, observe
from simulation.database import Fault, SimulatedDatabase, What, publisher_on
from simulation.virtual import EventLoop


def now() -> float:
    return asyncio.get_running_loop().time()


# -- batches --------------------------------------------------------------------------------------


async def test_messages_of_many_tasks_leave_in_one_transaction() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        await asyncio.gather(*(publisher.publish("jobs", str(n)) for n in range(500)))
        await publisher.flush()
        assert [sent.wire for sent in database.committed] == [str(n) for n in range(500)]
        assert len(database.transactions) == 1
        assert publisher.statistics().commits == 1
    assert not database.open_sessions()


async def test_a_message_lingers_for_others_as_long_as_was_said_and_no_longer() -> None:
    database = SimulatedDatabase(latency=0.0)
    async with publisher_on(database, linger=0.5) as publisher:
        began = now()
        await publisher.publish("jobs", "1")
        await asyncio.sleep(0.49)
        await publisher.publish("jobs", "2")
        assert not database.committed
        await asyncio.sleep(began + 0.51 - now())
        assert len(database.committed) == 2
        assert len(database.transactions) == 1


async def test_a_full_batch_does_not_linger() -> None:
    database = SimulatedDatabase(latency=0.0)
    async with publisher_on(database, linger=100, batch_size=3) as publisher:
        for n in range(7):
            await publisher.publish("jobs", str(n))
        await asyncio.sleep(1)
        assert [sent.wire for sent in database.committed] == list("012345")
        assert [len(t.sent) for t in database.transactions.values()] == [3, 3]


async def test_flush_sends_at_once_what_was_taken_and_waits_for_its_commit() -> None:
    database = SimulatedDatabase(latency=0.1)
    async with publisher_on(database, linger=100) as publisher:
        await publisher.publish("jobs", "1")
        began = now()
        await publisher.flush()
        assert [sent.wire for sent in database.committed] == ["1"]
        assert now() - began < 1
        await publisher.flush()  # nothing is there to be sent


async def test_an_idle_publisher_makes_no_connection() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        await asyncio.sleep(100)
        await publisher.flush()
    assert database.sessions == []


async def test_the_same_twice_leaves_in_two_transactions() -> None:
    """Trap 23: PostgreSQL would deliver one of them."""
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        for payload in ("1", "2", "1", "1", "3"):
            await publisher.publish("jobs", payload)
        await publisher.publish("orders", "1")
    assert [sent.wire for sent in database.committed] == ["1", "2", "1", "1", "3", "1"]
    assert len(database.transactions) == 3


async def test_a_batch_has_a_size_in_bytes_too() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        for n in range(1000):
            await publisher.publish("jobs", f"{n:04}" * 1900)
    assert [int(sent.wire[:4]) for sent in database.committed] == list(range(1000))
    sizes = [sum(len(sent.wire) for sent in t.sent) for t in database.transactions.values()]
    assert max(sizes) <= 4 * 1024 * 1024
    assert len(sizes) == 2


# -- keys -----------------------------------------------------------------------------------------


async def test_the_newest_of_a_key_wins_and_takes_its_place_at_the_end() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        await publisher.publish("prices", "ABC 1", key="ABC")
        await publisher.publish("prices", "XYZ 1", key="XYZ")
        await publisher.publish("prices", "ABC 2", key="ABC")
        await publisher.publish("other", "ABC 3", key="ABC")
        await publisher.flush()
        assert [sent.wire for sent in database.committed] == ["XYZ 1", "ABC 2", "ABC 3"]
        assert publisher.statistics().replaced == 1


async def test_a_message_that_is_leaving_is_not_replaced() -> None:
    database = SimulatedDatabase(latency=1.0)
    async with publisher_on(database, linger=0) as publisher:
        await publisher.publish("prices", "1", key="ABC")
        await asyncio.sleep(2.5)  # between BEGIN and COMMIT
        await publisher.publish("prices", "2", key="ABC")
    assert [sent.wire for sent in database.committed] == ["1", "2"]


# -- back-pressure --------------------------------------------------------------------------------


async def test_publish_waits_for_room_and_try_publish_says_that_there_is_none() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    async with publisher_on(database, capacity=2) as publisher:
        await publisher.publish("jobs", "1", key="a")
        publisher.try_publish("jobs", "2")
        with pytest.raises(BufferFull, match="2 messages"):
            publisher.try_publish("jobs", "3")
        waiting = [asyncio.create_task(publisher.publish("jobs", each)) for each in "456"]
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting)
        waiting[1].cancel()
        database.door = "open"
        await asyncio.wait(waiting)
    assert [sent.wire for sent in database.committed] == ["1", "2", "4", "6"]


async def test_the_buffer_has_a_size_in_bytes_too() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    async with publisher_on(database, capacity_bytes=10) as publisher:
        publisher.try_publish("jobs", "x" * 6)
        publisher.try_publish("jobs", "x" * 3, key="a")
        with pytest.raises(BufferFull, match="9 bytes"):
            publisher.try_publish("jobs", "yy")
        publisher.try_publish("jobs", "yyyy", key="a")  # in place of the three
        with pytest.raises(BufferFull):
            publisher.try_publish("jobs", "zzzzz", key="a")
        waiting = asyncio.create_task(publisher.publish("jobs", "z" * 100))
        await asyncio.sleep(1)
        assert not waiting.done()
        database.door = "open"
        await waiting
    assert [len(sent.wire) for sent in database.committed] == [6, 4, 100]


async def test_a_full_buffer_does_not_linger() -> None:
    """Nothing more can come, so there is nothing to wait for."""
    database = SimulatedDatabase()
    async with publisher_on(database, capacity=2, linger=100) as publisher:
        async with asyncio.timeout(1):
            for n in range(5):
                await publisher.publish("jobs", str(n))
                await asyncio.sleep(0.01)


# -- faults ---------------------------------------------------------------------------------------


async def test_a_server_that_is_away_for_a_minute_costs_nothing_but_time() -> None:
    database = SimulatedDatabase()
    database.door = "refuses"
    events: list[observe.Event] = []
    async with publisher_on(database, events.append) as publisher:
        for n in range(100):
            await publisher.publish("jobs", str(n))
        await asyncio.sleep(60)
        delays = [each.retry_in for each in events if isinstance(each, observe.PublishDelayed)]
        assert 10 < len(delays) < 40
        assert all(0 < delay <= 5 for delay in delays)
        database.door = "open"
        async with asyncio.timeout(6):
            await publisher.flush()
        assert [sent.wire for sent in database.committed] == [str(n) for n in range(100)]
        database.faults.append(Fault("begin", "cut before"))
        await publisher.publish("jobs", "another day")
        await publisher.flush()
        last = [each.retry_in for each in events if isinstance(each, observe.PublishDelayed)][-1]
        assert last <= 0.1, "the delays begin anew"


async def test_much_data_has_more_time() -> None:
    """Otherwise a slow network would never get it through, and it would be tried for ever."""
    database = SimulatedDatabase(latency=6.0)
    events: list[observe.Event] = []
    async with publisher_on(database, events.append, drain_timeout=100) as publisher:
        for n in range(400):
            await publisher.publish("jobs", f"{n:04}" * 1900)
    assert len(database.committed) == 400
    assert not events


@pytest.mark.parametrize("what", ["cut after", "silence after", "cut during"])
async def test_a_commit_that_was_not_answered_is_asked_for_and_not_repeated(what: What) -> None:
    database = SimulatedDatabase()
    database.faults.append(Fault("commit", what))
    async with publisher_on(database) as publisher:
        await publisher.publish("jobs", "1")
        await publisher.flush()
        assert publisher.statistics().sent == 1
    assert [sent.wire for sent in database.committed] == ["1"]


@pytest.mark.parametrize("what", ["cut before", "silence before"])
async def test_a_commit_that_did_not_arrive_is_repeated(what: What) -> None:
    database = SimulatedDatabase()
    database.faults.append(Fault("commit", what))
    async with publisher_on(database, delivery="at-most-once") as publisher:
        await publisher.publish("jobs", "1")
        await publisher.flush()
    assert [sent.wire for sent in database.committed] == ["1"]


@pytest.mark.parametrize("tells_identity", [True, False])
@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
async def test_where_nobody_can_know_the_caller_has_chosen(
    delivery: str, tells_identity: bool
) -> None:
    """After a crash the ids of transactions may mean others; and not every role may ask."""
    database = SimulatedDatabase()
    database.tells_identity = tells_identity
    database.faults.append(Fault("commit", "crash after" if tells_identity else "cut after"))
    async with publisher_on(database, delivery=delivery) as publisher:
        await publisher.publish("jobs", "1")
        if delivery == "at-least-once":
            await publisher.flush()
        else:
            with pytest.raises(PublishFailed) as failed:
                await publisher.flush()
            assert failed.value.unknown == [("jobs", "1")]
            assert failed.value.unsent == []
        await publisher.publish("jobs", "2")
        statistics = publisher.statistics()
    expected = ["1", "1", "2"] if delivery == "at-least-once" else ["1", "2"]
    assert [sent.wire for sent in database.committed] == expected
    assert statistics.unknown == (delivery == "at-most-once")


async def test_a_server_that_refuses_to_tell_leaves_it_unknown() -> None:
    database = SimulatedDatabase()
    database.faults.extend([Fault("commit", "cut after"), Fault("status", "refuse")])
    async with publisher_on(database, delivery="at-most-once") as publisher:
        await publisher.publish("jobs", "1")
        with pytest.raises(PublishFailed) as failed:
            await publisher.flush()
        assert failed.value.unknown == [("jobs", "1")]
    assert [sent.wire for sent in database.committed] == ["1"]


@pytest.mark.parametrize(
    ("faults", "drain_timeout"),
    [
        ([Fault("commit", "refuse"), Fault("begin", "silence before")], 1.0),
        ([Fault("commit", "cut before"), Fault("begin", "silence before")], 1.0),
        ([Fault("send", "silence after")], 1.0),
        ([Fault("commit", "refuse")], 0.05),  # ends between that and the next attempt
    ],
)
async def test_what_is_certainly_not_sent_is_not_called_unknown(
    faults: list[Fault], drain_timeout: float
) -> None:
    database = SimulatedDatabase()
    database.faults.extend(faults)
    publisher = publisher_on(database, drain_timeout=drain_timeout)
    await publisher.__aenter__()
    await publisher.publish("jobs", "1")
    with pytest.raises(PublishFailed) as failed:
        await publisher.__aexit__(None, None, None)
    assert (failed.value.unsent, failed.value.unknown) == ([("jobs", "1")], [])
    assert not database.committed


async def test_one_that_is_refused_for_good_holds_up_no_other() -> None:
    database = SimulatedDatabase()
    database.poison = {"13", "77"}
    events: list[observe.Event] = []
    async with publisher_on(database, events.append) as publisher:
        for n in range(100):
            await publisher.publish("jobs", str(n))
        with pytest.raises(PublishFailed, match=r"2 message.* were not sent.*LATIN1") as failed:
            await publisher.flush()
        assert failed.value.unsent == [("jobs", "13"), ("jobs", "77")]
        await publisher.flush()  # it was told once
        statistics = publisher.statistics()
    assert [sent.wire for sent in database.committed] == [
        str(n) for n in range(100) if n not in (13, 77)
    ]
    assert (statistics.sent, statistics.unsent) == (98, 2)
    refused = [each for each in events if isinstance(each, observe.PublishRefused)]
    assert [(each.channel, each.count) for each in refused] == [("jobs", 1), ("jobs", 1)]


async def test_what_may_pass_is_tried_again() -> None:
    """Trap 34: a full notification queue refuses the commit."""
    database = SimulatedDatabase()
    database.faults.extend([Fault("commit", "refuse"), Fault("begin", "refuse")])
    async with publisher_on(database, delivery="at-most-once") as publisher:
        await publisher.publish("jobs", "1")
        await publisher.flush()
    assert [sent.wire for sent in database.committed] == ["1"]


async def test_failures_that_nobody_asks_for_do_not_gather_without_end() -> None:
    database = SimulatedDatabase()
    database.poison = {"bad"}
    told = 0
    async with publisher_on(database, capacity=3, linger=0) as publisher:
        for _ in range(10):
            try:
                await publisher.publish("jobs", "bad")
            except PublishFailed as failed:
                told += len(failed.unsent)
            await asyncio.sleep(1)
        assert told == 6
        with pytest.raises(PublishFailed) as failed_last:
            await publisher.flush()
        assert told + len(failed_last.value.unsent) == publisher.statistics().accepted == 8


# -- the end --------------------------------------------------------------------------------------


async def test_the_end_sends_what_waits() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database, linger=100) as publisher:
        await publisher.publish("jobs", "1")
    assert [sent.wire for sent in database.committed] == ["1"]
    for call in (publisher.publish("jobs", "2"), publisher.flush()):
        with pytest.raises(Closed, match="the publisher is closed"):
            await call
    with pytest.raises(RuntimeError, match="entered once"):
        await publisher.__aenter__()


async def test_a_publisher_that_was_not_entered_says_so() -> None:
    publisher = publisher_on(SimulatedDatabase())
    with pytest.raises(RuntimeError, match="async with"):
        await publisher.publish("jobs", "1")


async def test_the_end_reports_exactly_what_was_not_sent() -> None:
    database = SimulatedDatabase()
    began = now()
    publisher = publisher_on(database, drain_timeout=3, batch_size=2)
    await publisher.__aenter__()
    await publisher.publish("jobs", "1")
    await publisher.flush()
    database.faults.append(Fault("commit", "silence after"))
    for each in ("2", "3", "4"):
        await publisher.publish("jobs", each)
    with pytest.raises(PublishFailed, match="did not take them in time") as failed:
        await publisher.__aexit__(None, None, None)
    assert now() - began == pytest.approx(3, abs=0.1)
    assert failed.value.unknown == [("jobs", "2"), ("jobs", "3")]
    assert failed.value.unsent == [("jobs", "4")]
    assert not database.open_sessions()


async def test_those_who_wait_for_room_at_the_end_are_told_that_theirs_was_not_taken() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    publisher = publisher_on(database, drain_timeout=1, capacity=1)
    await publisher.__aenter__()
    await publisher.publish("jobs", "1")
    blocked = asyncio.create_task(publisher.publish("jobs", "2"))
    await asyncio.sleep(1)
    ending = asyncio.create_task(publisher.__aexit__(None, None, None))
    with pytest.raises(Closed, match="not taken"):
        await blocked
    assert not ending.done()
    with pytest.raises(PublishFailed) as failed:
        await ending
    assert failed.value.unsent == [("jobs", "1")]


async def test_an_exception_of_the_block_is_kept_and_tells_of_the_rest_in_a_note() -> None:
    database = SimulatedDatabase()
    database.door = "refuses"

    async def work() -> None:
        async with publisher_on(database, drain_timeout=0) as publisher:
            await publisher.publish("jobs", "1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        await work()
    assert "1 message(s) were not sent" in raised.value.__notes__[0]


async def test_cancelling_the_end_gives_up_and_leaves_nothing_running() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"

    async def work() -> None:
        async with publisher_on(database, drain_timeout=100) as publisher:
            await publisher.publish("jobs", "1")

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    task.cancel()
    began = now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() - began < 1
    assert not database.open_sessions()


async def test_a_cancelled_flush_changes_nothing() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    async with publisher_on(database, drain_timeout=30) as publisher:
        await publisher.publish("jobs", "1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await publisher.flush()
        database.door = "open"
    assert [sent.wire for sent in database.committed] == ["1"]


async def test_a_source_that_can_never_work_is_told_and_not_retried() -> None:
    database = SimulatedDatabase()

    async def broken(part: str, timeout: float) -> object:
        raise TypeError("the source must bring a connection, not a teapot")

    database.outlet = broken  # type: ignore[method-assign, assignment]
    async with publisher_on(database) as publisher:
        await publisher.publish("jobs", "1")
        with pytest.raises(PublishFailed, match="teapot") as failed:
            await publisher.flush()
        assert failed.value.unsent == [("jobs", "1")]
        with pytest.raises(Closed, match="teapot"):
            await publisher.publish("jobs", "2")


# -- whatever happens -----------------------------------------------------------------------------


class Publish(NamedTuple):
    channel: str
    key: str | None
    patient: bool


class Wait(NamedTuple):
    seconds: float


class Do(NamedTuple):
    what: str


class Poison(NamedTuple):
    """The next message will be refused."""


Step = Publish | Wait | Do | Poison | Fault

FAULTS = st.builds(
    Fault,
    st.sampled_from(["begin", "send", "commit", "commit", "commit", "status"]),
    st.sampled_from(
        [
            "cut before",
            "cut after",
            "cut during",
            "silence before",
            "silence after",
            "refuse",
            "crash after",
        ]
    ),
)
STEPS = st.one_of(
    st.builds(
        Publish, st.sampled_from(["a", "b"]), st.sampled_from([None, None, "k"]), st.booleans()
    ),
    st.builds(Wait, st.sampled_from([0.0, 0.0005, 0.003, 0.02, 1.0, 15.0])),
    st.builds(Do, st.sampled_from(["flush", "kill", "crash", "refuses", "open", "hangs"])),
    st.builds(Poison),
    FAULTS,
)


@given(
    steps=st.lists(STEPS, min_size=1, max_size=40),
    delivery=st.sampled_from(["at-least-once", "at-most-once"]),
    batch_size=st.sampled_from([1, 2, 100]),
    capacity=st.sampled_from([1, 3, 100]),
    capacity_bytes=st.sampled_from([1, 4, 100]),
    linger=st.sampled_from([0.0, 0.01]),
    drain_timeout=st.sampled_from([0.0, 0.004, 200.0]),
    tells_identity=st.booleans(),
)
@settings(
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@pytest.mark.timeout(120)
def test_whatever_happens_every_message_is_accounted_for(
    steps: Sequence[Step],
    delivery: str,
    batch_size: int,
    capacity: int,
    capacity_bytes: int,
    linger: float,
    drain_timeout: float,
    tells_identity: bool,
) -> None:
    loop = EventLoop()
    try:
        story = Story()
        story.database.tells_identity = tells_identity
        publisher = publisher_on(
            story.database,
            delivery=delivery,
            batch_size=batch_size,
            capacity=capacity,
            capacity_bytes=capacity_bytes,
            linger=linger,
            drain_timeout=drain_timeout,
        )
        loop.run_until_complete(story.tell(publisher, steps))
        story.check(publisher, delivery)
        assert not asyncio.all_tasks(loop)
    finally:
        loop.close()


class Story:
    """What was published, and what has become of it."""

    def __init__(self) -> None:
        self.database = SimulatedDatabase()
        self.accepted: list[tuple[str, str]] = []
        self.keyed: set[str] = set()
        self.unsent: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []

    async def tell(self, publisher: Publisher, steps: Sequence[Step]) -> None:
        try:
            async with publisher:
                for step in steps:
                    await self.take(publisher, step)
        except PublishFailed as failed:
            self.note(failed)
        assert not self.database.open_sessions()

    async def take(self, publisher: Publisher, step: Step) -> None:
        database = self.database
        match step:
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Poison():
                database.poison.add(str(len(self.accepted)))
            case Fault():
                database.faults.append(step)
            case Publish():
                await self.publish(publisher, step)
            case Do("flush"):
                try:
                    async with asyncio.timeout(5):
                        await publisher.flush()
                except PublishFailed as failed:
                    self.note(failed)
                except TimeoutError:
                    pass
            case Do("kill"):
                database.kill()
            case Do("crash"):
                database.crash()
            case Do(door):
                database.door = door  # type: ignore[assignment]

    async def publish(self, publisher: Publisher, step: Publish) -> None:
        message = step.channel, str(len(self.accepted))
        try:
            if step.patient:
                async with asyncio.timeout(5):
                    await publisher.publish(*message, key=step.key)
            else:
                publisher.try_publish(*message, key=step.key)
        except PublishFailed as failed:
            self.note(failed)
        except (BufferFull, TimeoutError):
            pass
        else:
            self.accepted.append(message)
            if step.key is not None:
                self.keyed.add(message[1])

    def note(self, failed: PublishFailed) -> None:
        assert failed.unsent or failed.unknown
        self.unsent += failed.unsent
        self.unknown += failed.unknown

    def check(self, publisher: Publisher, delivery: str) -> None:
        statistics = publisher.statistics()
        assert statistics.waiting == 0
        assert statistics.accepted == len(self.accepted)
        assert statistics.unsent == len(self.unsent)
        assert statistics.unknown == len(self.unknown)
        assert statistics.accepted == (
            statistics.sent + statistics.replaced + statistics.unsent + statistics.unknown
        )
        times = Counter((sent.channel, sent.wire) for sent in self.database.committed)
        assert not times.keys() - set(self.accepted), "sent what nobody published"
        replaced = 0
        for message in self.accepted:
            if message in self.unsent:
                assert times[message] == 0, f"{message} was said to be unsent"
            elif message not in self.unknown and times[message] == 0:
                assert message[1] in self.keyed, f"{message} is lost"
                replaced += 1
            if delivery == "at-most-once":
                assert times[message] <= 1, f"{message} was sent twice"
        assert replaced == statistics.replaced
        self.check_order()

    def check_order(self) -> None:
        """Per channel, what was sent is in the order in which it was published."""
        for channel in ("a", "b"):
            seen: dict[int, None] = {}
            for sent in self.database.committed:
                if sent.channel == channel:
                    seen.setdefault(int(sent.wire))
            assert all(one < other for one, other in pairwise(seen)), f"order: {list(seen)}"
