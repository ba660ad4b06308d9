"""Connections of every kind that `notify` and `notify_sync` take, spoken to in the same words."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pgnotifybus import notify, notify_sync

DRIVERS_OWN = ("asyncpg", "asyncpg-pool", "psycopg", "psycopg-sync")
SQLALCHEMY = tuple(
    f"{part}-{driver}"
    for driver in ("asyncpg", "psycopg", "sync")
    for part in ("connection", "session", "scoped")
)
KINDS = (*DRIVERS_OWN, *SQLALCHEMY)

BEGIN_BY_THEMSELVES = tuple(kind for kind in KINDS if kind not in ("asyncpg", "asyncpg-pool"))
"""Those that begin a transaction with the first statement, unless they are in autocommit mode."""


class Caller:
    """A connection in the hands of one who calls us; the blocking kinds are just called."""

    def __init__(self, kind: str, connection: Any) -> None:
        self.kind = kind
        self.connection = connection
        self.blocks = kind.endswith("sync")

    async def notify(self, channel: Any, payload: Any = "", **options: Any) -> None:
        """Send in the connection's transaction."""
        if self.blocks:
            notify_sync(self.connection, channel, payload, **options)
        else:
            await notify(self.connection, channel, payload, **options)

    async def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement of the caller's own, and return its rows, if it has any."""
        if self.kind in ("asyncpg", "asyncpg-pool"):
            return [tuple(row) for row in await self.connection.fetch(sql)]
        if self.kind in ("psycopg", "psycopg-sync"):
            cursor = await _awaited(self.connection.execute(sql))
            return await _awaited(cursor.fetchall()) if cursor.description else []
        result = await _awaited(self.connection.execute(text(sql)))
        return [tuple(row) for row in result] if result.returns_rows else []

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A transaction: committed at the end, rolled back by an exception."""
        begin = "transaction" if self.kind in DRIVERS_OWN else "begin"
        return _entered(getattr(self.connection, begin)())

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """A savepoint within the transaction: released, or rolled back by an exception."""
        begin = "transaction" if self.kind in DRIVERS_OWN else "begin_nested"
        return _entered(getattr(self.connection, begin)())

    async def commit(self) -> None:
        """Commit what began by itself."""
        await _awaited(self.connection.commit())

    async def rollback(self) -> None:
        """Roll back what began by itself."""
        await _awaited(self.connection.rollback())


@contextlib.asynccontextmanager
async def opened(kind: str, dsn: str, *, autocommit: bool = False) -> AsyncIterator[Caller]:
    """Connect as a caller of a kind would, and close at the end.

    Args:
        kind: One of `KINDS`.
        dsn: Where to connect.
        autocommit: Whether the driver, or SQLAlchemy, is told not to begin transactions by itself.
    """
    async with contextlib.AsyncExitStack() as stack:
        yield Caller(kind, await _open(kind, dsn, autocommit, stack))


async def _open(kind: str, dsn: str, autocommit: bool, stack: contextlib.AsyncExitStack) -> Any:
    match kind:
        case "asyncpg":
            connection = await asyncpg.connect(dsn)
            stack.push_async_callback(connection.close)
            return connection
        case "asyncpg-pool":
            pool = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1, max_size=1))
            return await stack.enter_async_context(pool.acquire())
        case "psycopg":
            opening = await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit)
            stack.push_async_callback(opening.close)
            return opening
        case "psycopg-sync":
            blocking = psycopg.connect(dsn, autocommit=autocommit)
            stack.callback(blocking.close)
            return blocking
    part, _, driver = kind.partition("-")
    options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
    if driver == "sync":
        return _open_sync(part, sqlalchemy_url(dsn, "psycopg"), options, stack)
    engine = create_async_engine(sqlalchemy_url(dsn, driver), poolclass=NullPool, **options)
    stack.push_async_callback(engine.dispose)
    if part == "connection":
        return await stack.enter_async_context(engine.connect())
    if part == "session":
        return await stack.enter_async_context(AsyncSession(engine))
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    stack.push_async_callback(scoped.remove)
    return scoped


def _open_sync(part: str, url: str, options: Any, stack: contextlib.AsyncExitStack) -> Any:
    engine = create_engine(url, poolclass=NullPool, **options)
    stack.callback(engine.dispose)
    if part == "connection":
        return stack.enter_context(engine.connect())
    if part == "session":
        return stack.enter_context(Session(engine))
    scoped = scoped_session(sessionmaker(engine))
    stack.callback(scoped.remove)
    return scoped


def sqlalchemy_url(dsn: str, driver: str) -> str:
    """The DSN as SQLAlchemy wants it for a driver."""
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@contextlib.asynccontextmanager
async def _entered(context: Any) -> AsyncIterator[None]:
    if hasattr(context, "__aenter__"):
        async with context:
            yield
    else:
        with context:
            yield
