"""Whether there is so much to tell that somebody should tell it for all. Layer: core.

Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

from typing import Final, Literal

WINDOW: Final = 0.25
"""The seconds over which events are counted."""
BUSY: Final = 16
"""So many notifications in a window, and a pacemaker is cheaper: 64 a second."""
QUIET: Final = 4
"""So few looks that found anything in a window, and it is not."""


class Load:
    """How much there has been in the last window."""

    __slots__ = ("_before", "_count", "_started")

    def __init__(self, now: float) -> None:
        self._started = now
        self._count = 0
        self._before = BUSY

    def note(self, now: float, count: int = 1) -> None:
        """So many came just now."""
        self._turn(now)
        self._count += count

    def busy(self, now: float) -> bool:
        """Whether there were many in this window."""
        self._turn(now)
        return self._count >= BUSY

    def quiet(self, now: float) -> bool:
        """Whether there were few in this window and the one before."""
        self._turn(now)
        return self._before + self._count < QUIET

    def _turn(self, now: float) -> None:
        if now - self._started >= WINDOW:
            gone = now - self._started >= 2 * WINDOW
            self._before = 0 if gone else self._count
            self._count = 0
            self._started = now


Belief = Literal["asleep", "awake", "draining"]
"""What is known of the pacemaker: none, one whom writers trust, one that ends."""


def check_after(belief: Belief, seconds: float) -> float:
    """How long to wait, in silence, before looking oneself and trying to take over.

    Args:
        belief: What is known of the pacemaker.
        seconds: For how long it has been so.
    """
    match belief:
        case "asleep":
            return float("inf")
        case "awake":
            return 1.0
        case "draining":  # for as long as the longest transaction lives: less and less often
            return min(max(1.0, seconds / 10), 90.0)
