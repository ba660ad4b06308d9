"""When to ask whether the server is there, and how long to wait for its answer."""

from __future__ import annotations

import pytest

from pgnotifybus.core.liveness import Deadline, Liveness

# -- when a probe is due --------------------------------------------------------------------------


def test_a_probe_is_due_after_silence_only() -> None:
    """Trap 35: a link on which something arrives needs none."""
    liveness = Liveness(5)
    assert liveness.due_in(now=100, heard_at=100) == 5
    assert liveness.due_in(now=104, heard_at=100) == 1
    assert liveness.due_in(now=104, heard_at=103) == 4
    assert liveness.due_in(now=105, heard_at=100) == 0
    assert liveness.due_in(now=999, heard_at=100) == 0


def test_without_an_interval_no_probe_is_ever_due() -> None:
    """Trap 12."""
    assert Liveness(None).due_in(now=1e9, heard_at=0) is None


# -- how long an answer may take ------------------------------------------------------------------


def test_silence_for_the_timeout_is_too_long() -> None:
    deadline = Deadline(4, now=100)
    assert deadline.remaining(101) == 3
    assert not deadline.expired(103.99, heard_at=99)
    assert deadline.expired(104, heard_at=99)


@pytest.mark.parametrize("heard_at", [0, 99, 100])
def test_what_was_heard_before_the_question_counts_nothing(heard_at: float) -> None:
    assert Deadline(4, now=100).expired(104, heard_at=heard_at)


def test_a_server_that_is_busy_sending_is_not_dead() -> None:
    """Its answer stands behind all that it sends first."""
    deadline = Deadline(4, now=100)
    assert not deadline.expired(104, heard_at=103)
    assert deadline.remaining(104) == 3
    assert deadline.expired(107, heard_at=103)


def test_patience_ends_after_six_timeouts() -> None:
    """Something arrives all the time, but never the answer: the statement is lost."""
    deadline = Deadline(4, now=100)
    now, asked = 100.0, 0
    while not deadline.expired(now, heard_at=now):
        now += deadline.remaining(now)
        asked += 1
        assert asked < 50
    assert now == 124


def test_a_loop_that_was_blocked_gives_the_answer_its_time_again() -> None:
    """Trap 8: the timer comes late, so the answer may lie in the socket unread."""
    deadline = Deadline(4, now=100)
    assert not deadline.expired(134, heard_at=99)
    assert deadline.remaining(134) == 4
    assert deadline.expired(138, heard_at=99), "it was there this time, and heard nothing"


def test_a_timer_that_is_a_little_late_is_no_blocked_loop() -> None:
    assert Deadline(4, now=100).expired(104.5, heard_at=99)
    assert not Deadline(4, now=100).expired(104.6, heard_at=99)


def test_being_blocked_again_and_again_is_never_held_against_the_server() -> None:
    """Also not by the end of patience, which moves by what was missed."""
    deadline = Deadline(4, now=100)
    now = 100.0
    for _ in range(20):
        now += deadline.remaining(now) + 10
        assert not deadline.expired(now, heard_at=99)
    assert deadline.expired(now + 4, heard_at=99)


def test_to_be_asked_early_changes_nothing() -> None:
    deadline = Deadline(4, now=100)
    for _ in range(10):
        assert not deadline.expired(102, heard_at=102)
    assert deadline.remaining(102) == 2
