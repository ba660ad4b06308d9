"""What a link is, and what its session and socket must look like. Layer: links.

A link is told which channels to change, and answers when the server has acknowledged it. What it
receives it hands, in batches, to a sink; until `start` is called it keeps it back, because what
arrives in the same packet as the answer to LISTEN must come behind the gap that announces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

from pgnotifybus.core.names import quote
from pgnotifybus.errors import LinkLost, PayloadTooLarge

Driver = Literal["psycopg", "asyncpg"]

Sink = Callable[[str, list[str], list[int]], None]
"""Takes a channel, the payloads that arrived on it, and the PID of each one's sender."""

OnUndecodable = Callable[[str, int], None]
"""Told a channel, and how many payloads on it were not UTF-8."""


Rows = list[tuple[str | None, ...]]
"""What a query answered, as text: queries cast their columns, so that drivers do not differ."""


@dataclass(frozen=True, slots=True)
class Session:
    """What the server says about our session."""

    channels: frozenset[str]
    in_recovery: bool
    pid: int
    """The server process that has answered."""
    queue_usage: float
    """How full the notification queue of the server is, from 0 to 1."""


# By class: what is not supported, data, constraints, syntax and rights, and errors of the server
# itself. All else may pass: a full notification queue, a restart, a standby, a disk without space.
# Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
_FOR_GOOD: Final = ("0A", "22", "23", "42", "XX")


class ServerError(Exception):
    """The server refused a statement; the connection is still good."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message, sqlstate)
        self.message = message
        self.sqlstate = sqlstate

    @property
    def for_good(self) -> bool:
        """Whether the same statement would be refused again, however long one waits."""
        return (self.sqlstate or "").startswith(_FOR_GOOD)

    def __str__(self) -> str:
        return f"{self.message} (SQLSTATE {self.sqlstate})" if self.sqlstate else self.message


def ends_session(severity: str | None, sqlstate: str | None) -> bool:
    """Whether an error says that the session is over, and not that a statement was refused.

    Class 08 is what a pooler answers whose own connection to the server has broken, and an error
    without a state is the driver's own: in both cases, what became of the statement is not known.

    Args:
        severity: The severity, not localized; None if there is none.
        sqlstate: The SQLSTATE; None if there is none.
    """
    return severity in ("FATAL", "PANIC") or sqlstate is None or sqlstate.startswith("08")


class Runner(Protocol):
    """A session that runs statements, one at a time.

    Every statement raises `ServerError` if the server refuses it, which leaves the session as good
    as before, and `LinkLost` if the connection is gone. None of them has a deadline of its own: the
    caller knows how long is too long.
    """

    async def execute(self, sql: str) -> None:
        """Run one or more statements without parameters, in one round trip."""

    async def fetch(self, sql: str, *parameters: str | None) -> Rows:
        """Run one statement with parameters `$1`, `$2`, ..., and return its rows.

        Every column of its answer, and every parameter, must be text.
        """


HARMLESS: Final = (ServerError, PayloadTooLarge)
"""What may be raised over a connection that is as good as before."""


class Outlet(Protocol):
    """Something to run statements over, beside the listener's link."""

    @property
    def lost(self) -> asyncio.Future[LinkLost]:
        """Done when the connection is gone; the result says why."""

    @property
    def borrow_seconds(self) -> float:
        """How long `lend` may wait for a connection."""

    def lend(self) -> AbstractAsyncContextManager[Runner]:
        """A session for as long as the context lasts; one at a time.

        An exception in there costs the session, as nobody knows what state it is in; but for
        `HARMLESS`, of which the caller has seen to the transaction.

        Raises:
            ConnectError, FatalLinkError: If there is no connection.
        """

    async def close(self) -> None:
        """End the connection politely, within about a second. Twice is harmless."""

    def abort(self) -> None:
        """Drop the connection at once, without a word to the server. Twice is harmless."""


async def discard(outlet: Outlet, seconds: float = 2.0) -> None:
    """End a connection of which nothing is wanted any more, whatever state it is in.

    Args:
        outlet: The connection.
        seconds: How long a pool may take that gets it back; it may raise anything, too.
    """
    outlet.abort()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(seconds):
            await outlet.close()


class Link(Runner, Outlet, Protocol):
    """One dedicated connection.

    A statement that was cancelled leaves the link unusable: abort it.
    """

    @property
    def pid(self) -> int:
        """The PID of the server process; 0 where it is not known."""

    @property
    def server_version(self) -> str:
        """The version, as the server tells it."""

    @property
    def heard_at(self) -> float:
        """When a whole message or answer last arrived, in seconds of the event loop's clock."""

    def start(
        self, sink: Sink, on_undecodable: OnUndecodable | None = None, batch: int | None = None
    ) -> None:
        """Hand what has arrived to the sink, and from now on all that arrives.

        Args:
            sink: Where it goes.
            on_undecodable: Told of payloads that are not UTF-8; they come with surrogate escapes.
            batch: How many messages of a channel to hand on in one turn of the event loop; None
                for all that are there.
        """

    def flush(self) -> None:
        """Hand on at once what is still held for a later turn."""

    async def change(self, listen: Sequence[str], unlisten: Sequence[str]) -> None:
        """UNLISTEN and LISTEN, in one round trip and one transaction: all of it or nothing.

        When it returns, what arrived on these channels in front of the answer is handed on.
        """

    async def inspect(self) -> Session:
        """Ask the server what our session listens to; takes no transaction id and no WAL."""


class Connector(Protocol):
    """Something that makes links."""

    def describe(self) -> str:
        """Where it connects to, in words that carry no secret."""

    async def connect(self, part: str, timeout: float) -> Link:
        """A new link, fit for a listener but listening to nothing.

        Args:
            part: What the link is for; becomes part of its application_name.
            timeout: The seconds that one host may take. The caller sets the deadline for all.

        Raises:
            ConnectError: If there is no connection now.
            FatalLinkError: If waiting will not bring one.

        Cancel safety: no connection is left behind.
        """

    async def outlet(self, part: str, timeout: float) -> Outlet:
        """Something to run other statements over; otherwise as `connect`."""


class Borrowed(NamedTuple):
    """A connection as its driver made it, for the user to work with."""

    connection: Any
    release: Callable[[], Awaitable[Any]]
    """Closes it, or gives it back to its pool."""


class Lender(Connector, Protocol):
    """A connector that can also hand out what the driver makes."""

    async def borrow(self, part: str, timeout: float) -> Borrowed:
        """A connection of the source's own kind; otherwise as `connect`."""


# -- what a listener's session must look like -----------------------------------------------------

# A listener is idle by trade: none of these may end it. Which of them exist depends on the server's
# version, so the server is asked. An application_name of the user's own is left as it is. A query
# that nobody waits for any more ends, where the server can notice (PostgreSQL 14, not everywhere).
PREPARE_SESSION: Final = """\
SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
 WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout',
                'statement_timeout', 'transaction_timeout', 'lock_timeout') AND setting <> '0';
SELECT set_config('application_name', '{application_name}', false)
 WHERE current_setting('application_name') = '';
SELECT set_config(name, '5000', false) FROM pg_catalog.pg_settings
 WHERE name = 'client_connection_check_interval' AND pg_catalog.version() LIKE '%linux%'"""

# Asking for the usage also heals: PostgreSQL 18 finds out only then that a queue which was full no
# longer is, and refuses every NOTIFY until somebody asks.
INSPECT_SESSION: Final = """\
SELECT pg_catalog.pg_is_in_recovery()::text, channel, pg_catalog.pg_backend_pid()::text,
       pg_catalog.pg_notification_queue_usage()::text
  FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_listening_channels() AS channel ON true"""

NOTIFY: Final = "SELECT pg_catalog.pg_notify($1, $2)"


def prepare_session(part: str) -> str:
    """The statements that make a fresh session fit for a listener.

    Args:
        part: What the connection is for; becomes part of its application_name.
    """
    return PREPARE_SESSION.format(application_name=f"pgnotifybus {part}")


def change_channels(listen: Iterable[str], unlisten: Iterable[str]) -> str:
    """UNLISTEN and LISTEN statements as one simple query, which is one transaction."""
    return "; ".join(
        [f"UNLISTEN {quote(name)}" for name in unlisten]
        + [f"LISTEN {quote(name)}" for name in listen]
    )


def session_from_rows(rows: Iterable[Sequence[str | None]]) -> Session:
    """What `INSPECT_SESSION` answered."""
    in_recovery, pid, usage = False, 0, 0.0
    channels: set[str] = set()
    for recovery, channel, process, queue in rows:
        in_recovery, pid, usage = recovery == "true", int(process or 0), float(queue or 0)
        if channel is not None:
            channels.add(channel)
    return Session(frozenset(channels), in_recovery, pid, usage)


# -- sockets --------------------------------------------------------------------------------------

KEEPALIVE_IDLE: Final = 5
KEEPALIVE_INTERVAL: Final = 2
KEEPALIVE_COUNT: Final = 3
USER_TIMEOUT_MS: Final = 10_000

KEEPALIVE_PARAMETERS: Final = {
    "keepalives_idle": KEEPALIVE_IDLE,
    "keepalives_interval": KEEPALIVE_INTERVAL,
    "keepalives_count": KEEPALIVE_COUNT,
    "tcp_user_timeout": USER_TIMEOUT_MS,
}
"""The same as parameters of libpq."""


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel notice a dead peer within about ten seconds, also without probes.

    Keepalive covers a silent connection, TCP_USER_TIMEOUT one with data in flight, during which
    Linux sends no keepalive (tcp(7)).
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ):
        option = getattr(socket, name, None)  # macOS has not all of them
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
