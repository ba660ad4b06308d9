"""What a subscriber reads: notifications, and the gaps between them. Layer: leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal

if TYPE_CHECKING:
    # Type checkers know it without its being installed: a plain `Notification` is one of `str`.
    from typing_extensions import TypeVar

    P = TypeVar("P", default=str)
else:
    from typing import TypeVar

    P = TypeVar("P")

GapReason = Literal["lagged", "reconnected", "expired", "unreadable", "epoch"]


@dataclass(frozen=True, slots=True)
class Notification(Generic[P]):
    """One message, as the server sent it, or decoded on a typed channel."""

    channel: str
    payload: P
    pid: int
    """The server process that sent it. Behind a pool it does not say which client that was."""
    generation: int
    """Which link brought it: 1 for the first, one more after each reconnect."""
    origin: str | None = None
    """Who sent it, if its envelope says so; compare it with `PgNotifyBus.origin`."""
    sent_at: float | None = None
    """When it was sent, if its envelope says so: Unix time in seconds, by the sender's clock."""
    traceparent: str | None = None
    """The W3C trace context of the sender, if its envelope says so."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Here something is missing: re-read from the database what it may have told you."""

    reason: GapReason
    """`"lagged"`: this receiver was too slow. `"reconnected"`: the link was lost meanwhile.
    `"expired"`, `"unreadable"`: the payload of one message, which lay in the spill table, is no
    longer there, or could not be fetched. From an event log, `"expired"`: retention has deleted
    what came next; `"epoch"`: the cursor was of another log, what lies between nobody knows."""
    channel: str
    generation: int
    """Which link brings what comes next."""
    skipped: int | None
    """How many messages: None for `"reconnected"`, as nobody can know; exact for the others."""
