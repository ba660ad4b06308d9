"""Doing what the pacemaker's core decides: over a connection of its own, while there is one.
Layer: log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final, TypeVar

from pgnotifybus import observe
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.load import Belief, Load
from pgnotifybus.core.names import literal, log_channel
from pgnotifybus.core.pacemaker import REST, Pacemaker, Stage
from pgnotifybus.core.position import Instant
from pgnotifybus.core.snapshot import Snapshot
from pgnotifybus.database.plans import Plans
from pgnotifybus.database.queries import run
from pgnotifybus.emitting import Emitter
from pgnotifybus.errors import LinkLost, PgNotifyBusError
from pgnotifybus.links.base import Connector, Link, ServerError, discard
from pgnotifybus.log.here import look
from pgnotifybus.log.newer import newer, parameter
from pgnotifybus.log.wakes import Wakes
from pgnotifybus.log.words import announce, found
from pgnotifybus.schema.ddl import awake_lock

T = TypeVar("T")

POLL: Final = 0.008
"""The seconds between two looks while awake."""
_STATEMENT: Final = 4.0
"""The seconds that a statement may take."""
# A pacemaker that the network has cut off must not keep writers quiet: the server ends its session.
_SILENCE: Final = """\
SELECT pg_catalog.set_config(name, '{milliseconds}', false) FROM pg_catalog.pg_settings
 WHERE name = 'idle_session_timeout'"""  # PostgreSQL 14 and later
_AWAKE_SILENCE: Final = 2_000
_LONGEST_PAUSE: Final = 30.0

_CHANNELS: Final = """\
SELECT NULL::text, pg_catalog.pg_current_snapshot()::text
UNION ALL
SELECT DISTINCT new.channel, NULL::text FROM ({newer}) AS new"""


class Pacing:
    """Becomes the pacemaker when one is wanted, and ends being it when not."""

    def __init__(
        self,
        connector: Connector,
        schema: str,
        wakes: Wakes,
        emit: Emitter,
        *,
        connect_timeout: float,
        may_be_awake: bool,
    ) -> None:
        self._connector = connector
        self._schema = schema
        self._wakes = wakes
        self._emit = emit
        self._timeout = connect_timeout
        self._may_be_awake = may_be_awake
        self._office = (
            f"pg_catalog.hashtext('pgnotifybus pacemaker'), pg_catalog.hashtext({literal(schema)})"
        )
        self._channel = literal(log_channel(schema))
        self._seen: Instant | None = None
        self._plans = Plans()
        self.polls = 0

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(0.1, 5.0)
        while True:
            drain_only = await self._wanted()
            began = loop.time()
            try:
                await self._serve(drain_only)
                if not self._wakes.unsure:
                    backoff.lived(60.0)
                else:  # another is in office, and has not said yet how it is
                    await self._until_sure(backoff.next_delay())
            except (ServerError, PgNotifyBusError) as error:
                # Others may know by now that there was a pacemaker: one of us takes over.
                backoff.lived(loop.time() - began)
                delay = backoff.next_delay()
                self._emit(observe.LogDelayed("waking followers", error, delay))
                await asyncio.sleep(delay)

    async def _wanted(self) -> bool:
        """Wait until a pacemaker is wanted; whether it need only drain."""
        wakes = self._wakes
        while True:
            wakes.changed.clear()
            if wakes.unsure:
                return True
            silent_for = wakes.check_in()
            if wakes.belief != "asleep" and silent_for <= 0:
                wakes.heard_at = asyncio.get_running_loop().time()  # one try for each silence
                return not self._may_be_awake
            if self._may_be_awake and wakes.belief != "awake" and wakes.busy():
                return False
            timeout = None if silent_for == float("inf") else max(silent_for, 0.01)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await wakes.changed.wait()

    async def _until_sure(self, seconds: float) -> None:
        """Wait, unless it is heard meanwhile how the pacemaker is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._wakes.unsure:
                    self._wakes.changed.clear()
                    await self._wakes.changed.wait()

    async def _serve(self, drain_only: bool) -> None:
        """Be the pacemaker for as long as one is wanted."""
        try:
            async with asyncio.timeout(3 * self._timeout):
                link = await self._connector.connect("pacemaker", self._timeout)
        except TimeoutError:
            raise LinkLost("the server did not answer in time") from None
        try:
            await self._cycle(link, REST.elect(drain_only=drain_only))
        finally:
            await discard(link)

    async def _cycle(self, link: Link, pacemaker: Pacemaker) -> None:
        loop = asyncio.get_running_loop()
        load = Load(loop.time())
        drains_since = 0.0
        while pacemaker.stage is not Stage.REST:
            match pacemaker.stage:
                case Stage.ELECT:
                    sql = f"SELECT pg_catalog.pg_try_advisory_lock({self._office})::text"
                    [(got,)] = await _bounded(link, link.fetch(sql))
                    pacemaker = pacemaker.elected(got == "true")
                case Stage.LOOK:
                    self._seen = (await _bounded(link, run(look(self._schema), link))).now
                    pacemaker = pacemaker.looked()
                case Stage.ANNOUNCE:
                    pacemaker = pacemaker.announcing()
                    await self._tell(link, announce("awake"))
                case Stage.ACQUIRE:
                    silence = _SILENCE.format(milliseconds=_AWAKE_SILENCE)
                    lock = f"SELECT pg_catalog.pg_advisory_lock({awake_lock(self._schema)})"
                    await _bounded(link, link.execute(f"{silence}; {lock}"))
                    self._emit(observe.PacemakerChanged("awake"))
                    load = Load(loop.time())
                    pacemaker = pacemaker.acquired()
                    self._wakes.unsure = False
                case Stage.POLL:
                    if await self._poll(link, "awake"):
                        load.note(loop.time())
                    sleepy = load.quiet(loop.time())
                    pacemaker = pacemaker.polled(sleepy=sleepy)
                    if not sleepy:
                        await asyncio.sleep(POLL)
                case Stage.RELEASE:
                    if not pacemaker.drain_only:
                        await self._release(link)
                    await self._tell(link, announce("draining"))
                    self._emit(observe.PacemakerChanged("draining"))
                    pacemaker = pacemaker.released()
                case Stage.MARK:
                    marked = await _bounded(link, run(look(self._schema), link))
                    drains_since = loop.time()
                    pacemaker = pacemaker.marked(marked.now.snapshot.running)
                case Stage.DRAIN:
                    await self._poll(link, "draining")
                    assert self._seen is not None
                    wanted = self._may_be_awake and self._wakes.busy()
                    pacemaker = pacemaker.drained(self._seen.snapshot, wanted=wanted)
                    if pacemaker.stage is Stage.DRAIN:
                        # A transaction may stay open for hours: the longer, the less often.
                        pause = min((loop.time() - drains_since) / 10, _LONGEST_PAUSE)
                        await self._pause(max(pause, POLL))
                case Stage.RESIGN:
                    if pacemaker.announced:
                        await self._tell(link, announce("asleep"))
                        self._emit(observe.PacemakerChanged("asleep"))
                    sql = f"SELECT pg_catalog.pg_advisory_unlock({self._office})"
                    await _bounded(link, link.execute(sql))
                    pacemaker = pacemaker.resigned()
                    self._wakes.unsure = False

    async def _pause(self, seconds: float) -> None:
        """Wait, unless it is wanted awake meanwhile."""
        self._wakes.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._wakes.busy():
                    await self._wakes.changed.wait()
                    self._wakes.changed.clear()

    async def _release(self, link: Link) -> None:
        """Let writers notify for themselves, and the session be idle for longer again."""
        silence = _SILENCE.format(milliseconds=int(3 * _LONGEST_PAUSE * 1000))
        unlock = f"SELECT pg_catalog.pg_advisory_unlock({awake_lock(self._schema)})"
        await _bounded(link, link.execute(f"{silence}; {unlock}"))

    async def _poll(self, link: Link, belief: Belief) -> bool:
        """Tell all what is new since the last look; whether anything is."""
        assert self._seen is not None
        era, snapshot = self._seen
        new = newer(self._schema, self._seen, parameter(1), "channel")
        plans = self._plans.over(link)
        rows = await _bounded(link, plans.fetch(_CHANNELS.format(newer=new), str(snapshot)))
        self.polls += 1
        channels = [channel for channel, _ in rows if channel is not None]
        if channels:
            self._wakes.wake(channels)  # our own need not wait until it has come round
            await self._tell(link, found(channels, belief))
        [now] = [text for _, text in rows if text is not None]
        self._seen = Instant(era, Snapshot.parse(now))
        return bool(channels)

    async def _tell(self, link: Link, word: str) -> None:
        sql = f"SELECT pg_catalog.pg_notify({self._channel}, $1)"
        await _bounded(link, link.fetch(sql, word))


async def _bounded(link: Link, statement: Awaitable[T]) -> T:
    """Run a statement, or hold the connection to be lost."""
    try:
        async with asyncio.timeout(_STATEMENT):
            return await statement
    except TimeoutError:
        link.abort()
        raise LinkLost(f"the server has not answered for {_STATEMENT:g} s") from None
