"""What a subscriber reads: notifications, and the gaps between them. Layer: leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GapReason = Literal["lagged", "reconnected"]


@dataclass(frozen=True, slots=True)
class Notification:
    """One message, as the server sent it."""

    channel: str
    payload: str
    pid: int
    """The server process that sent it. Behind a pool it does not say which client that was."""
    generation: int
    """Which link brought it: 1 for the first, one more after each reconnect."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Here something is missing: re-read from the database what it may have told you."""

    reason: GapReason
    """`"lagged"`: this receiver was too slow. `"reconnected"`: the link was lost meanwhile."""
    channel: str
    generation: int
    """Which link brings what comes next."""
    skipped: int | None
    """How many messages: exact for `"lagged"`, None for `"reconnected"`: nobody can know."""
