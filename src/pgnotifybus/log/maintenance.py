"""Deleting what retention says, now and then, by whoever has the log open. Layer: log."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.emitting import logger
from pgnotifybus.errors import FatalLinkError, LinkError
from pgnotifybus.links.base import ServerError
from pgnotifybus.log import retention

_INTERVAL: Final = 60.0
_SHORTEST: Final = 1.0
_NOT_ALLOWED: Final = "42501"  # insufficient_privilege
IDLE: Final = 300.0
"""The most seconds between two looks, where the last ones found nothing to do."""


class Maintenance:
    """Cuts the log into segments, and deletes the oldest."""

    def __init__(self, side: SideLink, schema: str) -> None:
        self._side = side
        self._schema = schema

    async def run(self) -> None:
        """Until cancelled, or until it turns out that this role may not."""
        interval = _SHORTEST
        try:
            while True:
                # Spread out, so that of many processes one does it and the others find it done.
                await asyncio.sleep(interval * (0.75 + random.random() / 2))
                try:
                    interval = await self._once(interval)
                except ServerError as error:
                    if error.sqlstate == _NOT_ALLOWED:
                        logger.info("pruning the event log is left to others: %s", error)
                        return
                    logger.debug("pruning the event log failed: %s", error)
                    interval = _INTERVAL
                except (LinkError, FatalLinkError) as error:
                    logger.debug("pruning the event log failed: %s", error)
                    interval = _INTERVAL
        finally:
            await self._side.close()

    async def _once(self, interval: float) -> float:
        """Do what there is to do; the seconds until the next look, if these were the last."""
        async with self._side.use() as runner:
            due = await retention.due(runner, self._schema)
            if due.new or due.old:
                await retention.cut(runner, self._schema)
        if due.old:
            await prune(self._side, self._schema)
        longest = _INTERVAL if due.new or due.old else min(2 * max(interval, _INTERVAL / 2), IDLE)
        if due.keep_seconds is not None:
            longest = min(longest, due.keep_seconds / 10)
        return max(longest, _SHORTEST)


async def prune(side: SideLink, schema: str) -> int:
    """Delete all that is below the floor; how many. Each thousand has a transaction of its own."""
    total = 0
    while True:
        async with side.use() as runner:
            deleted = await retention.delete_some(runner, schema)
        total += deleted
        if deleted < retention.BATCH:
            return total
