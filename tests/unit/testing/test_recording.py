"""The recording observer remembers everything, and can be waited for."""

from __future__ import annotations

import asyncio

import pytest

from pgnotifybus import observe
from pgnotifybus.testing import RecordingObserver


def stopped(generation: int) -> observe.Stopped:
    return observe.Stopped(generation)


async def test_it_counts_and_finds_what_was_told() -> None:
    observer = RecordingObserver()
    events: list[observe.Event] = [
        stopped(1),
        observe.ChannelsChanged(("a",), ()),
        stopped(2),
        stopped(3),
    ]
    for event in events:
        observer(event)
    assert observer.events == events
    assert observer.count(observe.Stopped) == 3
    assert observer.count(observe.LinkUp) == 0
    assert observer.of(observe.ChannelsChanged) == [events[1]]
    assert await observer.wait_for(observe.Stopped) == stopped(1)
    assert await observer.wait_for(observe.Stopped, 2) == stopped(2)
    later = await observer.wait_for(observe.Stopped, where=lambda event: event.generation > 2)
    assert later == stopped(3)
    assert await observer.wait_for(lambda event: event == stopped(2)) == stopped(2)


async def test_whoever_waits_is_woken_and_whoever_is_cancelled_is_not_missed() -> None:
    observer = RecordingObserver()
    waiting = [asyncio.create_task(observer.wait_for(observe.Stopped, n)) for n in (1, 2, 2)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    observer(stopped(1))
    assert await waiting[0] == stopped(1)
    assert not waiting[1].done()
    observer(stopped(2))
    assert await waiting[1] == stopped(2)
    with pytest.raises(asyncio.CancelledError):
        await waiting[2]


async def test_what_does_not_come_is_named_with_what_came_instead() -> None:
    observer = RecordingObserver()
    with pytest.raises(TimeoutError, match=r"0 of 1 LinkUp came within 0\.01 s; in all, none"):
        await observer.wait_for(observe.LinkUp, timeout=0.01)
    observer(stopped(1))
    observer(stopped(2))
    with pytest.raises(TimeoutError, match=r"2 of 3 Stopped .* in all, 2 Stopped"):
        await observer.wait_for(observe.Stopped, 3, timeout=0.01)
