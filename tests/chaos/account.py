"""What was sent, and what each receiver was given of it, or told that it may miss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pgnotifybus import Gap, Notification


@dataclass
class Sent:
    """The numbers that a writer has sent, one after the other; the same on every channel."""

    began: dict[int, float] = field(default_factory=dict)
    """When each was begun to be sent, by the monotonic clock."""
    committed: set[int] = field(default_factory=set)
    """Those whose commit was acknowledged; any other may have been sent or not."""

    def since(self, moment: float, last: int) -> set[int]:
        """Those up to one that were begun then or later, and were committed."""
        return {
            number for number in self.committed if number <= last and self.began[number] >= moment
        }


class Received:
    """The books of one receiver."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.parts: list[list[int]] = [[]]
        """The numbers it was given, from gap to gap."""
        self.gaps: list[Gap] = []
        self.skipped = 0
        self._changed = asyncio.Event()

    async def read(self, events: AsyncIterator[Notification | Gap]) -> None:
        """Read until the receiver ends."""
        async for event in events:
            if isinstance(event, Notification):
                if event.payload != "0":  # that is for the crowd
                    self.parts[-1].append(int(event.payload))
            elif event.reason == "lagged":
                self.skipped += event.skipped or 0
                self.parts.append([])
            else:
                self.gaps.append(event)
                self.parts.append([])
            self._changed.set()

    async def until(self, number: int) -> None:
        """Wait until it was given a number."""
        while not (self.parts[-1] and self.parts[-1][-1] >= number):
            self._changed.clear()
            await self._changed.wait()

    def check(self, sent: Sent, generations: list[int], up_at: float, settled: int) -> int:
        """See that everything was given or told, in order; how many are missing in the gaps.

        Args:
            sent: What was sent.
            generations: Those for which there must be a gap, in their order.
            up_at: When the newest link was up: whatever was sent from then on must be here,
            settled: up to this number; what comes behind it may be on its way.
        """
        assert [gap.generation for gap in self.gaps] == generations, self.channel
        assert {gap.channel for gap in self.gaps} <= {self.channel}
        given = [number for part in self.parts for number in part]
        assert given == sorted(set(given)), f"{self.channel}: out of order, or twice"
        assert set(given) <= set(sent.began), f"{self.channel}: what nobody has sent"
        first, last = given[0], given[-1]
        due = {number for number in sent.committed if first <= number <= last}
        missing = due.difference(given)
        # Each missing one lies between the parts, where a gap says so; none within a part.
        for part in self.parts:
            within = [number for number in missing if part and part[0] < number < part[-1]]
            assert not within, f"{self.channel}: lost silently: {within[:5]}"
        unheard = sent.since(up_at, settled).difference(given)
        assert not unheard, f"{self.channel}: sent after the link was up: {sorted(unheard)[:5]}"
        return len(missing)
