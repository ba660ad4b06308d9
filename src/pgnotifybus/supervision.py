"""The loop that keeps a link up: connect, listen, announce, tend, back off. Layer: supervision."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from pgnotifybus import observe, watch
from pgnotifybus.channels import Channels
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.health import Condition, Failure, Overrun, Phase, judge
from pgnotifybus.core.liveness import Deadline, Liveness
from pgnotifybus.core.subscriptions import Plan
from pgnotifybus.emitting import Emitter, logger
from pgnotifybus.errors import (
    BehindPooler,
    ConnectError,
    FatalLinkError,
    LinkError,
    LinkLost,
    ListenRejected,
    PoolTooSmall,
    ProbeTimeout,
    Standby,
)
from pgnotifybus.links.base import Connector, Link, ServerError, Session
from pgnotifybus.links.failures import connect_failure
from pgnotifybus.pooler import check_delivery, hand_back

T = TypeVar("T")

# LISTEN looks through the session's channels one by one (async.c, up to PostgreSQL 18), so ten
# thousand take a while; the server says nothing meanwhile.
_SECONDS_PER_CHANNEL = 0.002

_LOOK_SECONDS: Final = 1.0
"""The seconds between two looks at receivers that are behind."""

# A link closes within about a second; a pool that gets its connection back may take longer.
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Timing:
    """All times of a bus, in seconds."""

    probe_interval: float | None = 5.0
    probe_timeout: float = 4.0
    connect_timeout: float = 10.0
    start_timeout: float = 30.0
    backoff_initial: float = 0.5
    backoff_maximum: float = 30.0

    def __post_init__(self) -> None:
        for name in ("probe_timeout", "connect_timeout", "start_timeout", "backoff_initial"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, not {getattr(self, name)!r}")
        if self.probe_interval is not None and not self.probe_interval > 0:
            raise ValueError(
                f"probe_interval must be above 0 seconds, or None for no probes, not "
                f"{self.probe_interval!r}"
            )
        if self.backoff_maximum < self.backoff_initial:
            raise ValueError("backoff_maximum must be at least backoff_initial")


@dataclass(slots=True)
class Status:
    """What the supervisor knows about the link; the bus makes its health from it."""

    phase: Phase = "new"
    since: float = 0.0
    """When the condition became what it is."""
    failure: Failure | None = None
    """Why the last link was lost, or the last attempt failed; None once there is one."""
    pid: int | None = None
    """The server process at the other end."""
    server_version: str | None = None
    last_probe_at: float | None = None
    queue_usage: float | None = None
    """How full the notification queue was when the server was last asked, from 0 to 1."""
    reconnects: int = 0
    failed_attempts: int = 0


class Supervisor:
    """Owns the one link of a bus, for as long as `run` runs."""

    def __init__(
        self,
        connector: Connector,
        channels: Channels,
        generation: watch.Sender[int],
        timing: Timing,
        emit: Emitter,
        direct: Connector | None = None,
    ) -> None:
        """Describe it; no I/O.

        Args:
            connector: What makes links.
            channels: Where what they bring goes.
            generation: How many links there have been.
            timing: All times.
            emit: Where to tell what happens.
            direct: What makes links if a pooler turns out to swallow notifications.
        """
        self.status = Status()
        self.condition, _ = watch.channel(Condition("new"))
        self._connector = connector
        self._direct = direct
        self._channels = channels
        self._generation = generation
        self._timing = timing
        self._emit = emit
        self._liveness = Liveness(timing.probe_interval)
        self._skipped: dict[str, int] = {}
        self._standing: dict[str, int] = {}
        self._looked_at = 0.0
        channels.on_traffic = self._look_soon

    async def run(self, *, fail_fast: bool) -> NoReturn:
        """Keep a link up until cancelled.

        Args:
            fail_fast: Raise when the first link cannot be brought up, unless the server says that
                waiting helps and `start_timeout` has not passed.

        Raises:
            ConnectError, FatalLinkError: As `fail_fast` says; and what no server can mend
                (a pool that is too small, a source that brings no connection) always.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        timing = self._timing
        backoff = Backoff(timing.backoff_initial, timing.backoff_maximum)
        while True:
            attempted = loop.time()
            self._enter("connecting")
            up_at: float | None = None
            try:
                link = await self._connect()
                try:
                    await self._listen_to_all(link)
                    up_at = loop.time()
                    self._announce(link, up_at - attempted)
                    await self._tend(link)
                finally:
                    link.flush()
                    self._channels.link_lost()
                    await self._close(link)
            except (LinkError, FatalLinkError) as error:
                if isinstance(error, BehindPooler) and self._turn_to_direct(error):
                    continue
                if self._generation.borrow() == 0 and not self._may_retry(
                    error, fail_fast, loop.time() - started
                ):
                    raise
                if up_at is not None:
                    backoff.lived(loop.time() - up_at)
                self._channels.link_lost()  # forgets wishes that were taken back meanwhile
                delay = backoff.next_delay()
                self._report(error, None if up_at is None else loop.time() - up_at, delay)
            await asyncio.sleep(delay)

    def stopped(self) -> None:
        """Take note that nothing runs any more."""
        self._enter("stopped")
        self.condition.close()

    # -- the steps, in their order ----------------------------------------------------------------

    async def _connect(self) -> Link:
        timeout = self._timing.connect_timeout
        try:
            # Room for several hosts of one DSN: each has the timeout for itself.
            async with asyncio.timeout(3 * timeout):
                return await self._connector.connect("listener", timeout)
        except TimeoutError:
            raise ConnectError(
                f"{self._connector.describe()} did not answer in time: check that nothing between "
                "here and there drops packets, or raise connect_timeout"
            ) from None

    async def _listen_to_all(self, link: Link) -> None:
        """LISTEN to everything that is wanted, in one round trip."""
        self._channels.link_lost()
        plan = self._channels.begin()
        if not plan:
            await self._examine(link, frozenset())
            return
        try:
            await self._bounded(link, link.change(plan.listen, plan.unlisten), len(plan))
        except ServerError as error:
            failure = connect_failure(self._connector.describe(), str(error), error.sqlstate)
            if isinstance(failure, ConnectError) and failure.waiting_helps:
                raise failure from error
            await self._reject_culprit(link, plan.listen)
            raise ListenRejected(f"the server refuses to LISTEN: {error}") from error
        await self._examine(link, frozenset(plan.listen))
        # Only now, in the turn in which the link is announced: who waits gets no gap from before.
        self._channels.acknowledge()

    async def _examine(self, link: Link, expected: frozenset[str]) -> None:
        """Ask for the first time how the session is, and see that it is told what it listens to."""
        self.status.pid = None
        session = await self._inspect(link, expected)
        if session is None or session.pid == link.pid:
            return
        # Not the process that was introduced: there is a pooler, which may be in any mode.
        timeout = self._timing.probe_timeout
        try:
            async with asyncio.timeout(3 * timeout):
                await check_delivery(self._connector, link, timeout)
        except TimeoutError:
            self._emit(observe.DeliveryUnproven("no answer in time"))
        except BehindPooler:
            await hand_back(link)
            raise
        except (LinkError, FatalLinkError, ServerError) as error:
            if link.lost.done():
                raise link.lost.result() from error
            self._emit(observe.DeliveryUnproven(str(error)))

    async def _inspect(self, link: Link, expected: frozenset[str]) -> Session | None:
        """Ask how the session is; None if the server refuses to tell.

        Args:
            link: Which session.
            expected: What it should be listening to.

        Raises:
            LinkError, FatalLinkError: If it is not as it should be.
        """
        try:
            session = await self._bounded(link, link.inspect())
        except ServerError as error:
            # It has answered, so it is there; what it thinks of our session we may not know.
            self._emit(observe.ProbeRefused(self._generation.borrow(), str(error)))
            return None
        where, status = self._connector.describe(), self.status
        if session.in_recovery:
            raise Standby(f"{where} is a standby, which takes no LISTEN")
        if status.pid not in (None, session.pid):
            raise BehindPooler(f"{where} is a pooler: another server process answers than before")
        if missing := expected - session.channels:
            raise LinkLost(
                f"the session no longer listens to {len(missing)} of its channels, among them "
                f"{min(missing)!r}",
                "Has somebody else used this connection, or is there a pooler in between?",
            )
        status.pid, status.queue_usage = session.pid, session.queue_usage
        return session

    async def _reject_culprit(self, link: Link, names: tuple[str, ...]) -> None:
        """Find the channel that the server refuses; those who wait for it must not block others."""
        for name in names:
            try:
                await self._bounded(link, link.change((name,), ()))
            except ServerError as error:
                raise self._channels.reject(name, error) from error

    def _announce(self, link: Link, seconds: float) -> None:
        """Say that there is a new link: first the gap in every ring, then whatever it brings."""
        generation = self._generation.borrow() + 1
        self._channels.announce(generation)
        self._generation.send(generation)
        status = self.status
        status.pid = status.pid or link.pid
        status.server_version = link.server_version
        status.reconnects = generation - 1
        status.failed_attempts = 0
        self._enter("live")
        self._emit(
            observe.LinkUp(
                generation, link.pid, link.server_version, len(self._channels.expected()), seconds
            )
        )
        link.start(
            self._channels.deliver,
            lambda channel, count: self._emit(observe.Undecodable(channel, count)),
            batch=self._channels.batch,
        )

    async def _tend(self, link: Link) -> NoReturn:
        """Keep the server's idea of our channels up to date, and ask when it is silent."""
        loop = asyncio.get_running_loop()
        while True:
            bell = self._channels.bell()
            if plan := self._channels.begin():
                await self._change(link, plan)
                continue
            silence = self._liveness.due_in(loop.time(), link.heard_at)
            if silence == 0:
                await self._probe(link)
                continue
            if self.condition.borrow().state == "lagging":
                look_in = self._looked_at + _LOOK_SECONDS - loop.time()
                if look_in <= 0:
                    self._look()
                    continue
                silence = look_in if silence is None else min(silence, look_in)
            waited_for: set[asyncio.Future[Any]] = {bell, link.lost}
            await asyncio.wait(waited_for, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if link.lost.done():
                raise link.lost.result()

    async def _change(self, link: Link, plan: Plan) -> None:
        try:
            await self._bounded(link, link.change(plan.listen, plan.unlisten), len(plan))
        except ServerError as error:
            rejected = self._channels.refuse(plan, error)
            if plan.unlisten and rejected is not None:
                raise LinkLost(f"the server refuses to UNLISTEN: {error}") from error
            if rejected is not None:
                self._emit(observe.ListenRefused(plan.listen[0], rejected))
        else:
            self._channels.acknowledge()
            self._emit(observe.ChannelsChanged(plan.listen, plan.unlisten))

    async def _probe(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        if await self._inspect(link, self._channels.expected()) is None:
            return
        self.status.last_probe_at = loop.time()
        self._look()
        self._emit(observe.ProbeAnswered(self._generation.borrow(), loop.time() - asked))

    # -- how it is --------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self.status.phase = phase
        if phase == "live":
            self.status.failure = None
        self._judge()

    def _look_soon(self) -> None:
        # Behind those who have just been woken: they may be about to read.
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """See whether receivers keep up, while there is a link."""
        if self.status.phase != "live":
            return
        self._looked_at = asyncio.get_running_loop().time()
        overruns = self._channels.overruns()
        standing = {overrun.channel: overrun.receivers for overrun in overruns}
        skipped = self._channels.skipped()
        for name in dict.fromkeys((*standing, *skipped)):
            receivers, told = standing.get(name, 0), skipped.get(name, 0)
            new = max(0, told - self._skipped.get(name, 0))
            if new or receivers > self._standing.get(name, 0):
                self._emit(observe.ReceiversLagged(name, receivers, new))
        self._standing, self._skipped = standing, skipped
        self._judge(overruns)

    def _judge(self, overruns: Sequence[Overrun] = ()) -> None:
        status, old = self.status, self.condition.borrow()
        new = judge(status.phase, status.failure, overruns, status.queue_usage)
        if new == old:
            return
        if new.state != old.state:
            status.since = asyncio.get_running_loop().time()
        self.condition.send(new)
        if new.state != old.state:
            self._emit(observe.StateChanged(old.state, new.state, new.cause, new.advice))

    # -- what they need ---------------------------------------------------------------------------

    def _turn_to_direct(self, error: BehindPooler) -> bool:
        """Use the server's own address from now on, if it is known and not in use yet."""
        if self._direct is None:
            return False
        self._connector, self._direct = self._direct, None
        self._emit(observe.TurnedToDirect(error))
        return True

    async def _bounded(self, link: Link, statement: Coroutine[Any, Any, T], size: int = 1) -> T:
        """Run a statement; a server that stays silent for too long is held to be dead.

        The deadline is ours and not the server's or the socket's: a server that is stopped, or a
        network that swallows packets, sends nothing that could end the wait.
        """
        loop = asyncio.get_running_loop()
        timeout = self._timing.probe_timeout + size * _SECONDS_PER_CHANNEL
        deadline = Deadline(timeout, loop.time())
        task = loop.create_task(statement)
        try:
            while not task.done():
                if deadline.expired(loop.time(), link.heard_at):
                    raise ProbeTimeout(f"the server has not answered for {timeout:g} s")
                await asyncio.wait({task}, timeout=deadline.remaining(loop.time()))
            return task.result()
        finally:
            if not task.done():
                link.abort()
                task.cancel()
                await asyncio.wait({task})
            # Whatever came of it is no news: somebody is already raising the reason.
            _ = task.cancelled() or task.exception()

    async def _close(self, link: Link) -> None:
        """Close a link; how that goes does not matter to the next one."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await link.close()
        except Exception as error:  # noqa: BLE001 - a pool may raise anything
            logger.debug("closing the link failed: %r", error)

    def _may_retry(
        self, error: LinkError | FatalLinkError, fail_fast: bool, elapsed: float
    ) -> bool:
        """Whether to try again although no link has been up yet."""
        if isinstance(error, PoolTooSmall):
            return False
        if not fail_fast:
            return True
        if not isinstance(error, LinkError):
            return False
        waiting_helps = isinstance(error, ConnectError) and error.waiting_helps
        return waiting_helps and elapsed < self._timing.start_timeout

    def _report(self, error: LinkError | FatalLinkError, lived: float | None, delay: float) -> None:
        self.status.failure = Failure(error.health, error.cause, error.advice)
        self.status.queue_usage = None
        self._enter("down")
        if lived is not None:
            generation = self._generation.borrow()
            self._emit(observe.LinkDown(generation, error, lived, delay))
        else:
            self.status.failed_attempts += 1
            self._emit(observe.ConnectFailed(self.status.failed_attempts, error, delay))
