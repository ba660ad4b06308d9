"""Faults, subscribers and moments as Hypothesis draws them, on one bus.

Traps 1, 2, 3, 4, 9, 10, 13, 14, 16 and 20, all at once; each has a plain test of its own in the
other files here.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.storm import DYNAMIC, Storm

TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStorm = pytest.mark.timeout(120)(TestStorm)

COMMON = ["listen", "leave", "message", "travel"]
RARE = ["turn", "cancel", "kill", "swap", "refuse", "wait"]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([*COMMON, *COMMON, *COMMON, *RARE]), st.sampled_from(DYNAMIC)),
        min_size=5,
        max_size=40,
    ),
    latency=st.sampled_from([0.0, 0.01]),
)
@settings(
    max_examples=600,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@pytest.mark.timeout(120)
def test_comings_and_goings(steps: list[tuple[str, str]], latency: float) -> None:
    """Traps 4, 14 and 16: within turns of the loop and travel times of a message."""
    storm = Storm()
    try:
        storm.begin(capacity=64, stop_by="event", close_seconds=0.0, settles=True, seconds=0.1)
        storm.server.latency = latency
        storm.run(storm.come_and_go(steps))
        storm.each_link_that_came_up_is_one_generation()
        storm.one_connection()
        storm.every_stream_is_right()
    finally:
        storm.teardown()
