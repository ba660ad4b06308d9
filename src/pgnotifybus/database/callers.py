"""The connections of those who call us, of every kind, in whatever transaction they are in.
Layer: database.

They stay the caller's: nothing is committed, rolled back or configured here, and what the driver
raises goes through as it is. What the caller has told the driver about text (codecs, adapters, row
and cursor factories, server-side cursors) must not change what is sent.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple, TypeVar

from pgnotifybus.database.queries import Query, Script
from pgnotifybus.links.base import Rows

R = TypeVar("R")

# A parameter; or what is quoted, in which there are none.
_PARAMETER: Final = re.compile(r"""\$(?P<number>[0-9])|"[^"]*"|'[^']*'""")

_ASYNC: Final = (
    "an asyncpg connection, a psycopg AsyncConnection, or a SQLAlchemy AsyncSession or "
    "AsyncConnection"
)
_SYNC: Final = "a psycopg Connection, or a SQLAlchemy Session or Connection"

How = Literal["asyncpg", "psycopg", "sqlalchemy", "session"]

_KINDS: Final[dict[tuple[str, str], tuple[How, bool]]] = {
    ("asyncpg", "Connection"): ("asyncpg", True),
    ("asyncpg", "PoolConnectionProxy"): ("asyncpg", True),
    ("psycopg", "AsyncConnection"): ("psycopg", True),
    ("psycopg", "Connection"): ("psycopg", False),
    ("sqlalchemy", "AsyncConnection"): ("sqlalchemy", True),
    ("sqlalchemy", "AsyncSession"): ("session", True),
    ("sqlalchemy", "async_scoped_session"): ("session", True),
    ("sqlalchemy", "Connection"): ("sqlalchemy", False),
    ("sqlalchemy", "Session"): ("session", False),
    ("sqlalchemy", "scoped_session"): ("session", False),
}

# For SQLAlchemy, whatever the engine, connection or session says: a server-side cursor takes no
# INSERT, and refusing it would abort the transaction.
_UNSTREAMED: Final = {"stream_results": False, "yield_per": None}


class AsyncCaller(NamedTuple):
    """A connection whose statements are awaited."""

    connection: Any
    how: How

    async def run(self, script: Script[R]) -> R:
        """Run a script in the connection's transaction, and return its result."""
        try:
            query = next(script)
            while True:
                query = script.send(await self._fetch(query))
        except StopIteration as end:
            result: R = end.value
            return result

    async def _fetch(self, query: Query) -> Rows:
        match self.how:
            case "asyncpg":
                rows = await self.connection.fetch(_for_asyncpg(query), *query.parameters)
            case "psycopg":
                from psycopg import AsyncCursor
                from psycopg.rows import tuple_row
                from psycopg.types.string import StrDumper

                # Of our own kind: the caller's may read parameters or give rows in another way.
                async with AsyncCursor(self.connection, row_factory=tuple_row) as cursor:
                    cursor.adapters.register_dumper(str, StrDumper)
                    await cursor.execute(*_for_psycopg(query))
                    rows = await cursor.fetchall()
            case _:
                connection = self.connection
                if self.how == "session":
                    # Not over the session itself: it would flush before, and that may fail.
                    connection = await connection.connection()
                _check_dialect(connection)
                rows = await connection.execute(
                    *_for_sqlalchemy(query), execution_options=_UNSTREAMED
                )
        return [tuple(row) for row in rows]


class SyncCaller(NamedTuple):
    """A connection whose statements block."""

    connection: Any
    how: How

    def run(self, script: Script[R]) -> R:
        """Run a script in the connection's transaction, and return its result."""
        try:
            query = next(script)
            while True:
                query = script.send(self._fetch(query))
        except StopIteration as end:
            result: R = end.value
            return result

    def _fetch(self, query: Query) -> Rows:
        if self.how == "psycopg":
            from psycopg import Cursor
            from psycopg.rows import tuple_row
            from psycopg.types.string import StrDumper

            with Cursor(self.connection, row_factory=tuple_row) as cursor:
                cursor.adapters.register_dumper(str, StrDumper)
                cursor.execute(*_for_psycopg(query))
                return [tuple(row) for row in cursor.fetchall()]
        connection = self.connection
        if self.how == "session":
            connection = connection.connection()
        _check_dialect(connection)
        rows = connection.execute(*_for_sqlalchemy(query), execution_options=_UNSTREAMED)
        return [tuple(row) for row in rows]


def async_caller(connection: object, function: str, sync_twin: str) -> AsyncCaller:
    """What runs statements on a connection that was passed to one of our async functions.

    Args:
        connection: What was passed.
        function: What it was passed to, for the error.
        sync_twin: The function for connections that block.

    Raises:
        TypeError: If the connection is of another kind; the message says what to pass or call.
    """
    how, is_async = _kind(connection, f"{function} takes {_ASYNC}, and {sync_twin} {_SYNC}")
    if not is_async:
        raise TypeError(f"{function} takes {_ASYNC}; for {_name(connection)} use {sync_twin}")
    return AsyncCaller(connection, how)


def sync_caller(connection: object, function: str, async_twin: str) -> SyncCaller:
    """As `async_caller`, for functions that block."""
    how, is_async = _kind(connection, f"{function} takes {_SYNC}, and {async_twin} {_ASYNC}")
    if is_async:
        raise TypeError(f"{function} takes {_SYNC}; for {_name(connection)} await {async_twin}")
    return SyncCaller(connection, how)


def _kind(connection: object, expected: str) -> tuple[How, bool]:
    # By the first class of a package that we know: those of the caller's own may have any name.
    for cls in type(connection).__mro__:
        kind = _KINDS.get((cls.__module__.partition(".")[0], cls.__name__))
        if kind is not None:
            return kind
    raise TypeError(f"{expected}; not {_name(connection)}")


def _check_dialect(connection: Any) -> None:
    """SQLAlchemy knows other databases too."""
    if connection.dialect.name != "postgresql":
        raise TypeError(
            f"the connection leads to {connection.dialect.name}: only PostgreSQL has notifications"
        )


def _name(connection: object) -> str:
    cls = type(connection)
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}"


def _for_asyncpg(query: Query) -> str:
    # asyncpg sends what a codec of the caller's for text makes of it. For cstring there is none.
    return _with_parameters(query.sql, "pg_catalog.textin(${})")


def _for_psycopg(query: Query) -> tuple[str, dict[str, str]]:
    return _with_parameters(query.sql.replace("%", "%%"), "%(p{})s"), _named(query)


def _for_sqlalchemy(query: Query) -> tuple[Any, dict[str, str]]:
    from sqlalchemy import text

    return text(_with_parameters(query.sql.replace(":", r"\:"), ":p{}")), _named(query)


def _with_parameters(sql: str, form: str) -> str:
    """Write `$1` in the form that the driver wants, with the number in it."""

    def one(found: re.Match[str]) -> str:
        number = found["number"]
        return form.format(number) if number else found[0]

    return _PARAMETER.sub(one, sql)


def _named(query: Query) -> dict[str, str]:
    return {f"p{number}": value for number, value in enumerate(query.parameters, 1)}
