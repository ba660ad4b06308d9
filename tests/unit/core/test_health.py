"""One state for whatever is known, and what to do about it."""

from __future__ import annotations

import re

import pytest

from pgnotifybus.core.health import Condition, Failure, Overrun, Phase, judge

REFUSED = Failure("down", "connection refused", "Check host and port")
STANDBY = Failure("standby", "it is a standby", "Connect to the primary")
SILENT = Failure("down", "the server has not answered for 4 s", "")


@pytest.mark.parametrize("phase", ["new", "connecting", "live", "stopped"])
def test_while_nothing_is_wrong_it_is_what_it_is_at(phase: Phase) -> None:
    assert judge(phase, None) == Condition(phase)


@pytest.mark.parametrize("phase", ["down", "connecting"])
@pytest.mark.parametrize("failure", [REFUSED, STANDBY, SILENT])
def test_without_a_link_it_says_why_also_while_it_tries_again(
    phase: Phase, failure: Failure
) -> None:
    """An hour away is one state, and not a change at each attempt."""
    condition = judge(phase, failure)
    assert (condition.state, condition.cause) == (failure.state, failure.cause)
    assert condition.advice is not None
    assert condition.advice.startswith(failure.advice or "Nothing, for now: it is tried again")


def test_what_was_wrong_before_is_no_matter_once_it_is_live_or_has_ended() -> None:
    assert judge("live", REFUSED) == Condition("live")
    assert judge("stopped", REFUSED) == Condition("stopped")


@pytest.mark.parametrize(
    ("overruns", "text"),
    [
        ([Overrun("a", 1, 7)], "1 receiver of 1 channel cannot keep up; on 'a', 7 messages"),
        ([Overrun("a", 2, 7), Overrun("b", 1, 1_234)], "3 receivers of 2 channels .* 'b', 1,234 "),
    ],
)
def test_receivers_that_do_not_keep_up_are_lagging(overruns: list[Overrun], text: str) -> None:
    condition = judge("live", None, overruns)
    assert condition.state == "lagging"
    assert condition.cause is not None
    assert condition.advice is not None
    assert re.search(text, condition.cause)
    assert "recv_many" in condition.advice


@pytest.mark.parametrize(
    ("usage", "state"),
    [(None, "live"), (0.0, "live"), (0.4999, "live"), (0.5, "lagging"), (1.0, "lagging")],
)
def test_a_queue_that_fills_is_of_concern(usage: float | None, state: str) -> None:
    condition = judge("live", None, [], usage)
    assert condition.state == state
    if state == "lagging":
        assert condition.cause is not None
        assert f"{usage:.0%} full" in condition.cause


def test_a_queue_that_fills_is_of_more_concern_than_receivers() -> None:
    """It stops those who send; they cost only themselves."""
    cause = judge("live", None, [Overrun("a", 1, 7)], 0.9).cause
    assert cause is not None
    assert "queue" in cause
