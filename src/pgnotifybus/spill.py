"""Fetching payloads that were too large for a notification. Layer: spill.

A notification whose payload lies in the spill table has a placeholder in the ring. Those of all
channels are fetched together, one query for many; what has been overwritten meanwhile is not
fetched at all. There is a task only while there is something to fetch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from pgnotifybus import observe
from pgnotifybus.broadcast import Shared
from pgnotifybus.core.backoff import Backoff
from pgnotifybus.core.envelope import MAX_SPILLED_BYTES, Reference
from pgnotifybus.core.names import quote
from pgnotifybus.core.ring import Placeholder
from pgnotifybus.database.queries import array
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import Emitter, logger
from pgnotifybus.errors import Closed, FatalLinkError, LinkError, LinkLost
from pgnotifybus.links.base import Runner, ServerError
from pgnotifybus.messages import GapReason
from pgnotifybus.schema.pruning import prune_some

# Anybody may notify of any size: a row that is much larger than it was said to be is not fetched.
# Twice, as a few encodings take more bytes for a character than UTF-8 does.
_FETCH: Final = """\
SELECT payload.id::text, payload.channel,
       CASE WHEN pg_catalog.octet_length(payload.payload) <= 2 * wanted.size
            THEN payload.payload END
  FROM ROWS FROM (
         pg_catalog.unnest(CAST(CAST($1 AS text) AS uuid[])),
         pg_catalog.unnest(CAST(CAST($2 AS text) AS bigint[]))
       ) AS wanted (id, size)
  JOIN {schema}.payloads AS payload ON payload.id = wanted.id"""

_BATCH_BYTES: Final = 8 * 1024 * 1024
_BATCH_ROWS: Final = 1000
_PATIENCE: Final = 60.0
"""The seconds for which a payload is tried to be fetched while there is no connection."""
_PRUNE_INTERVAL: Final = 60.0  # seconds
_PRUNE_ROWS: Final = 1000  # in one transaction
# Whoever has locked one of the rows must not hold up what is to be fetched.
_BEGIN_PRUNE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '100ms'"


class _Wanted(NamedTuple):
    shared: Shared[str]
    position: int
    placeholder: Placeholder
    reference: Reference
    until: float

    def lose(self, reason: GapReason) -> None:
        self.shared.lose(self.placeholder, reason)

    @property
    def overwritten(self) -> bool:
        return self.position < self.shared.ring.oldest


class Fetcher:
    """Settles the placeholders of a bus."""

    def __init__(self, side: SideLink, schema: str, emit: Emitter) -> None:
        self._side = side
        self._schema = schema
        self._emit = emit
        self._wanted: deque[_Wanted] = deque()
        self._task: asyncio.Task[None] | None = None
        self._prune_at = 0.0
        self._closed = False

    def fetch(
        self, shared: Shared[str], position: int, placeholder: Placeholder, reference: Reference
    ) -> None:
        """See to it that a placeholder is settled some time soon, or lost."""
        if self._closed or reference.size > MAX_SPILLED_BYTES:
            shared.lose(placeholder, "unreadable")
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        self._wanted.append(_Wanted(shared, position, placeholder, reference, until))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="pgnotifybus fetcher")

    async def close(self) -> None:
        """End, and give up what has not been fetched.

        Cancel safety: it is given up all the same.
        """
        self._closed = True
        try:
            await self._side.close()
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait({self._task})
        finally:
            self._give_up("the bus has ended")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(0.1, 5.0)
        while batch := self._next_batch(loop.time()):
            try:
                size = sum(wanted.reference.size for wanted in batch)
                async with self._side.use(size=size) as runner:
                    self._settle(batch, await self._fetch(runner, batch))
                backoff.lived(_PATIENCE)
                await self._prune(loop.time())
            except Closed:
                return
            except (ServerError, LinkError, FatalLinkError) as error:
                if isinstance(error, ServerError) and error.for_good:
                    self._give_up(str(error))
                    continue
                logger.debug("fetching payloads failed, trying again: %s", error)
                await asyncio.sleep(backoff.next_delay())
            except Exception as error:  # noqa: BLE001 - a source of the user's may raise anything
                # Whoever waits for these would wait for ever.
                self._give_up(f"{type(error).__name__}: {error}")

    async def _fetch(
        self, runner: Runner, batch: list[_Wanted]
    ) -> dict[str, tuple[str, str | None]]:
        """The rows that are there: by id, the channel, and the payload unless it is too large."""
        sizes = {wanted.reference.row: wanted.reference.size for wanted in batch}
        query = _FETCH.format(schema=quote(self._schema))
        rows = await runner.fetch(query, array(list(sizes)), array(list(map(str, sizes.values()))))
        if len(rows) < len(sizes):
            # A standby may not have them yet; the server that has notified us has.
            [(in_recovery,)] = await runner.fetch("SELECT pg_catalog.pg_is_in_recovery()::text")
            if in_recovery == "true":
                raise LinkLost("the connection leads to a standby")
        return {row: (channel, payload) for row, channel, payload in rows}  # type: ignore[misc]

    def _next_batch(self, now: float) -> list[_Wanted]:
        """The oldest that are still wanted, as many as may be fetched at once; they stay in."""
        kept: deque[_Wanted] = deque()
        too_late = [each for each in self._wanted if each.until < now and not each.overwritten]
        for each in too_late:
            each.lose("unreadable")
        if too_late:
            self._emit(observe.PayloadsLost("there was no connection to fetch them over"))
        kept.extend(each for each in self._wanted if each.until >= now and not each.overwritten)
        self._wanted = kept
        batch: list[_Wanted] = []
        size = 0
        for wanted in kept:
            size += wanted.reference.size
            if batch and (size > _BATCH_BYTES or len(batch) == _BATCH_ROWS):
                break
            batch.append(wanted)
        return batch

    def _settle(self, batch: list[_Wanted], rows: dict[str, tuple[str, str | None]]) -> None:
        expired = larger = 0
        for wanted in batch:
            self._wanted.popleft()
            channel, payload = rows.get(wanted.reference.row, (None, None))
            # Whoever may notify could name any row: only one of the same channel is handed out.
            if channel != wanted.shared.name:
                wanted.lose("expired")
                expired += 1
            elif payload is None:
                wanted.lose("unreadable")
                larger += 1
            else:
                wanted.shared.settle(wanted.position, payload)
        if expired:
            self._emit(observe.PayloadsLost("their rows are gone; is the retention too short?"))
        if larger:
            self._emit(observe.PayloadsLost("their rows are larger than was said"))

    def _give_up(self, why: str) -> None:
        wanted, self._wanted = self._wanted, deque()
        for each in wanted:
            each.lose("unreadable")
        if wanted and not self._closed:
            self._emit(observe.PayloadsLost(why))

    async def _prune(self, now: float) -> None:
        """Delete what is too old, now and then: who uses the table keeps it small."""
        if now < self._prune_at:
            return
        self._prune_at = now + _PRUNE_INTERVAL
        try:
            async with self._side.use() as runner:
                await runner.execute(_BEGIN_PRUNE)
                try:
                    deleted = await prune_some(runner, self._schema, _PRUNE_ROWS)
                finally:
                    await runner.execute("COMMIT")
        except ServerError as error:
            if error.for_good:
                self._prune_at = float("inf")
            logger.info("expired payloads are left to others to delete: %s", error)
        else:
            if deleted == _PRUNE_ROWS:  # as many as may be at once: there are more
                self._prune_at = now
