"""What a test left behind: tasks, threads, sockets and server connections.

Each function looks once the test has ended and its fixtures are gone, and names what is still
there, so that the failing test can say it.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psycopg

OURS = "pgnotifybus%"  # the application_name of every connection that the library makes

_FDS = Path("/proc/self/fd")
_EXECUTOR = "asyncio_"  # the loop's default executor may keep its threads until the loop closes
_TURNS = 5  # of the loop, in which a task that was just cancelled may end


async def leftover_tasks() -> list[str]:
    """Return the tasks of the running loop other than the caller's."""
    for _ in range(_TURNS):
        if not _others():
            return []
        await asyncio.sleep(0)
    return [repr(task) for task in _others()]


def _others() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The threads and sockets of this process at one moment.

    Attributes:
        threads: The threads that are alive.
        sockets: The open sockets, each as the kernel's inode; empty where there is no /proc.
    """

    threads: frozenset[threading.Thread]
    sockets: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look at what there is now."""
        return cls(frozenset(threading.enumerate()), _sockets())

    def leftovers(self) -> list[str]:
        """Name the threads and sockets that have come since and are still there."""
        threads = [
            repr(each)
            for each in frozenset(threading.enumerate()) - self.threads
            if each.is_alive() and not each.daemon and not each.name.startswith(_EXECUTOR)
        ]
        if _sockets() <= self.sockets:
            return threads
        gc.collect()  # one that nothing refers to is a leak too, but of another kind: a warning
        return threads + sorted(_sockets() - self.sockets)


def _sockets() -> frozenset[str]:
    found = set()
    for each in _FDS.iterdir() if _FDS.is_dir() else ():
        try:
            target = str(each.readlink())
        except OSError:  # the listing's own descriptor, closed by now
            continue
        if target.startswith("socket:"):
            found.add(target)
    return frozenset(found)


def lingering_connections(dsn: str, *, timeout: float = 5.0) -> list[str]:
    """Return the library's connections that a server still has, after waiting for them to go.

    A backend notices its client's end by itself, so it may be there for a moment longer.

    Args:
        dsn: The superuser's DSN of any database of the server; all of its databases count.
        timeout: How long to wait at the most, in seconds.
    """
    deadline = time.monotonic() + timeout
    with psycopg.connect(dsn, autocommit=True, application_name="leak check") as connection:
        while rows := _activity(connection):
            if time.monotonic() > deadline:
                return rows
            connection.execute("SELECT pg_sleep(0.01)")
    return []


def _activity(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    cursor = connection.execute(
        "SELECT concat_ws(' ', application_name, pid, datname, state, query)"
        " FROM pg_stat_activity WHERE application_name LIKE %s",
        (OURS,),
    )
    return [cast("str", row[0]) for row in cursor]
