"""What one receiver was promised, held against what it got."""

from __future__ import annotations

from bisect import bisect
from itertools import pairwise

from pgnotifybus import Closed, Gap, Notification
from pgnotifybus.subscription import Subscription
from simulation.server import SimulatedServer

Item = Notification | Gap


class Account:
    """Reads a receiver, and checks the invariants of its stream against the server's record."""

    def __init__(
        self, server: SimulatedServer, receiver: Subscription, channel: str, generation: int
    ) -> None:
        """Start when the receiver has just been made.

        Args:
            server: Where its messages come from.
            receiver: The receiver; dropping the account drops it.
            channel: Which channel it is of.
            generation: The generation when it was made.
        """
        self.receiver = receiver
        self.channel = channel
        self.items: list[Item] = []
        self.ended = False
        self._server = server
        self._generation = generation
        self._promised_from = len(server.commits)
        self._arrivals_before = len(server.arrivals)
        up = [link for link in server.links if link.starts]
        self._possible_from = up[-1].listening.get(channel, 0) if up else 0

    async def collect(self) -> None:
        """Read until the channel ends, as a task of its own."""
        async for item in self.receiver.events():
            self.items.append(item)
        self.ended = True

    async def read(self, limit: int | None = None) -> None:
        """Read what is there, without waiting for more."""
        events = self.receiver.events()
        while limit is None or limit > 0:
            step = events.__anext__()
            try:
                step.send(None)
            except StopIteration as got:
                self.items.append(got.value)
                limit = None if limit is None else limit - 1
            except StopAsyncIteration:
                self.ended = True
                return
            else:
                step.close()  # it waits
                return

    # -- the invariants ---------------------------------------------------------------------------

    def check(self, generations: dict[int, int], *, settled: bool) -> None:
        """Check everything that was read.

        Args:
            generations: The generation of each link that came up, by its PID.
            settled: Whether nothing is under way: the link is up, and everything has been read.
        """
        self._check_order()
        self._check_gaps(max(generations.values(), default=0), settled=settled)
        self._check_losses(settled=settled)
        self._check_accounting(generations, read_all=settled or self.ended)

    @property
    def numbers(self) -> list[int]:
        return [int(item.payload) for item in self.items if isinstance(item, Notification)]

    def _check_order(self) -> None:
        """A subsequence of what committed on the channel, none from before its LISTEN."""
        numbers = self.numbers
        assert all(a < b for a, b in pairwise(numbers)), f"order: {self.items}"
        assert all(self._server.commits[n].channel == self.channel for n in numbers)
        assert all(item.channel == self.channel for item in self.items)
        assert all(n >= self._possible_from for n in numbers), f"of an earlier LISTEN: {self.items}"

    def _check_gaps(self, generation: int, *, settled: bool) -> None:
        """Between two links, and nowhere else, a gap that tells the newer one's generation."""
        before = max(self._generation, 1)
        gaps: list[int] = []
        for item in self.items:
            if isinstance(item, Gap):
                if item.reason == "reconnected":
                    assert item.generation > (gaps[-1] if gaps else before), f"gap: {self.items}"
                    gaps.append(item.generation)
                continue
            assert (gaps[-1] if gaps else before) == item.generation, f"gap: {self.items}"
            before, gaps = item.generation, []
        if settled:
            assert (gaps[-1] if gaps else before) == generation, f"no last gap: {self.items}"

    def _check_losses(self, *, settled: bool) -> None:
        """What was promised and did not come has a gap where it should have been."""
        gaps = [False]
        for item in self.items:
            if isinstance(item, Gap):
                gaps[-1] = True
            else:
                gaps.append(False)
        if not settled:
            gaps[-1] = True  # it may be under way, or the gap may be
        numbers = self.numbers
        got = set(numbers)
        for commit in self._server.commits[self._promise() :]:
            if commit.channel == self.channel and commit.number not in got:
                assert gaps[bisect(numbers, commit.number)], f"{commit} is lost: {self.items}"

    def _promise(self) -> int:
        if self._generation > 0:
            return self._promised_from
        # Before the first link is up nothing is promised.
        up = [link.listening.get(self.channel) for link in self._server.links if link.starts]
        first = up[0] if up else None
        return len(self._server.commits) if first is None else max(first, self._promised_from)

    def _check_accounting(self, generations: dict[int, int], *, read_all: bool) -> None:
        """Delivered + skipped = what the links handed on since it subscribed."""
        arrived = {
            arrival.number: generations[arrival.pid]
            for arrival in self._server.arrivals[self._arrivals_before :]
            if arrival.channel == self.channel
        }
        for item in self.items:
            if isinstance(item, Notification):
                assert arrived[int(item.payload)] == item.generation
        if read_all:
            skipped = sum(item.skipped or 0 for item in self.items if isinstance(item, Gap))
            assert len(self.numbers) + skipped == len(arrived), f"account: {self.items}"


def drained(receiver: Subscription) -> list[str]:
    """What is unread, and then it must be closed."""
    payloads = []
    while True:
        try:
            payloads.append(receiver.try_recv())
        except Closed:
            return payloads
