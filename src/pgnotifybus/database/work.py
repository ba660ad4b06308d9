"""A connection of the user's own kind, kept for work in transactions. Layer: database.

What the library does for itself goes over links, which speak to the driver's lowest level. Here
the user's code is to work, so the connection is what the source brings: with the row factories,
codecs and events that were set up for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Final

from pgnotifybus.database.callers import AsyncCaller, async_caller
from pgnotifybus.database.queries import Script
from pgnotifybus.links.base import Borrowed, ServerError, ends_session

__all__ = ["Transaction", "Work", "server_error"]

_CLOSING: Final = 5.0
"""The seconds that giving a connection back may take."""


class Work:
    """One connection, until it is closed or lost."""

    def __init__(self, borrowed: Borrowed) -> None:
        self.connection = borrowed.connection
        self.caller: AsyncCaller = async_caller(borrowed.connection, "a consumer", "none for it")
        self._release = borrowed.release

    def transaction(self) -> Transaction:
        """A transaction: committed at the end of the block, rolled back by an exception."""
        if self.caller.how == "sqlalchemy":
            return Transaction(self.connection.begin())
        return Transaction(self.connection.transaction())

    async def run(self, script: Script[Any]) -> Any:
        """Run a script in the transaction that is open, or, if none is, in one of its own."""
        return await self.caller.run(script)

    @property
    def is_lost(self) -> bool:
        """Whether the connection is known to be gone."""
        match self.caller.how:
            case "asyncpg":
                return bool(self.connection.is_closed())
            case "psycopg":
                return bool(self.connection.closed)
            case _:
                return bool(self.connection.invalidated or self.connection.closed)

    async def kill(self) -> None:
        """End the session at once, without a word that could block."""
        with contextlib.suppress(Exception):
            match self.caller.how:
                case "asyncpg":
                    self.connection.terminate()
                case "psycopg":
                    await self.connection.close()
                case _:
                    await self.connection.invalidate()

    async def close(self) -> None:
        """Give it back. Whatever goes wrong then does not matter any more."""
        with contextlib.suppress(Exception):
            try:
                async with asyncio.timeout(_CLOSING):
                    await self._release()
            except TimeoutError:
                await self.kill()


class Transaction:
    """A transaction of a driver, which ends once: drivers lose count if it is ended twice."""

    def __init__(self, drivers: Any) -> None:
        self._drivers = drivers
        self.ended = False
        """Whether it was committed or rolled back, or at least tried."""

    async def __aenter__(self) -> Transaction:
        await self._drivers.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended = True
        await self._drivers.__aexit__(kind, error, traceback)

    async def commit(self) -> None:
        """Commit it. Refused by the server, it is rolled back."""
        await self.__aexit__(None, None, None)


def server_error(error: BaseException) -> ServerError | None:
    """What the server said, if the error is of a driver and the session has survived it."""
    original: Any = getattr(error, "orig", None) or error
    if getattr(original, "sqlstate", None) is None:
        original = getattr(original, "__cause__", None) or original
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate is None or type(original).__module__.partition(".")[0] not in (
        "psycopg",
        "asyncpg",
        "sqlalchemy",
    ):
        return None
    severity = getattr(getattr(original, "diag", None), "severity_nonlocalized", None)
    severity = severity or getattr(original, "severity", None)
    if ends_session(severity, sqlstate) or sqlstate.startswith("57P"):
        return None
    message = str(original.args[0]).splitlines()[0] if original.args else str(original)
    return ServerError(message, sqlstate)
