"""The writer, the one who kills connections, and the orderly end. Layer: cli."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from pgnotifybus import observe
from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.cli.demo.shop import Orders, Shop
from pgnotifybus.cli.demo.story import Story
from pgnotifybus.cli.demo.subscriber import Subscriber
from pgnotifybus.cli.demo.summary import Result, Summary
from pgnotifybus.errors import PgNotifyBusError
from pgnotifybus.links.sources import Driver

# A burst fits into the ring, so that those who are quick never lag; what comes in the time that
# the report takes does not.
CAPACITY: Final = 256
BURST: Final = 200
PAUSE: Final = 3.0  # seconds that the report takes

_PER_SECOND: Final = 50
_FIRST_BURST: Final = 1.2  # seconds
_BURST_EVERY: Final = 4.0
_FIRST_KILL: Final = 2.0
# A link that has lived for 5 s counts as healthy, and so the next outage is as short as this one.
_KILL_EVERY: Final = 5.2
_NO_KILL_BEFORE_END: Final = 1.5
_SETTLE: Final = 30.0  # seconds for a link that is down at the end
_CLOSING: Final = 2.0  # seconds for the last change to arrive


class Show:
    """One run of the demo, and what can be seen of it."""

    def __init__(
        self, dsn: str, shop: Shop, story: Story, *, driver: Driver | None, seconds: float | None
    ) -> None:
        """Describe a run; no I/O.

        Args:
            dsn: The server.
            shop: The schema on it.
            story: Where to tell what happens.
            driver: How the bus connects.
            seconds: When it ends by itself; None for never.
        """
        self.stop = asyncio.Event()
        """Set to end it in an orderly way."""
        self.story = story
        self.shop = shop
        self.seconds = seconds
        self.kills = 0
        self.link: observe.LinkUp | None = None
        self.subscribers: list[Subscriber] = []
        self.orders = Orders(shop)
        self.bus = PgNotifyBus(
            dsn, [shop.channel], capacity=CAPACITY, driver=driver, observer=self._observe
        )
        self._driver = driver or ("asyncpg" if "+asyncpg:" in dsn else "psycopg")
        self._up = asyncio.Event()

    async def run(self) -> Summary:
        """Run until the time is over or `stop` is set.

        Raises:
            ConnectError, FatalLinkError: If there is no connection at the start.
            CommandFailed: If the demo's own connections fail.

        Cancel safety: it ends, and leaves nothing running.
        """
        self._subscribe()
        try:
            async with self.orders, asyncio.TaskGroup() as tasks:
                async with self.bus:
                    for subscriber in self.subscribers:
                        tasks.create_task(subscriber.run())
                    work = [tasks.create_task(self._write()), tasks.create_task(self._kill())]
                    await self._stopped_within(self.seconds)
                    self.stop.set()
                    await asyncio.wait(work)
                    settled = await self._settle()
        except* PgNotifyBusError as group:
            failure = _first(group)
        else:
            return self._summary(settled)
        raise failure

    # -- what goes on -----------------------------------------------------------------------------

    def _subscribe(self) -> None:
        for name, work, pause in (
            ("cache", "forgets what changed", 0.0),
            ("jobs", "starts work", 0.0),
            ("report", f"slow: {PAUSE:g} s a page", PAUSE),
        ):
            receiver = self.bus.subscribe(self.shop.channel)
            assert receiver is not None
            self.subscribers.append(
                Subscriber(name, work, receiver, self.orders, self.story, pause=pause)
            )

    async def _write(self) -> None:
        """Change orders, one transaction at a time, also while the link is down."""
        loop = asyncio.get_running_loop()
        burst_at = loop.time() + _FIRST_BURST
        due = loop.time()
        while not self.stop.is_set():
            if loop.time() >= burst_at:
                burst_at += _BURST_EVERY
                await self.orders.place(BURST)
                self.story.add("burst", "writer", f"{BURST} orders in one transaction")
            elif self.orders.sent % 3 == 0:
                await self.orders.place()
            else:
                await self.orders.advance()
            # A slow server makes the pace, and there is no catching up with it.
            due = max(due + 1 / _PER_SECOND, loop.time())
            await self._stopped_within(due - loop.time())

    async def _kill(self) -> None:
        """Every so often, end the server process that the bus listens with."""
        delay = _FIRST_KILL
        generation = self.bus.subscribe_reconnects()
        while not await self._stopped_within(delay):
            if self.seconds is not None and self._seconds_left() < _NO_KILL_BEFORE_END:
                return
            delay = _KILL_EVERY
            if self.link is None or not self._up.is_set():
                continue
            before = generation.borrow_and_update()
            self.story.add("kill", "demo", f"pg_terminate_backend({self.link.pid}): the listener")
            if not await self.orders.terminate_listener(self.link.pid):
                self.story.add(
                    "fault", "demo", "there is no such listener: is a pooler in between?"
                )
                continue
            self.kills += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(generation.wait_for(before.__lt__), _SETTLE)

    async def _settle(self) -> bool:
        """Let everybody read all there is; whether that worked.

        A last change is sent behind all others: who has it has nothing in flight any more. It is
        sent again if it fell into a gap itself.
        """
        for subscriber in self.subscribers:
            subscriber.hurry.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE
        while (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._up.wait(), left)
                await self.orders.place()
                async with asyncio.timeout(_CLOSING):
                    for subscriber in self.subscribers:
                        await subscriber.reach(self.orders.sent)
            except TimeoutError:
                continue
            return True
        return False

    # -- what they need ---------------------------------------------------------------------------

    async def _stopped_within(self, seconds: float | None) -> bool:
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _seconds_left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - self.story.seconds

    def _observe(self, event: observe.Event) -> None:
        match event:
            case observe.LinkUp():
                self.link = event
                self._up.set()
                self.story.add(
                    "start" if event.generation == 1 else "up",
                    "link",
                    f"up: generation {event.generation}, PID {event.pid}, "
                    f"{event.seconds * 1000:.0f} ms",
                )
            case observe.LinkDown():
                self._up.clear()
                self.story.add("down", "link", f"lost; connecting again in {event.retry_in:.1f} s")
            case observe.ConnectFailed():
                self.story.add("fault", "link", f"{event.error}; again in {event.retry_in:.1f} s")

    def _summary(self, settled: bool) -> Summary:
        return Summary(
            server_version=self.link.server_version if self.link else "",
            driver=self._driver,
            seconds=self.story.seconds,
            generations=self.bus.health().generation,
            kills=self.kills,
            sent=self.orders.sent,
            settled=settled,
            receivers=tuple(self._result(each) for each in self.subscribers),
        )

    def _result(self, subscriber: Subscriber) -> Result:
        account = subscriber.account
        library = subscriber.receiver.statistics()
        return Result(
            name=subscriber.name,
            sent=self.orders.sent,
            delivered=account.delivered,
            skipped=account.skipped,
            missed=account.missed,
            unread=library.unread,
            lost=account.lost,
            gaps=account.gaps,
            agrees=(library.delivered, library.skipped) == (account.delivered, account.skipped),
        )


def _first(group: BaseExceptionGroup[PgNotifyBusError]) -> PgNotifyBusError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
