"""Reads, accounts, and re-reads the table where a gap says so. Layer: cli."""

from __future__ import annotations

import asyncio

from pgnotifybus.cli.demo.account import Account
from pgnotifybus.cli.demo.shop import Orders, number_of
from pgnotifybus.cli.demo.story import Story
from pgnotifybus.messages import Gap, Notification
from pgnotifybus.subscription import Subscription


class Subscriber:
    """One of those who want to know of every change."""

    def __init__(
        self,
        name: str,
        work: str,
        receiver: Subscription,
        orders: Orders,
        story: Story,
        *,
        pause: float = 0.0,
    ) -> None:
        """Describe a subscriber.

        Args:
            name: What it is called.
            work: What it does, in a few words.
            receiver: Where it reads.
            orders: The table that it reads again after a gap.
            story: Where it tells of gaps.
            pause: The seconds that its work takes, for all that it has read.
        """
        self.name = name
        self.work = work
        self.account = Account()
        self.receiver = receiver
        self.hurry = asyncio.Event()
        """Set to let it do without its pauses."""
        self._orders = orders
        self._story = story
        self._pause = pause
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Read until the bus ends."""
        gaps: list[Gap] = []
        async for event in self.receiver.events():
            match event:
                case Notification():
                    self.account.notification(number_of(event.payload), event.generation)
                case Gap():
                    self.account.gap(event)
                    gaps.append(event)
            self._moved.set()
            if len(self.receiver):
                continue
            # All that is there has been read: now recover, once for all gaps, and do the work.
            if gaps:
                await self._recover(gaps)
                gaps = []
            if self._pause:
                await self._work()

    async def reach(self, number: int) -> None:
        """Wait until a change has been delivered."""
        while self.account.last < number:
            self._moved.clear()
            await self._moved.wait()

    async def _work(self) -> None:
        try:
            await asyncio.wait_for(self.hurry.wait(), self._pause)
        except TimeoutError:
            return

    async def _recover(self, gaps: list[Gap]) -> None:
        # Whatever the missing notifications would have told: the table knows it.
        rows, change = await self._orders.read()
        for gap in gaps:
            again = f" → re-read {rows} orders, change {change}" if gap is gaps[-1] else ""
            if gap.reason == "lagged":
                self._story.add("lag", self.name, f"Gap: too slow, {gap.skipped} skipped{again}")
            else:
                self._story.add("gap", self.name, f"Gap: reconnected{again}")
