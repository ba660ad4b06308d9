"""A link over psycopg 3, on the public low-level interface `psycopg.pq`. Layer: links.

psycopg connects (DNS, several hosts, TLS, authentication); from then on the link reads the socket
itself, with `loop.add_reader`, `consume_input` and `notifies`. Compared with
`AsyncConnection.notifies()` there is no connection lock, so a statement can run at any time, and
no polling, so an idle link costs nothing. Statements use the same reader: it is the only place
that takes anything off the connection, so nothing can overtake anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import psycopg
from psycopg import pq

from pgnotifybus.errors import LinkLost
from pgnotifybus.links import base
from pgnotifybus.links.inbox import Inbox

# Rounds of reading in one turn of the loop, and how many messages a round must bring to be followed
# by another: what comes together is handed on together, and a single message costs no more than one
# read.
_ROUNDS = 16
_BURST = 32


class PsycopgLink:
    """A `base.Link` over a psycopg `AsyncConnection`, which belongs to the link from now on."""

    borrow_seconds = 0.0

    def __init__(
        self,
        connection: psycopg.AsyncConnection[object],
        release: Callable[[], Awaitable[None]] | None = None,
        *,
        tune_socket: bool = True,
    ) -> None:
        """Take over a connection; nobody else may use it any more.

        Args:
            connection: An open connection.
            release: Awaited after the link is closed, to tell where the connection came from.
            tune_socket: Set keepalive on the socket; False where the user has set it.
        """
        self._loop = asyncio.get_running_loop()
        # Kept, because the connection closes itself when it is collected.
        self._connection = connection
        self._release = release
        self._pgconn = connection.pgconn
        self._fd = self._pgconn.socket
        self._inbox = Inbox()
        self._reading_due = False
        self._statement: asyncio.Future[base.Rows] | None = None
        self._results: list[pq.abc.PGresult] = []
        self._last_words: str | None = None
        self.pid = self._pgconn.backend_pid
        self.server_version = (self._pgconn.parameter_status(b"server_version") or b"?").decode()
        self.lost: asyncio.Future[LinkLost] = self._loop.create_future()
        self.heard_at = self._loop.time()
        self._pgconn.nonblocking = 1
        self._pgconn.notice_handler = self._on_notice
        self._loop.add_reader(self._fd, self._on_readable)
        if tune_socket:
            with (
                contextlib.suppress(OSError),
                socket.socket(fileno=os.dup(self._fd)) as duplicate,
            ):
                base.keep_alive(duplicate)

    def __repr__(self) -> str:
        return f"<PsycopgLink pid={self.pid} {'lost' if self.lost.done() else 'open'}>"

    async def prepare(self, part: str) -> None:
        """Make the session fit for a listener: idle for ever, outside a transaction, UTF-8."""
        if self._pgconn.transaction_status != pq.TransactionStatus.IDLE:
            await self._query("ROLLBACK")
        # A SQL_ASCII database holds bytes of any encoding. Asked for UTF-8 the server would check
        # them, and end the session at the first that are not; asked for SQL_ASCII it sends them.
        plain = self._pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII"
        encoding = "SQL_ASCII" if plain else "UTF8"
        await self._query(f"SET client_encoding TO '{encoding}'; " + base.prepare_session(part))

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
        await self._query(base.change_channels(listen, unlisten))
        self._inbox.flush([*listen, *unlisten])

    async def inspect(self) -> base.Session:
        return base.session_from_rows(await self._query(base.INSPECT_SESSION))

    async def execute(self, sql: str) -> None:
        await self._query(sql)

    async def fetch(self, sql: str, *parameters: str | None) -> base.Rows:
        return await self._query(sql, [None if p is None else p.encode() for p in parameters])

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[base.Runner]:
        yield self

    async def close(self) -> None:
        # Unlike asyncpg, libpq says goodbye without waiting for an answer.
        self.abort()
        release, self._release = self._release, None
        if release is not None:
            await release()

    def abort(self) -> None:
        self._lose(LinkLost("the link was closed"))

    # -- statements -------------------------------------------------------------------------------

    async def _query(self, sql: str, parameters: Sequence[bytes | None] | None = None) -> base.Rows:
        """Run one query, or several without parameters; the rows of the last one."""
        if self.lost.done():
            raise self.lost.result()
        if self._statement is not None:
            raise RuntimeError("a link runs one statement at a time")
        statement: asyncio.Future[base.Rows] = self._loop.create_future()
        self._statement = statement
        try:
            if parameters is None:
                self._pgconn.send_query(sql.encode())
            else:
                self._pgconn.send_query_params(sql.encode(), parameters)
            self._flush()
        except psycopg.Error as error:
            self._lose(self._describe(error))
        return await statement

    def _flush(self) -> None:
        """Hand what is to be sent to the kernel; what does not fit goes when it is writable."""
        try:
            unsent = self._pgconn.flush()
        except psycopg.Error as error:
            self._lose(self._describe(error))
            return
        if unsent:
            self._loop.add_writer(self._fd, self._flush)
        else:
            self._loop.remove_writer(self._fd)

    def _collect_results(self) -> int:
        """Take what has arrived of the running statement's results, and end it at the last."""
        count = 0
        while self._statement is not None and not self._pgconn.is_busy():
            count += 1
            result = self._pgconn.get_result()
            if result is not None:
                self._results.append(result)
            else:
                self._end_statement()
        return count

    def _end_statement(self) -> None:
        statement, self._statement = self._statement, None
        results, self._results = self._results, []
        if statement is None or statement.done():  # its caller has been cancelled
            return
        for failed in results:
            if failed.status == pq.ExecStatus.FATAL_ERROR:
                statement.set_exception(_failure(failed))
                return
        statement.set_result(_rows(results[-1]) if results else [])

    # -- reading ----------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        # What was read last is still being handed on, a batch a turn: nothing more until that is
        # done, or has taken too long. So a burst is held by the socket and not by us; but a loop
        # that somebody keeps busy must not hold up the server.
        if self._inbox.catching_up and self._statement is None:
            self._read_again_soon()
            return
        # With TLS, a record may hold more than libpq's buffer takes at once. OpenSSL keeps what is
        # over, for which the socket is not readable again (a newer libpq sees to it itself). So
        # read until two rounds brought nothing: a record is 16 kB at most, a round takes 8 kB at
        # least, and no message is longer. Without TLS, one more round is only worth it in a burst.
        worth_another, misses = (1, 2) if self._pgconn.ssl_in_use else (_BURST, 1)
        rounds, taken = _ROUNDS, 0
        try:
            while rounds and misses:
                rounds -= 1
                count = self._read()
                taken += count
                if count < worth_another:
                    misses -= 1
        except psycopg.Error as error:
            self._lose(self._describe(error))
            return
        if taken:  # a link that drips a byte now and then is as good as silent
            self.heard_at = self._loop.time()
        self._inbox.hand_on()
        if not rounds:  # there is more; others have their turn first
            self._read_again_soon()

    def _read_again_soon(self) -> None:
        """For TLS, where the socket may not be readable for what OpenSSL has kept."""
        if self._pgconn.ssl_in_use and not self._reading_due:
            self._reading_due = True
            self._loop.call_soon(self._read_again)

    def _read_again(self) -> None:
        self._reading_due = False
        if not self.lost.done():
            self._on_readable()

    def _read(self) -> int:
        """Take what has arrived; the number of notifications and results."""
        self._pgconn.consume_input()
        taken = self._collect_notifications()
        if self._statement is not None:
            taken += self._collect_results()
            # Those behind a result are only seen once the result has been taken.
            taken += self._collect_notifications()
        return taken

    def _collect_notifications(self) -> int:
        # The inner loop of the whole library: a microsecond here is a microsecond a message.
        count = 0
        notifies = self._pgconn.notifies
        relname: bytes | None = None
        payloads: list[str] = []
        pids: list[int] = []
        while (notify := notifies()) is not None:
            count += 1
            if notify.relname != relname:
                relname = notify.relname
                payloads, pids = self._inbox.of(_decode(relname))
            try:
                payloads.append(notify.extra.decode())
            except UnicodeDecodeError:  # only a SQL_ASCII database can send such; keep every byte
                payloads.append(_decode(notify.extra))
                self._inbox.note_undecodable(_decode(notify.relname))
            pids.append(notify.be_pid)
        return count

    def _on_notice(self, result: pq.abc.PGresult) -> None:
        # The server says why it ends an idle session in a notice, and then closes the connection.
        severity = _field(result, pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        if severity in ("FATAL", "PANIC"):
            self._last_words = _field(result, pq.DiagnosticField.MESSAGE_PRIMARY)

    def _describe(self, error: psycopg.Error) -> LinkLost:
        lost = LinkLost(" ".join((self._last_words or str(error)).split()))
        lost.__cause__ = error
        return lost

    def _lose(self, reason: LinkLost) -> None:
        if self.lost.done():
            return
        self._inbox.flush()  # what came before the end came
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._pgconn.notice_handler = None
        self._pgconn.finish()
        self.lost.set_result(reason)
        statement, self._statement = self._statement, None
        if statement is not None and not statement.done():
            statement.set_exception(reason)


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _failure(result: pq.abc.PGresult) -> base.ServerError | LinkLost:
    message = _field(result, pq.DiagnosticField.MESSAGE_PRIMARY)
    severity = _field(result, pq.DiagnosticField.SEVERITY_NONLOCALIZED)
    sqlstate = _field(result, pq.DiagnosticField.SQLSTATE)
    if base.ends_session(severity, sqlstate):
        # The link itself is lost when the end of the connection is read, behind what came before.
        return LinkLost(message or " ".join(result.error_message.decode().split()))
    return base.ServerError(message or "unknown error", sqlstate)


def _field(result: pq.abc.PGresult, field: pq.DiagnosticField) -> str | None:
    value = result.error_field(field)
    return value.decode("utf-8", "replace") if value is not None else None


def _rows(result: pq.abc.PGresult) -> base.Rows:
    # Column by column, without a call of ours for each value: some read a million rows.
    get, rows = result.get_value, range(result.ntuples)
    try:
        columns = [
            [None if (value := get(row, column)) is None else value.decode() for row in rows]
            for column in range(result.nfields)
        ]
    except UnicodeDecodeError:  # only a SQL_ASCII database can send such; keep every byte
        columns = [
            [None if (value := get(row, column)) is None else _decode(value) for row in rows]
            for column in range(result.nfields)
        ]
    return list(zip(*columns, strict=True))
