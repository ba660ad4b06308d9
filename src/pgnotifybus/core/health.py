"""How a bus is: one state, why, and what to do. Layer: core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

State = Literal[
    "new", "connecting", "live", "lagging", "standby", "behind a pooler", "down", "stopped"
]
STATES: Final[tuple[State, ...]] = get_args(State)

Phase = Literal["new", "connecting", "live", "down", "stopped"]
"""What the supervisor is at."""

QUEUE_WARNING: Final = 0.5
"""The share of the server's notification queue from which on it is a matter of concern. Full, every
transaction that notifies fails. Source: https://www.postgresql.org/docs/current/sql-notify.html"""

_PATIENCE: Final = (
    "Nothing, for now: it is tried again by itself, and receivers are told of the gap. If it "
    "lasts, or happens often, look for the reason in the server's log, and in what is in between"
)


class Failure(NamedTuple):
    """Why there is no link."""

    state: State
    cause: str
    advice: str


class Overrun(NamedTuple):
    """A channel whose messages have been overwritten before somebody has read them."""

    channel: str
    receivers: int
    """How many of its receivers stand at a message that is gone."""
    skipped: int
    """How many messages the one that is furthest behind has lost by now."""


class Condition(NamedTuple):
    """How a bus is."""

    state: State
    cause: str | None = None
    advice: str | None = None


def judge(
    phase: Phase,
    failure: Failure | None,
    overruns: Sequence[Overrun] = (),
    queue_usage: float | None = None,
) -> Condition:
    """Say how a bus is.

    Args:
        phase: What the supervisor is at. While it connects again it is as it was before.
        failure: Why the last link was lost, or the last attempt failed; None if none has.
        overruns: What receivers have lost, and do not know yet.
        queue_usage: How full the server's notification queue is, from 0 to 1; None if not known.
    """
    if phase in ("connecting", "down") and failure is not None:
        return Condition(failure.state, failure.cause, failure.advice or _PATIENCE)
    if phase != "live":
        return Condition(phase)
    if queue_usage is not None and queue_usage >= QUEUE_WARNING:
        return Condition(
            "lagging",
            f"the server's notification queue is {queue_usage:.0%} full: some session of this "
            "server listens and does not read, or stays in a transaction",
            "Find it in pg_stat_activity (idle in transaction, or wait_event ClientWrite) and end "
            "it: once the queue is full, every transaction that notifies fails",
        )
    if overruns:
        worst = max(overruns, key=lambda overrun: overrun.skipped)
        receivers = sum(overrun.receivers for overrun in overruns)
        return Condition(
            "lagging",
            f"{receivers} receiver{'' if receivers == 1 else 's'} of {len(overruns)} channel"
            f"{'' if len(overruns) == 1 else 's'} cannot keep up; on {worst.channel!r}, "
            f"{worst.skipped:,} messages were overwritten unread",
            "Read in batches (recv_many), raise capacity=, or close receivers that nobody reads",
        )
    return Condition("live")
