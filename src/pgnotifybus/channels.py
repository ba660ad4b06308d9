"""The channels of a bus: their rings, who subscribes to them, and where a message goes.
Layer: asyncio over core.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pgnotifybus.broadcast import Shared
from pgnotifybus.core.envelope import NO_STAMP, Content, Reference, all_plain, unpack
from pgnotifybus.core.health import Overrun
from pgnotifybus.core.ring import Placeholder
from pgnotifybus.core.subscriptions import Plan, Subscriptions
from pgnotifybus.errors import Closed, ListenRejected
from pgnotifybus.links.base import ServerError
from pgnotifybus.messages import Gap
from pgnotifybus.subscription import Label

R = TypeVar("R")

_TELL_SECONDS: Final = 1.0

Fetch = Callable[[Shared[str], int, Placeholder, Reference], None]
"""Sees to it that the placeholder at a position of a channel is settled, or lost."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted for channels that were listened to at run time, and have been left."""

    received: int = 0
    deliveries: int = 0
    skipped: int = 0


class Membership:
    """One channel of the bus: its ring, and those who wait until it is listened to."""

    __slots__ = ("claims", "configured", "shared", "waiters")

    def __init__(self, shared: Shared[str], *, configured: bool) -> None:
        self.shared = shared
        self.configured = configured
        self.claims = 0
        """Calls of `listen` that have not returned yet: they want it, but receive nothing yet."""
        self.waiters: dict[asyncio.Future[None], None] = {}

    @property
    def wanted(self) -> bool:
        return self.configured or self.claims > 0 or self.shared.receivers > 0


class Channels:
    """All channels of a bus."""

    def __init__(self, configured: Iterable[str], capacity: int, fetch: Fetch) -> None:
        self._capacity = capacity
        self._fetch = fetch
        self.batch = max(1, capacity // 2)
        """How many messages of a channel to deliver in one turn of the loop: half a ring, so that
        a receiver that is always ready may be a turn late and has still lost nothing."""
        self._channels: dict[str, Membership] = {}
        self._routes: dict[str, Shared[str]] = {}
        self._subscriptions = Subscriptions(self._is_wanted, self._forget)
        self._bell: asyncio.Future[None] | None = None
        self._generation = 0
        self._closed = False
        self.received = 0
        """Notifications that came in, over all links."""
        self.unrouted = 0
        """Of those, the ones for a channel that nobody wants any more."""
        self.last_message_at: float | None = None
        """When the newest of them came, by the clock of the loop."""
        self.on_traffic: Callable[[], None] | None = None
        """Called after messages have come in, about once a second at the most."""
        self.on_timed: Callable[[str, list[float]], None] | None = None
        """Called with the times of sending, in Unix time, of messages that carry one."""
        self._told_at = float("-inf")
        self._former = Totals()
        self._edits = 0
        """Odd while a channel is on its way from the channels to the totals."""
        for name in configured:
            self._add(name, configured=True)

    # -- subscribing ------------------------------------------------------------------------------

    @property
    def configured(self) -> list[str]:
        return [name for name, channel in self._channels.items() if channel.configured]

    def all(self) -> dict[str, Shared[str]]:
        """Every channel there is now."""
        return {name: channel.shared for name, channel in self._channels.items()}

    def account(self) -> tuple[dict[str, Shared[str]], Totals]:
        """Every channel there is now, and what was counted for all that there were before.

        From any thread: a channel that is left meanwhile is in one of them, and not in both.
        """
        while True:
            before = self._edits
            channels, former = self._channels.copy(), self._former
            if before == self._edits and not before % 2:
                return {name: channel.shared for name, channel in channels.items()}, former

    def subscribe(self, name: str, make: Callable[[Shared[str]], R]) -> R | None:
        """A receiver of a configured channel, for what arrives from now on."""
        channel = self._channels.get(name)
        if channel is None or not channel.configured:
            return None
        return make(channel.shared)

    async def listen(self, name: str, make: Callable[[Shared[str]], R]) -> R:
        """A receiver of any channel, once the server listens to it for us.

        Raises:
            ListenRejected: If the server refuses.
            Closed: If the bus ends meanwhile.

        Cancel safety: the claim is taken back.
        """
        if self._closed:
            raise Closed("the bus has ended")
        channel = self._channels.get(name) or self._add(name, configured=False)
        channel.claims += 1
        try:
            if not self._subscriptions.is_live(name):
                self._touch(name)
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                channel.waiters[waiter] = None
                try:
                    await waiter
                finally:
                    channel.waiters.pop(waiter, None)
            # Only now, so that nothing from before, not even a gap, reaches this receiver.
            return make(channel.shared)
        finally:
            channel.claims -= 1
            if not channel.wanted:
                self._touch(name)

    def _add(self, name: str, *, configured: bool) -> Membership:
        on_idle = None if configured else functools.partial(self._left, name)
        shared: Shared[str] = Shared(self._capacity, name, on_idle)
        # Not a gap, as nobody subscribes yet: it tells which generation the first messages are of.
        shared.mark(Gap("reconnected", name, self._generation, None))
        channel = self._channels[name] = Membership(shared, configured=configured)
        return channel

    def _is_wanted(self, name: str) -> bool:
        channel = self._channels.get(name)
        return channel is not None and channel.wanted

    # -- the supervisor's side --------------------------------------------------------------------

    def bell(self) -> asyncio.Future[None]:
        """Done as soon as there may be a new plan; a fresh one at each call after that."""
        if self._bell is None or self._bell.done():
            self._bell = asyncio.get_running_loop().create_future()
        return self._bell

    def begin(self) -> Plan:
        """What to ask the server for now, which the caller does at once.

        From here on nothing is delivered on a channel that is being left, and whoever subscribes
        to it now gets a new ring: what is still in flight is not for them. A message on a channel
        being listened to can only arrive after its LISTEN has committed, so it is let through.
        """
        plan = self._subscriptions.begin()
        for name in plan.unlisten:
            self._routes.pop(name, None)
            self._forget(name)
        for name in plan.listen:
            self._routes[name] = self._channels[name].shared
        return plan

    def acknowledge(self) -> None:
        """The server has done what was begun: those who waited for it may go on."""
        for name in self._subscriptions.acknowledge().listen:
            for waiter in self._channels[name].waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def refuse(self, plan: Plan, error: ServerError) -> ListenRejected | None:
        """The server has done nothing of what was begun.

        Returns:
            What those who waited have been told, if it is certain which channel is refused.
        """
        for name in plan.listen:
            self._routes.pop(name, None)
        culprit = self._subscriptions.refuse()
        return None if culprit is None else self.reject(culprit, error)

    def reject(self, name: str, error: ServerError) -> ListenRejected:
        """The server refuses this channel: tell those who wait for it, so that they give it up."""
        rejected = ListenRejected(f"the server refuses to LISTEN to channel {name!r}: {error}")
        rejected.__cause__ = error
        channel = self._channels.get(name)
        for waiter in channel.waiters if channel is not None else ():
            if not waiter.done():
                waiter.set_exception(rejected)
        return rejected

    def announce(self, generation: int) -> None:
        """A new link listens to everything: put the gap into every ring, before its messages."""
        self._generation = generation
        for name, channel in self._channels.items():
            channel.shared.mark(Gap("reconnected", name, generation, None))

    def link_lost(self) -> None:
        """There is no link: nothing is acknowledged, and everything wanted must be asked for."""
        self._routes.clear()
        # Those whose wish was taken back meanwhile: no plan will come to forget them.
        for name in [name for name, channel in self._channels.items() if not channel.wanted]:
            self._forget(name)
        self._subscriptions.link_lost(self._channels)

    def expected(self) -> frozenset[str]:
        """What the server should be listening to for us."""
        return self._subscriptions.acknowledged

    def deliver(self, name: str, payloads: list[str], pids: list[int]) -> None:
        """Hand on what has arrived on a channel. This is the sink of a link."""
        self.received += len(payloads)
        now = self.last_message_at = asyncio.get_running_loop().time()
        if now - self._told_at >= _TELL_SECONDS and self.on_traffic is not None:
            self._told_at = now
            self.on_traffic()
        shared = self._routes.get(name)
        if shared is None:
            self.unrouted += len(payloads)
        elif all_plain(payloads):
            shared.deliveries += len(payloads) * shared.publish(payloads, pids)
        else:
            self._deliver_unpacked(shared, payloads, pids)

    def close(self) -> None:
        """The bus has ended: receivers drain and then get `Closed`."""
        self._closed = True
        self._routes.clear()
        for channel in self._channels.values():
            channel.shared.close()
            for waiter in channel.waiters:
                if not waiter.done():
                    waiter.set_exception(Closed("the bus has ended"))

    def overruns(self) -> list[Overrun]:
        """Where receivers have lost messages, and have not been told so yet."""
        lost = [(name, channel.shared.overrun()) for name, channel in self._channels.items()]
        return [Overrun(name, len(each), max(each)) for name, each in lost if each]

    def skipped(self) -> dict[str, int]:
        """How many messages receivers have been told they have missed, by channel."""
        shareds = (channel.shared for channel in self._channels.values())
        return {shared.name: shared.skipped for shared in shareds if shared.skipped}

    # -- inside -----------------------------------------------------------------------------------

    def _deliver_unpacked(self, shared: Shared[str], wires: list[str], pids: list[int]) -> None:
        """Deliver what may be in envelopes.

        A payload that lies in the spill table gets a placeholder in its place: what comes behind it
        waits in the ring, where it is bounded, and the link goes on reading.
        """
        values: list[Any] = []
        labels: list[Label] = []
        promised: dict[int, tuple[Placeholder, Reference]] = {}
        sent: list[float] = []
        for wire, pid in zip(wires, pids, strict=True):
            envelope = unpack(wire)
            label: Label = pid
            if envelope is not None and envelope.stamp != NO_STAMP:
                label = (pid, envelope.stamp)
                if envelope.stamp.sent_at is not None:
                    sent.append(envelope.stamp.sent_at)
            match envelope:
                case None:
                    values.append(wire)
                case Content(payload):
                    values.append(payload)
                case Reference():
                    placeholder = Placeholder()
                    promised[len(values)] = placeholder, envelope
                    values.append(placeholder)
            labels.append(label)
        if sent and self.on_timed is not None:
            self.on_timed(shared.name, sent)
        first = shared.ring.tail
        if receivers := shared.publish(values, labels, list(promised)):
            shared.deliveries += len(values) * receivers
            for index, (placeholder, reference) in promised.items():
                self._fetch(shared, first + index, placeholder, reference)

    def _forget(self, name: str) -> None:
        channel = self._channels.get(name)
        if channel is not None and not channel.wanted:
            shared, former = channel.shared, self._former
            self._edits += 1
            del self._channels[name]
            self._former = Totals(
                former.received + shared.ring.tail,
                former.deliveries + shared.deliveries,
                former.skipped + shared.skipped,
            )
            self._edits += 1

    def _touch(self, name: str) -> None:
        self._subscriptions.touch(name)
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _left(self, name: str) -> None:
        """The last receiver is gone: closed, or collected, in whatever thread that happens."""
        self._subscriptions.doubt(name)
        if self._bell is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the bus with it
                self._bell.get_loop().call_soon_threadsafe(self._touch, name)
