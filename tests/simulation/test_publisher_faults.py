"""The publisher and its connection, where several things go wrong at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pgnotifybus import ConnectError, PublishFailed, observe
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.publish.committing import InDoubt, Outcome
from simulation.database import Fault, Session, SimulatedDatabase, publisher_on


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_what_may_have_been_sent_is_not_called_certainly_unsent_when_then_refused() -> None:
    """Commit in doubt, resent (at-least-once), and now refused for good: it IS committed."""
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        await publisher.publish("jobs", "1")
        await publisher.publish("jobs", "2")
        database.faults.append(Fault("commit", "crash after"))
        outcome = publisher._committer.outcome

        async def poisoned(doubt: InDoubt) -> Outcome:
            database.poison.update({"2"})  # the server that came back refuses it
            return await outcome(doubt)

        publisher._committer.outcome = poisoned  # type: ignore[method-assign]
        with pytest.raises(PublishFailed) as failed:
            await publisher.flush()
    wires = [sent.wire for sent in database.committed]
    assert "2" in wires  # it was committed before the crash
    assert failed.value.unsent == []
    assert failed.value.unknown == [("jobs", "2")]


async def test_flush_returns_when_what_it_waits_for_was_replaced() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database, linger=1000) as publisher:
        await publisher.publish("prices", "1", key="ABC")
        flushing = asyncio.create_task(publisher.flush())
        await asyncio.sleep(0)
        await publisher.publish("prices", "2", key="ABC")
        began = now()
        await flushing
        assert now() - began < 1, now() - began


async def test_messages_that_cannot_leave_together_linger_once_each_not_one_after_another() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database, linger=1.0) as publisher:
        for _ in range(50):
            await publisher.publish("jobs", "wake up")
        await asyncio.sleep(2)
        assert len(database.committed) == 50


async def test_batches_limited_by_bytes_do_not_linger() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database, linger=1.0) as publisher:
        for n in range(800):
            await publisher.publish("jobs", f"{n:07}" * 1100)  # 6 MiB: two batches
        await asyncio.sleep(1.5)
        assert len(database.committed) == 800


async def test_flush_is_told_of_its_commit_when_the_server_then_falls_silent() -> None:
    """Only those who wait for room are woken late."""
    database = SimulatedDatabase()
    async with publisher_on(database, batch_size=10, linger=0, drain_timeout=60) as publisher:
        for n in range(10):
            publisher.try_publish("jobs", str(n))
        flushing = asyncio.create_task(publisher.flush())
        await asyncio.sleep(0)
        for n in range(10, 30):
            publisher.try_publish("jobs", str(n))
        # Behind the first commit:
        database.faults.extend([Fault("commit", "slow"), Fault("begin", "silence before")])
        async with asyncio.timeout(2):
            await flushing
        assert len(database.committed) == 10


async def test_a_commit_that_always_breaks_unknown_is_not_repeated_in_a_tight_loop() -> None:
    database = SimulatedDatabase()
    database.tells_identity = False
    for _ in range(500):
        database.faults.append(Fault("commit", "cut after"))
    async with publisher_on(database, drain_timeout=0) as publisher:
        await publisher.publish("jobs", "1")
        await asyncio.sleep(1)
        copies = len(database.committed)
        database.faults.clear()
        await publisher.flush()
    assert copies < 10, copies


async def test_a_begin_that_fails_half_way_leaves_no_session_in_an_aborted_transaction() -> None:
    """BEGIN; SET LOCAL ...: the SET fails (cancelled, say), and the transaction stays open."""

    database = SimulatedDatabase()
    database.faults.append(Fault("begin", "half"))
    async with publisher_on(database) as publisher:
        await publisher.publish("jobs", "1")
        async with asyncio.timeout(300):
            await publisher.flush()


async def test_what_is_given_up_by_a_cancelled_end_is_told_to_the_observer() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    events: list[observe.Event] = []

    async def work() -> None:
        async with publisher_on(database, events.append, drain_timeout=1) as publisher:
            await publisher.publish("jobs", "1")
            await asyncio.sleep(1000)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.5)
    task.cancel()  # SIGTERM, a TaskGroup that ends
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert [each for each in events if isinstance(each, observe.PublishRefused)]


async def test_a_large_message_that_waits_for_room_has_its_turn() -> None:
    database = SimulatedDatabase(latency=0.01)
    async with publisher_on(database, capacity_bytes=1000, batch_size=5, linger=0) as publisher:
        ended = False

        async def small(name: str) -> None:
            for n in range(2000):
                if ended:
                    return
                await publisher.publish("jobs", f"{name} {n}".ljust(100))

        smalls = [asyncio.create_task(small(str(i))) for i in range(20)]
        await asyncio.sleep(0.05)
        large = asyncio.create_task(publisher.publish("jobs", "x" * 900))
        await asyncio.wait({large, *smalls}, return_when=asyncio.FIRST_COMPLETED)
        before = publisher.statistics().sent
        done = large.done()
        ended = True
        await asyncio.gather(large, *smalls)
    assert done
    assert before < 500


async def test_publishing_of_one_key_in_a_loop_lets_others_run() -> None:
    database = SimulatedDatabase()
    async with publisher_on(database) as publisher:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(other())
        for n in range(20_000):
            await publisher.publish("prices", str(n), key="ABC")
        task.cancel()
    assert turns > 0


async def test_notify_has_a_deadline_also_behind_others() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    side = SideLink(database, part="notifier", connect_timeout=5.0, timeout=10.0)
    began = now()

    async def use() -> float:
        with pytest.raises(ConnectError):
            async with side.use():
                pass
        return now() - began

    times = await asyncio.gather(*(use() for _ in range(20)))
    assert max(times) < 60, max(times)


async def test_in_progress_for_long_is_waited_for_and_not_sent_twice() -> None:
    """The commit hangs (a synchronous standby is away, say) for a minute, and then commits."""
    database = SimulatedDatabase()
    database.commit_seconds = 60.0
    database.faults.append(Fault("commit", "cut during"))
    async with publisher_on(database) as publisher:
        await publisher.publish("jobs", "1")
        await publisher.flush()
    await asyncio.sleep(100)
    assert [sent.wire for sent in database.committed] == ["1"]


async def test_close_is_seen_by_a_use_whose_connection_came_in_the_same_turn() -> None:
    class Slow(SimulatedDatabase):
        future: asyncio.Future[None]

        async def outlet(self, part: str, timeout: float) -> Session:
            await self.future
            session = Session(self)
            self.sessions.append(session)
            return session

    database = Slow()
    database.future = asyncio.get_running_loop().create_future()
    side = SideLink(database, part="notifier", connect_timeout=5.0, timeout=10.0)

    async def use() -> None:
        async with side.use():
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(use())
    await asyncio.sleep(1)
    database.future.set_result(None)
    began = now()
    await side.close()
    assert now() - began < 3, now() - began
    with contextlib.suppress(Exception):
        await task


async def test_each_flush_is_told_of_what_its_own_task_has_published() -> None:
    database = SimulatedDatabase()
    database.poison = {"bad"}
    async with publisher_on(database) as publisher:

        async def work(payload: str) -> str:
            await publisher.publish("jobs", payload)
            await asyncio.sleep(0)
            try:
                await publisher.flush()
            except PublishFailed as failed:
                return f"failed: {failed.unsent}"
            return "committed"

        told = await asyncio.gather(work("good"), work("bad"))
    assert told[1] != "committed", told


async def test_a_source_that_is_cancelled_inside_leaves_no_publisher_that_sends_nothing() -> None:
    class Shares(SimulatedDatabase):
        """Its connection factory awaits a shared task, which somebody cancels."""

        async def outlet(self, part: str, timeout: float) -> Session:
            if not self.sessions and not self.crashes:
                self.crashes = 1
                shared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                shared.cancel()
                await shared
            return await super().outlet(part, timeout)

    database = Shares()
    async with publisher_on(database, drain_timeout=1) as publisher:
        await publisher.publish("jobs", "1")
        with contextlib.suppress(PublishFailed):
            async with asyncio.timeout(100):
                await publisher.flush()


async def test_a_batch_that_the_notification_queue_cannot_hold_is_sent_in_parts() -> None:
    """Refused, it would fill the queue of the whole cluster with what nobody reads."""
    database = SimulatedDatabase()
    database.queue_pages = "64"
    async with publisher_on(database) as publisher:
        for n in range(200):
            await publisher.publish("jobs", f"{n:05}" * 1000)
    assert [int(sent.wire[:5]) for sent in database.committed] == list(range(200))
    sizes = [sum(len(sent.wire) for sent in t.sent) for t in database.transactions.values()]
    assert max(sizes) <= 64 * 8192 / 4
    assert len(sizes) < 20


async def test_a_cancelled_flush_leaves_its_failures_to_the_next() -> None:
    database = SimulatedDatabase()
    database.poison = {"bad"}
    async with publisher_on(database, batch_size=1, linger=0) as publisher:
        await publisher.publish("jobs", "bad")
        await publisher.publish("jobs", "good")
        database.faults.append(Fault("commit", "silence before"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await publisher.flush()
        with pytest.raises(PublishFailed) as failed:
            await publisher.flush()
        assert failed.value.unsent == [("jobs", "bad")]


async def test_one_who_no_longer_waits_for_room_leaves_it_to_the_next() -> None:
    database = SimulatedDatabase()
    database.door = "hangs"
    async with publisher_on(database, capacity_bytes=10, drain_timeout=60) as publisher:
        await publisher.publish("jobs", "x" * 8)
        large = asyncio.create_task(publisher.publish("jobs", "y" * 9))
        small = asyncio.create_task(publisher.publish("jobs", "z"))
        await asyncio.sleep(0.1)
        large.cancel()
        database.door = "open"
        async with asyncio.timeout(30):
            await small
    assert [sent.wire for sent in database.committed] == ["x" * 8, "z"]
