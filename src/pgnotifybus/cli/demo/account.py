"""What one subscriber got, and how the rest is explained. Layer: cli.

The writer numbers its changes 1, 2, 3 ... in the order in which they commit, and every
notification carries its number. So what is missing is measured and not inferred: it is the hole
between the numbers of two notifications that follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgnotifybus.messages import Gap


@dataclass(slots=True)
class Account:
    """The numbers of one subscriber."""

    delivered: int = 0
    skipped: int = 0
    """What the gaps of reason `"lagged"` said; exact."""
    missed: int = 0
    """Holes across a gap of reason `"reconnected"`, less what was skipped there."""
    lost: int = 0
    """What no gap explains: it must stay 0."""
    gaps: int = 0
    last: int = 0
    """The number of the newest notification that was delivered."""
    generation: int = 1
    """Which link brought what came last."""
    _skipped_since: int = 0
    _reconnected_since: bool = False

    @property
    def explained(self) -> int:
        """How many of the changes up to now are accounted for."""
        return self.delivered + self.skipped + self.missed

    @property
    def unsettled(self) -> bool:
        """Whether a gap has been read, and not yet what comes behind it."""
        return self._reconnected_since

    def notification(self, number: int, generation: int) -> None:
        """Take note of a notification."""
        hole = number - self.last - 1 - self._skipped_since
        if self._reconnected_since and hole > 0:
            self.missed += hole
        else:
            # Also one that comes twice, or too early, or a gap that claims too much.
            self.lost += abs(hole)
        self.delivered += 1
        self.last = number
        self.generation = generation
        self._skipped_since = 0
        self._reconnected_since = False

    def gap(self, gap: Gap) -> None:
        """Take note of a gap."""
        self.gaps += 1
        if gap.reason == "lagged":
            skipped = gap.skipped or 0
            self.skipped += skipped
            self._skipped_since += skipped
        else:
            self._reconnected_since = True
            self.generation = gap.generation
