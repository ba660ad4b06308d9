"""A link over asyncpg. Layer: links.

asyncpg reads the socket and calls a listener for every notification. Its `add_listener` makes one
round trip a channel and registers the callback only after the answer, so that a notification in
the same packet is dropped; the link therefore registers its callback first and sends one LISTEN
for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from pgnotifybus.errors import LinkLost
from pgnotifybus.links import base
from pgnotifybus.links.failures import connect_failure
from pgnotifybus.links.inbox import Inbox

_CLOSE_SECONDS = 1.0

# InternalClientError is what asyncpg raises when the protocol takes a turn it does not know.
_CONNECT_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class AsyncpgLink:
    """A `base.Link` over an asyncpg connection, which belongs to the link from now on."""

    borrow_seconds = 0.0

    def __init__(
        self, connection: Any, release: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Take over a connection; nobody else may use it any more.

        Args:
            connection: An open connection, also one acquired from a pool.
            release: Awaited after the link is closed, to tell where the connection came from.
        """
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._release = release
        self._inbox = Inbox()
        self._hand_on_due = False
        self.pid: int = connection.get_server_pid()
        self.server_version: str = getattr(connection.get_settings(), "server_version", "?")
        self.lost: asyncio.Future[LinkLost] = self._loop.create_future()
        self.heard_at = self._loop.time()
        connection.add_termination_listener(self._on_termination)
        # asyncpg sets no keepalive. Its transport has no public name.
        transport = getattr(connection, "_transport", None)
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                base.keep_alive(sock)

    def __repr__(self) -> str:
        return f"<AsyncpgLink pid={self.pid} {'lost' if self.lost.done() else 'open'}>"

    async def prepare(self, part: str) -> None:
        """Make the session fit for a listener: idle for ever, outside a transaction, UTF-8."""
        if self._connection.is_in_transaction():
            await self._run("execute", "ROLLBACK")
        # asyncpg decodes UTF-8 whatever the session's encoding is. From a SQL_ASCII database the
        # server then checks what it sends, and ends the session at the first byte that is not:
        # the link is lost and made anew, with a gap.
        await self._run("execute", "SET client_encoding TO 'UTF8'; " + base.prepare_session(part))

    # -- base.Link --------------------------------------------------------------------------------

    def start(
        self,
        sink: base.Sink,
        on_undecodable: base.OnUndecodable | None = None,
        batch: int | None = None,
    ) -> None:
        self._inbox.start(sink, on_undecodable, batch)

    def flush(self) -> None:
        self._inbox.flush()

    async def change(self, listen: Sequence[str], unlisten: Sequence[str]) -> None:
        registry = getattr(self._connection, "_listeners", None)
        entry = getattr(asyncpg.connection, "_Callback", None)
        if isinstance(registry, dict) and entry is not None:
            callback = entry.from_callable(self._on_notification)
            added = [name for name in listen if name not in registry]
            registry.update((name, {callback}) for name in added)
            try:
                await self._run("execute", base.change_channels(listen, unlisten))
            except base.ServerError:
                for name in added:
                    registry.pop(name, None)
                raise
            for name in unlisten:
                registry.pop(name, None)
            self._inbox.flush([*listen, *unlisten])
            return
        # An asyncpg whose inside has changed: correct as well, one round trip a channel.
        for name in unlisten:
            await self._run("remove_listener", name, self._on_notification)
        for name in listen:
            await self._run("add_listener", name, self._on_notification)
        self._inbox.flush([*listen, *unlisten])

    async def inspect(self) -> base.Session:
        rows = await self._run("fetch", base.INSPECT_SESSION)
        return base.session_from_rows(rows)

    async def execute(self, sql: str) -> None:
        await self._run("execute", sql)

    async def fetch(self, sql: str, *parameters: str | None) -> base.Rows:
        return [tuple(row) for row in await self._run("fetch", sql, *parameters)]

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[base.Runner]:
        yield self

    async def close(self) -> None:
        if not self.lost.done():
            self._lose(LinkLost("the link was closed"))
            try:
                await self._connection.close(timeout=_CLOSE_SECONDS)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                self._connection.terminate()
        if not self._connection.is_closed():  # an error had ended the link, but not the connection
            self._connection.terminate()
        release, self._release = self._release, None
        if release is not None:
            await release()

    def abort(self) -> None:
        self._lose(LinkLost("the link was closed"))
        with contextlib.suppress(asyncpg.InterfaceError):  # its pool has it back already
            self._connection.terminate()

    # -- inside -----------------------------------------------------------------------------------

    async def _run(self, method: str, *args: object) -> Any:
        """Run a statement and tell apart a refusal from a lost connection."""
        if self.lost.done():
            raise self.lost.result()
        try:
            answer = await getattr(self._connection, method)(*args)
        except asyncpg.PostgresError as error:
            if not _ends_session(self._connection, error):
                self.heard_at = self._loop.time()
                raise base.ServerError(_say(error), error.sqlstate) from error
            raise self._lose(LinkLost(_say(error)), error) from error
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise self._lose(LinkLost(str(error) or type(error).__name__), error) from error
        self.heard_at = self._loop.time()
        return answer

    def _on_notification(self, _: object, pid: int, channel: str, payload: str) -> None:
        payloads, pids = self._inbox.of(channel)
        payloads.append(payload)
        pids.append(pid)
        # asyncpg schedules this call once a message: those of one packet are handed on together.
        if not self._hand_on_due:
            self._hand_on_due = True
            self._loop.call_soon(self._hand_on)

    def _hand_on(self) -> None:
        self._hand_on_due = False
        self.heard_at = self._loop.time()
        self._inbox.hand_on()

    def _on_termination(self, _: object) -> None:
        self._lose(LinkLost("the server or the network closed the connection"))

    def _lose(self, reason: LinkLost, cause: BaseException | None = None) -> LinkLost:
        if not self.lost.done():
            reason.__cause__ = cause
            self._inbox.flush()  # what came before the end came
            with contextlib.suppress(asyncpg.InterfaceError):
                self._connection.remove_termination_listener(self._on_termination)
            self.lost.set_result(reason)
        return self.lost.result()


class PoolOutlet:
    """A `base.Outlet` that borrows a connection of a pool each time."""

    def __init__(self, pool: Any, where: str, timeout: float) -> None:
        """Borrow nothing yet.

        Args:
            pool: An asyncpg pool.
            where: The server, in words that may be shown.
            timeout: The seconds to wait for a free connection.
        """
        self.lost: asyncio.Future[LinkLost] = asyncio.get_running_loop().create_future()
        self._pool = pool
        self._where = where
        self.borrow_seconds = timeout

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[base.Runner]:
        try:
            connection = await self._pool.acquire(timeout=self.borrow_seconds)
        except _CONNECT_ERRORS as error:
            raise connect_failure(
                self._where,
                str(error) or "no connection of the pool is free",
                getattr(error, "sqlstate", None),
            ) from error
        except Exception as error:
            # Of the pool's `init` or `setup`: as of a connection factory, it may pass.
            raise connect_failure(self._where, f"{type(error).__name__}: {error}", None) from error
        good = False
        try:
            yield _Borrowed(connection)
            good = True
        except base.HARMLESS:
            good = True
            raise
        finally:
            # How giving it back goes changes nothing about what was done; and a connection in the
            # middle of a statement would have to be waited for.
            with contextlib.suppress(Exception):
                if not good:
                    connection.terminate()
                await self._pool.release(connection, timeout=_CLOSE_SECONDS)

    async def close(self) -> None:
        """Nothing is kept."""

    def abort(self) -> None:
        """Nothing is kept."""


class _Borrowed:
    """A `base.Runner` over a connection that a pool has lent."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, sql: str) -> None:
        await self._run("execute", sql)

    async def fetch(self, sql: str, *parameters: str | None) -> base.Rows:
        return [tuple(row) for row in await self._run("fetch", sql, *parameters)]

    async def _run(self, method: str, *args: object) -> Any:
        try:
            return await getattr(self._connection, method)(*args)
        except asyncpg.PostgresError as error:
            if not _ends_session(self._connection, error):
                raise base.ServerError(_say(error), error.sqlstate) from error
            raise LinkLost(_say(error)) from error
        except _CONNECT_ERRORS as error:
            raise LinkLost(str(error) or type(error).__name__) from error


def _say(error: asyncpg.PostgresError) -> str:
    """What the server says, without its DETAIL: that may repeat a row, and what is in it."""
    return str(error.args[0]) if error.args else type(error).__name__


def _ends_session(connection: Any, error: asyncpg.PostgresError) -> bool:
    severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
    try:
        return base.ends_session(severity, error.sqlstate) or connection.is_closed()
    except asyncpg.InterfaceError:  # its pool has it back already, as it has when one breaks
        return True
