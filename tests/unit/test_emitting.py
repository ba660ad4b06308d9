"""Who is told what happens, and that none of them can disturb another."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pgnotifybus import observe
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import ConnectError

STOPPED = observe.Stopped(3)


def test_one_observer_several_or_none() -> None:
    one: list[observe.Event] = []
    two: list[observe.Event] = []
    Emitter(None)(STOPPED)
    Emitter(one.append)(STOPPED)
    Emitter([one.append, two.append])(STOPPED)
    Emitter(iter([two.append]))(STOPPED)
    assert (one, two) == ([STOPPED] * 2, [STOPPED] * 2)


def test_one_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told: list[observe.Event] = []

    def broken(event: observe.Event) -> None:
        raise RuntimeError("it is broken")

    Emitter([broken, told.append, broken, told.append])(STOPPED)
    assert told == [STOPPED] * 2
    failed = [record for record in caplog.records if record.levelno == logging.ERROR]
    said = [record.getMessage() for record in failed]
    assert said == ["the observer failed on Stopped(generation=3)"] * 2


def test_one_is_added_and_removed() -> None:
    told: list[observe.Event] = []
    emit = Emitter()
    observed = [emit.observed]
    remove, other = emit.add(told.append), emit.add(told.append)
    observed.append(emit.observed)
    emit(STOPPED)
    assert len(told) == 2
    remove()
    remove()
    emit(STOPPED)
    assert len(told) == 3
    other()
    observed.append(emit.observed)
    assert observed == [False, True, False]


def test_one_may_remove_itself_when_it_is_told() -> None:
    told: list[str] = []
    emit = Emitter()

    def once(event: observe.Event) -> None:
        told.append("once")
        remove()

    remove = emit.add(once)
    emit.add(lambda event: told.append("always"))
    emit(STOPPED)
    emit(STOPPED)
    assert told == ["once", "always", "always"]


@pytest.mark.parametrize("wrong", [1, [1], [print, None]])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"something to call with an event, not (int|NoneType)"):
        Emitter(wrong)
    with pytest.raises(TypeError, match="something to call with an event"):
        Emitter().add(wrong)


def test_the_same_again_is_for_who_debugs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    now = 0.0
    emit = Emitter(clock=lambda: now)
    for attempt, text in enumerate(["refused", "no route"] * 3, start=1):
        emit(observe.ConnectFailed(attempt, ConnectError(text), 1.0))
    # Something else that fails in the same words is something else.
    emit(observe.PublishDelayed(ConnectError("refused"), 1, 1.0))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING"] * 2 + ["DEBUG"] * 4 + ["WARNING"]
    caplog.clear()
    emit(observe.LinkUp(1, 42, "18.0", 1, 0.1))
    emit(observe.ConnectFailed(1, ConnectError("refused"), 1.0))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    now = 3600.0
    emit(observe.ConnectFailed(1, ConnectError("refused"), 1.0))
    assert caplog.records[-1].levelname == "WARNING"
