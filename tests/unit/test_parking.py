"""Where tasks wait: nothing is left behind, nobody is forgotten, loops are kept apart."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable

import async_solipsism
import pytest

from pgnotifybus import broadcast, watch
from pgnotifybus._parking import Parking
from pgnotifybus.errors import Closed
from unit.polling import Polled, parked, ready


async def test_wake_wakes_all_that_wait_now() -> None:
    parking = Parking()
    tasks = [parked(parking.park()) for _ in range(3)]
    assert len(parking) == 3
    parking.wake()
    assert [task.woken() for task in tasks] == [True] * 3
    assert all(task.poll() for task in tasks)
    assert len(parking) == 0


async def test_who_parks_after_a_wake_waits_for_the_next() -> None:
    parking = Parking()
    parking.wake()
    early = parked(parking.park())
    parking.wake()
    late = parked(parking.park())
    assert early.woken()
    assert not late.woken()
    assert len(parking) == 1, "the one that was woken does not wait any more"
    assert early.poll()
    assert len(parking) == 1, "the one that was woken has taken another one's place along"


async def test_first_come_first_woken() -> None:
    parking = Parking()
    order: list[int] = []

    async def wait(number: int) -> None:
        await parking.park()
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(wait(number))
        await asyncio.sleep(0)  # each task runs until it waits
        assert len(parking) == 20
        parking.wake()
    assert order == list(range(20))


async def test_cancelling_one_leaves_nothing_behind_and_disturbs_nobody() -> None:
    parking = Parking()
    first, second, third = (parked(parking.park()) for _ in range(3))
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        second.result()
    assert len(parking) == 2
    assert not first.woken()
    assert not third.woken()
    parking.wake()
    assert first.poll()
    assert third.poll()


async def test_of_a_hundred_tasks_every_second_is_cancelled() -> None:
    """With one shared future the first cancellation would cancel them all."""
    parking = Parking()
    tasks = [asyncio.create_task(parking.park()) for _ in range(100)]
    await asyncio.sleep(0)  # each task runs until it waits
    assert len(parking) == 100
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks[::2])
    assert len(parking) == 50
    assert not any(task.done() for task in tasks[1::2])
    parking.wake()
    await asyncio.gather(*tasks[1::2])
    assert all(task.cancelled() for task in tasks[::2])
    assert len(parking) == 0


async def test_a_task_cancelled_after_it_was_woken_does_not_break_the_others() -> None:
    parking = Parking()
    tasks = [asyncio.create_task(parking.park()) for _ in range(3)]
    await asyncio.sleep(0)  # each task runs until it waits
    assert len(parking) == 3
    tasks[0].cancel()  # its future is done, its place is still taken
    parking.wake()
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [
        asyncio.CancelledError,
        type(None),
        asyncio.CancelledError,
    ]
    assert len(parking) == 0


def test_a_wait_that_times_out_ten_thousand_times_leaves_nothing() -> None:
    """The usual loop `wait_for(recv(), timeout)`, on virtual time."""
    _, receiver = pair = broadcast.channel(4)
    parking = receiver._shared.parking

    async def main() -> None:
        for _ in range(10_000):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receiver.recv(), 1)
            assert len(parking) == 0

    loop = async_solipsism.EventLoop()
    loop.run_until_complete(main())
    assert loop.time() >= 10_000
    loop.close()
    assert pair[0].receiver_count == 1


# -- event loops ----------------------------------------------------------------------------------


def run_in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    async def main() -> None:
        call()

    loop.run_until_complete(main())


def test_a_second_loop_is_refused_while_tasks_of_the_first_wait() -> None:
    """Trap 19: two event loops."""
    parking = Parking()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    waiting: list[Polled[None]] = []
    run_in(first, lambda: waiting.append(parked(parking.park())))

    def refused() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            ready(parking.park())

    run_in(second, refused)
    assert len(parking) == 1
    run_in(first, parking.wake)
    assert waiting[0].woken()
    waiting[0].poll()
    first.close()
    second.close()


def test_one_loop_after_the_other_is_fine() -> None:
    """A module-level channel, and `asyncio.run` twice."""
    sender, receiver = broadcast.channel(4)
    for number in range(2):

        async def main(number: int = number) -> None:
            waiting = parked(receiver.recv())
            sender.send(number)
            assert waiting.poll()
            assert waiting.result() == number

        asyncio.run(main())


def test_tasks_left_behind_in_a_closed_loop_do_not_count() -> None:
    """Nobody can run them any more: they must not fail a send, nor lock out the next loop."""
    sender, receiver = broadcast.channel(4)
    left: list[asyncio.Task[int]] = []

    async def leave_one_behind() -> None:
        left.append(asyncio.create_task(receiver.recv()))
        await asyncio.sleep(0)

    dead, alive = asyncio.new_event_loop(), asyncio.new_event_loop()
    dead.run_until_complete(leave_one_behind())
    dead.close()

    def wait_here() -> None:
        waiting = parked(receiver.recv())
        assert sender.send(1) == 1
        assert waiting.poll()
        assert waiting.result() == 1

    run_in(alive, wait_here)
    alive.close()
    _silence(left[0])


def test_a_send_finds_only_tasks_of_a_closed_loop() -> None:
    sender, receiver = broadcast.channel(4)
    left: list[asyncio.Task[int]] = []

    async def leave_one_behind() -> None:
        left.append(asyncio.create_task(receiver.recv()))
        await asyncio.sleep(0)

    dead = asyncio.new_event_loop()
    dead.run_until_complete(leave_one_behind())
    dead.close()
    assert sender.send(1) == 1
    sender.close()
    _silence(left[0])


def _silence(task: asyncio.Task[int]) -> None:
    """Let go of a task whose loop is closed, without the complaint of asyncio about it."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]


# -- senders that are dropped, in whatever thread -------------------------------------------------


def make(kind: str) -> tuple[list[object], Callable[[], Polled[object]]]:
    """A box with the only reference to a sender, and how to wait for it."""
    if kind == "broadcast":
        sender, receiver = broadcast.channel(4)
        return [sender], lambda: Polled(receiver.recv())
    changing, observer = watch.channel(0)
    return [changing], lambda: Polled(observer.changed())


kinds = pytest.mark.parametrize("kind", ["broadcast", "watch"])


@kinds
@pytest.mark.parametrize("cycle", [False, True])
async def test_a_sender_dropped_in_another_thread_wakes_who_waits(kind: str, cycle: bool) -> None:
    """Trap 14: garbage collection runs where it likes, and must go through the loop."""
    box, wait = make(kind)
    waiting = wait()
    assert not waiting.poll()
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # a future that is touched from a foreign thread raises
    gc.disable()  # so that the other thread collects, and no other
    if cycle:
        box.append(box)

    def drop() -> None:
        nonlocal box
        if cycle:
            box = []
            gc.collect()
        else:
            box.clear()

    try:
        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
    finally:
        gc.enable()
    assert not waiting.woken(), "woken in the wrong thread"
    await asyncio.sleep(0)
    assert waiting.woken()
    assert waiting.poll()
    with pytest.raises(Closed):
        waiting.result()


@kinds
@pytest.mark.parametrize("moment", ["before the loop is known", "before it is parked"])
async def test_a_sender_dropped_while_a_task_is_on_its_way_to_park(
    kind: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 14: the receiver has found the channel open, but does not wait yet."""
    box, wait = make(kind)
    loop = asyncio.get_running_loop()
    create_future, get_running_loop = loop.create_future, asyncio.get_running_loop

    def drop() -> None:
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()

    def create_future_after_drop() -> asyncio.Future[object]:
        drop()
        return create_future()

    def running_loop_after_drop() -> asyncio.AbstractEventLoop:
        drop()
        return get_running_loop()

    with monkeypatch.context() as patch:
        if moment == "before it is parked":
            patch.setattr(loop, "create_future", create_future_after_drop)
        else:
            patch.setattr("pgnotifybus._parking.asyncio.get_running_loop", running_loop_after_drop)
        waiting = wait()
        waiting.poll()
    assert not box, "the sender was not dropped on the way"
    await asyncio.sleep(0)
    if not waiting.done():
        assert waiting.woken(), "it waits for ever"
        waiting.poll()
    with pytest.raises(Closed):
        waiting.result()


@kinds
def test_a_sender_dropped_after_the_loop_is_closed_is_harmless(kind: str) -> None:
    """Trap 14: a dying event loop. An exception in a finalizer would be an unraisable warning."""
    box, wait = make(kind)
    loop = asyncio.new_event_loop()
    waiting: list[Polled[object]] = []

    def wait_here() -> None:
        waiting.append(wait())
        waiting[0].poll()

    run_in(loop, wait_here)
    loop.close()
    box.clear()
    assert not waiting[0].woken()
