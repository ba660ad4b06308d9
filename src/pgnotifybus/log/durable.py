"""Whether what was seen is on disk, and seeing to it that it is. Layer: log.

A server that crashes gives the ids of transactions that were not on disk to others: behind a
snapshot that had seen such a one, the event of another would count as read. A commit is on disk
before others see it, but a rollback is not, nor is a commit with synchronous_commit=off.
"""

from __future__ import annotations

import asyncio
from typing import Final

from pgnotifybus.links.base import Runner
from pgnotifybus.log.here import Here

_WAITS: Final = (0.001, 0.002, 0.004)

_IS_DURABLE: Final = (
    "SELECT (pg_catalog.pg_current_wal_flush_lsn() >= CAST(CAST($1 AS text) AS pg_lsn))::text"
)

# One statement: refused, it leaves no transaction behind. A commit waits for the write-ahead log,
# if it has written anything into it.
_FLUSH: Final = """\
SELECT pg_catalog.set_config('synchronous_commit', 'local', true),
       pg_catalog.pg_logical_emit_message(true, 'pgnotifybus', '')"""


async def make_durable(runner: Runner, here: Here) -> None:
    """Wait until all that was seen is on disk."""
    if here.durable:
        return
    for wait in _WAITS:  # others commit, or will soon
        await asyncio.sleep(wait)
        [(answer,)] = await runner.fetch(_IS_DURABLE, here.inserted)
        if answer == "true":
            return
    await runner.execute(_FLUSH)
