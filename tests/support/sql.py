"""Statements on a connection of their own."""

from __future__ import annotations

from typing import Any

import psycopg


async def execute(dsn: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement in a transaction of its own and return its rows, if it has any."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(sql.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []


async def kill_listener(dsn: str, pid: int | None = None, *, asked: bool = False) -> int:
    """Terminate the bus's backend, or all of them in this database; how many there were.

    Args:
        dsn: Of the database.
        pid: Of the backend; None for all.
        asked: Whether to spare those that have not said yet what they listen to: behind that, a bus
            is up.
    """
    rows = await execute(
        dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'pgnotifybus listener' AND datname = current_database()"
        " AND (%s::int IS NULL OR pid = %s)"
        " AND (NOT %s OR state = 'idle' AND query LIKE '%%pg_listening_channels%%')",
        pid,
        pid,
        asked,
    )
    return len(rows)
