"""Is the server still there? When to ask, and how long to wait for the answer. Layer: core.

Both take the time from outside. Silence is what counts: a link on which something arrives needs no
probe, and a server that is busy sending is not dead however late its answer comes.
"""

from __future__ import annotations

from typing import Final

_GRAIN: Final = 0.001
"""The shortest wait, in seconds: one that a float cannot add to a clock would never end."""

_LATE: Final = 0.5
"""A timer that fires this many seconds late says that the loop was blocked, not that the server
was silent: its answer may be lying unread in the socket."""

_PATIENCE: Final = 6
"""An answer may take this many timeouts, if other things keep arriving meanwhile."""


class Liveness:
    """When a probe is due."""

    __slots__ = ("interval",)

    def __init__(self, interval: float | None) -> None:
        """Describe the probes.

        Args:
            interval: The seconds of silence after which to probe; None for never.
        """
        self.interval = interval

    def due_in(self, now: float, heard_at: float) -> float | None:
        """The seconds until a probe is due, 0 if it is; None for never."""
        if self.interval is None:
            return None
        remaining = heard_at + self.interval - now
        return remaining if remaining > _GRAIN else 0.0


class Deadline:
    """How long an answer may take."""

    __slots__ = ("_at", "_latest", "_timeout")

    def __init__(self, timeout: float, now: float) -> None:
        """Start waiting.

        Args:
            timeout: The seconds of silence that are too long.
            now: The time of the question.
        """
        self._timeout = timeout
        self._at = now + timeout
        self._latest = now + timeout * _PATIENCE

    def remaining(self, now: float) -> float:
        """The seconds until it is worth asking whether it has expired."""
        return max(_GRAIN, self._at - now)

    def expired(self, now: float, heard_at: float) -> bool:
        """Whether the answer is overdue; if not, `remaining` says when to ask again."""
        if now < self._at:
            return False
        if now - self._at > _LATE:
            # We were not there to hear it: start again. A loop that is blocked again and again
            # is waited for again and again; the server must not be blamed for it.
            blocked = now - self._at
            self._at = now + self._timeout
            self._latest += blocked + self._timeout
            return False
        self._at = min(heard_at + self._timeout, self._latest)
        return now >= self._at
