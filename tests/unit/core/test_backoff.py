"""The delays between attempts to connect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pgnotifybus.core.backoff import Backoff


def plain(**options: Any) -> Backoff:
    """A backoff without chance."""
    return Backoff(jitter=0, **options)


def test_the_delays_double_up_to_the_maximum() -> None:
    """The seed's figures: 0.5 s doubling to 30 s."""
    backoff = plain()
    assert [backoff.next_delay() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_maximum_that_is_the_initial_delay_is_a_constant_delay() -> None:
    backoff = plain(initial=2, maximum=2)
    assert [backoff.next_delay() for _ in range(3)] == [2, 2, 2]


def test_weeks_into_an_outage_the_delay_is_still_the_maximum() -> None:
    """A float overflows at 2**1024, and an exception would end the reconnecting."""
    backoff = plain()
    delays = {backoff.next_delay() for _ in range(5000)}
    assert max(delays) == 30
    assert backoff.next_delay() == 30


@pytest.mark.parametrize(
    ("chance", "part"), [(lambda: 0.0, 1.0), (lambda: 0.5, 0.875), (lambda: 1.0, 0.75)]
)
def test_the_jitter_shortens_and_never_lengthens(chance: Callable[[], float], part: float) -> None:
    """A fleet comes back spread out, and no delay is longer than documented."""
    backoff = Backoff(jitter=0.25, random=chance)
    nominal = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [backoff.next_delay() for _ in nominal] == [delay * part for delay in nominal]


def test_by_default_chance_is_asked_each_time() -> None:
    delays = [Backoff().next_delay() for _ in range(50)]
    assert len(set(delays)) > 1
    assert all(0.25 <= delay <= 0.5 for delay in delays)
    assert max(delays) - min(delays) > 0.15  # of 50, one in a million times they are closer


def test_full_jitter_never_waits_less_than_nothing() -> None:
    backoff = Backoff(jitter=1, random=lambda: math.nextafter(1, 0))
    assert all(backoff.next_delay() >= 0 for _ in range(20))


def test_only_a_link_that_proved_healthy_resets_the_delays() -> None:
    """Trap 9: a server that accepts and drops at once is not hit at the shortest delay for ever."""
    backoff = plain(healthy_after=5)
    for _ in range(3):
        backoff.next_delay()
    backoff.lived(4.99)
    assert backoff.next_delay() == 4
    backoff.lived(5)
    assert [backoff.next_delay() for _ in range(2)] == [0.5, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"initial": 0},
        {"initial": -1},
        {"initial": 31},
        {"initial": math.nan},
        {"maximum": 0.1},
        {"maximum": math.nan},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": math.nan},
        {"healthy_after": -1},
        {"healthy_after": math.nan},
    ],
)
def test_figures_outside_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"initial|jitter|healthy_after"):
        Backoff(**options)
