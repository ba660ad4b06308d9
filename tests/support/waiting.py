"""Waiting for what only the server can tell."""

from __future__ import annotations

import time

import psycopg

_WITHIN = 20.0  # seconds, after which the test fails instead

FETCHING = "SELECT payload.id"
SPILLING = "WITH spilled AS"

# By what they do: of a pool, they carry the name that the pool gives all of its connections.
_WAITING = (
    " FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND starts_with(query, %s)"
)


async def until(dsn: str, question: str, *parameters: object) -> None:
    """Wait until a question with one boolean for an answer is answered yes."""
    deadline = time.monotonic() + _WITHIN
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while True:
            cursor = await connection.execute(question.encode(), parameters or None)
            if (await cursor.fetchone()) == (True,):
                return
            assert time.monotonic() < deadline, f"it did not come true in time: {question}"
            await connection.execute("SELECT pg_sleep(0.005)")


async def until_waits(dsn: str, statement: str) -> None:
    """Wait until a statement that begins like this waits for a lock."""
    await until(dsn, "SELECT count(*) > 0" + _WAITING, statement)


async def kill_waiting(dsn: str, statement: str) -> None:
    """Terminate the backend of a statement that begins like this, once it waits for a lock."""
    await until(dsn, "SELECT count(pg_terminate_backend(pid)) = 1" + _WAITING, statement)
