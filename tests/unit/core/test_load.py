"""When a pacemaker is worth it, and when to look oneself."""

from __future__ import annotations

import pytest

from pgnotifybus.core.load import BUSY, QUIET, WINDOW, Belief, Load, check_after


def test_it_is_busy_with_many_in_one_window() -> None:
    load = Load(10.0)
    for number in range(BUSY):
        assert not load.busy(10.0 + number * WINDOW / BUSY / 2)
        load.note(10.0 + number * WINDOW / BUSY / 2)
    assert load.busy(10.0 + 0.9 * WINDOW)
    assert not load.busy(10.0 + WINDOW)


def test_many_over_a_long_time_are_not_busy() -> None:
    load = Load(0.0)
    for number in range(10 * BUSY):
        load.note(number * 2 * WINDOW / BUSY)
        assert not load.busy(number * 2 * WINDOW / BUSY)


def test_it_is_quiet_after_two_windows_with_few() -> None:
    load = Load(0.0)
    assert not load.quiet(0.5 * WINDOW)  # it has only begun
    assert load.quiet(WINDOW + 0.01 - 0.01 + WINDOW)
    load.note(2 * WINDOW, QUIET)
    assert not load.quiet(2.5 * WINDOW)
    assert not load.quiet(3.1 * WINDOW)  # they were in the window before
    assert load.quiet(5.0 * WINDOW)


def test_a_long_pause_empties_both_windows() -> None:
    load = Load(0.0)
    load.note(0.1, 100)
    assert load.quiet(100.0)
    assert not load.busy(100.0)


@pytest.mark.parametrize(
    ("belief", "seconds", "expected"),
    [
        ("asleep", 0.0, float("inf")),
        ("awake", 1e6, 1.0),
        ("draining", 0.0, 1.0),
        ("draining", 100.0, 10.0),
        ("draining", 1e6, 90.0),
    ],
)
def test_when_to_look_oneself(belief: Belief, seconds: float, expected: float) -> None:
    assert check_after(belief, seconds) == expected
