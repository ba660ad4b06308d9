"""What a link is, and what both drivers share. Layer: links.

A link is told which channels to change, and answers when the server has acknowledged it. What it
receives it hands, in batches, to a sink; until `start` is called it keeps it back, because what
arrives in the same packet as the answer to LISTEN must come behind the gap that announces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pgnotifybus.core.names import quote
from pgnotifybus.errors import AuthenticationFailed, ConnectError, FatalLinkError, LinkLost

Sink = Callable[[str, list[str], list[int]], None]
"""Takes a channel, the payloads that arrived on it, and the PID of each one's sender."""

OnUndecodable = Callable[[str, int], None]
"""Told a channel, and how many payloads on it were not UTF-8."""


@dataclass(frozen=True, slots=True)
class Session:
    """What the server says about our session."""

    channels: frozenset[str]
    in_recovery: bool


class ServerError(Exception):
    """The server refused a statement; the connection is still good."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message, sqlstate)
        self.message = message
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"{self.message} (SQLSTATE {self.sqlstate})" if self.sqlstate else self.message


class Outlet(Protocol):
    """Something that sends notifications, one at a time.

    It raises `ServerError` if the server refuses, which leaves it as good as before, `LinkLost` if
    the connection went while sending, and `ConnectError` if there was none.
    """

    @property
    def lost(self) -> asyncio.Future[LinkLost]:
        """Done when the connection is gone; the result says why."""

    async def notify(self, channel: str, payload: str) -> None:
        """Send one notification and wait for its commit."""

    async def close(self) -> None:
        """End the connection politely, within about a second. Twice is harmless."""

    def abort(self) -> None:
        """Drop the connection at once, without a word to the server. Twice is harmless."""


class Link(Outlet, Protocol):
    """One dedicated connection. Statements must be issued one at a time.

    Every statement raises `ServerError` if the server refuses it and `LinkLost` if the connection
    is gone. None of them has a deadline of its own: the caller knows how long is too long. A
    statement that was cancelled leaves the link unusable: abort it.
    """

    @property
    def pid(self) -> int:
        """The PID of the server process; 0 where it is not known."""

    @property
    def server_version(self) -> str:
        """The version, as the server tells it."""

    @property
    def heard_at(self) -> float:
        """When something last arrived, in seconds of the event loop's clock."""

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

        When it returns, everything that arrived in front of the answer has been handed on.
        """

    async def inspect(self) -> Session:
        """Ask the server what our session listens to; takes no transaction id and no WAL."""


class Inbox:
    """What has arrived and not yet been handed on, grouped by channel.

    What came in one packet may be more than a ring holds. Handed on at once, it would overrun even
    a receiver that is always ready. So a channel gets a batch in each turn of the event loop, and
    receivers have their turns in between. Nobody is waited for: a receiver that is not ready by
    then lags.
    """

    __slots__ = (
        "_batch",
        "_held",
        "_loop",
        "_on_undecodable",
        "_share",
        "_sink",
        "_turn_due",
        "_undecodable",
    )

    def __init__(self, *, share: int | None = None) -> None:
        """Hold nothing yet.

        Args:
            share: At least one message of so many held is handed on in a turn. For those who cannot
                stop messages from coming: so what is held stays small however fast they come.
        """
        self._loop = asyncio.get_running_loop()
        self._share = share
        self._held: dict[str, tuple[list[str], list[int]]] = {}
        self._undecodable: dict[str, int] = {}
        self._sink: Sink | None = None
        self._on_undecodable: OnUndecodable | None = None
        self._batch: int | None = None
        self._turn_due = False

    def start(
        self, sink: Sink, on_undecodable: OnUndecodable | None = None, batch: int | None = None
    ) -> None:
        self._sink = sink
        self._on_undecodable = on_undecodable
        self._batch = batch
        self.hand_on()

    def of(self, channel: str) -> tuple[list[str], list[int]]:
        """Where to put the payloads of a channel, and the PIDs of their senders."""
        held = self._held.get(channel)
        if held is None:
            held = self._held[channel] = ([], [])
        return held

    @property
    def behind(self) -> bool:
        """Whether something waits for a later turn of the loop."""
        return self._turn_due

    def note_undecodable(self, channel: str) -> None:
        self._undecodable[channel] = self._undecodable.get(channel, 0) + 1

    def hand_on(self) -> None:
        """Hand on a batch of each channel now, and the rest in the next turns."""
        if self._turn_due or self._sink is None:
            return
        sink, batch = self._sink, self._batch
        held, self._held = self._held, {}
        for channel, (payloads, pids) in held.items():
            size = len(payloads) if batch is None else batch
            if self._share is not None:
                size = max(size, len(payloads) // self._share)
            sink(channel, payloads[:size], pids[:size])
            if size < len(payloads):
                self._held[channel] = (payloads[size:], pids[size:])
        if self._undecodable:
            self._tell_undecodable()
        if self._held:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def flush(self) -> None:
        """Hand on everything now: behind it comes what must not be overtaken."""
        if self._sink is not None:
            held, self._held = self._held, {}
            for channel, (payloads, pids) in held.items():
                self._sink(channel, payloads, pids)
            self._tell_undecodable()

    def _turn(self) -> None:
        self._turn_due = False
        self.hand_on()

    def _tell_undecodable(self) -> None:
        undecodable, self._undecodable = self._undecodable, {}
        if self._on_undecodable is not None:
            for channel, count in undecodable.items():
                self._on_undecodable(channel, count)


# -- what a listener's session must look like -----------------------------------------------------

# A listener is idle by trade: none of these may end it. Which of them exist depends on the server's
# version, so the server is asked. An application_name of the user's own is left as it is.
PREPARE_SESSION: Final = """\
SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
 WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout',
                'statement_timeout', 'transaction_timeout', 'lock_timeout') AND setting <> '0';
SELECT set_config('application_name', '{application_name}', false)
 WHERE current_setting('application_name') = ''"""

INSPECT_SESSION: Final = """\
SELECT pg_catalog.pg_is_in_recovery()::text, channel
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
    in_recovery = False
    channels: set[str] = set()
    for recovery, channel in rows:
        in_recovery = recovery == "true"
        if channel is not None:
            channels.add(channel)
    return Session(frozenset(channels), in_recovery)


# -- sockets --------------------------------------------------------------------------------------

KEEPALIVE_IDLE: Final = 5
KEEPALIVE_INTERVAL: Final = 2
KEEPALIVE_COUNT: Final = 3
USER_TIMEOUT_MS: Final = 10_000


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


# -- why a connection could not be made -----------------------------------------------------------

# libpq gives no SQLSTATE for a failed connect, only the server's text.
_SQLSTATE_BY_TEXT: Final = (
    (re.compile(r"password authentication failed|no password supplied"), "28P01"),
    (re.compile(r"authentication failed|no pg_hba\.conf entry|pg_hba\.conf rejects"), "28000"),
    (re.compile(r'role ".*" (does not exist|is not permitted to log in)'), "28000"),
    (re.compile(r'database ".*" does not exist'), "3D000"),
    (re.compile(r"permission denied for database"), "42501"),
    (re.compile(r"too many (clients|connections)|connection slots are reserved"), "53300"),
    (re.compile(r"the database system is|not yet accepting connections"), "57P03"),
    (re.compile(r"session is read-only|is not in hot standby|server is in hot standby"), "25006"),
)

_WAITING_HELPS: Final = frozenset({"53300", "57P01", "57P02", "57P03", "25006"})


def connect_failure(where: str, text: str, sqlstate: str | None) -> ConnectError | FatalLinkError:
    """The error to raise for a connect that failed, and what to do about it.

    Args:
        where: The server, in words that may be shown.
        text: What the driver said; must not carry a password.
        sqlstate: The server's code, if the driver knows it.
    """
    text = _tidy(text)
    if sqlstate is None:
        sqlstate = next((s for pattern, s in _SQLSTATE_BY_TEXT if pattern.search(text)), None)
    if sqlstate is not None and sqlstate.startswith("28"):
        return AuthenticationFailed(
            f"{where} refused these credentials: {text}. Check user, password and pg_hba.conf"
        )
    if sqlstate == "3D000":
        return FatalLinkError(f"{where} has no such database: {text}. Create it or correct the DSN")
    if sqlstate == "42501":
        return FatalLinkError(
            f"{where} refuses this user: {text}. GRANT CONNECT on the database to it"
        )
    if sqlstate == "25006":
        return ConnectError(
            f"{where} is a standby, which takes no LISTEN: {text}. Connect to the primary "
            "(target_session_attrs=read-write)",
            waiting_helps=True,
        )
    if sqlstate in _WAITING_HELPS:
        return ConnectError(f"{where} takes no connection now: {text}", waiting_helps=True)
    return ConnectError(
        f"cannot connect to {where}: {text}. Check host, port and that the server runs"
    )


def _tidy(text: str) -> str:
    """One line, without what libpq says of where it connected and what to do."""
    text = " ".join(text.split())
    text = re.sub(r"^connection (failed|is bad): ", "", text)
    text = re.sub(r"^connection to server (at|on socket) .*? failed: (FATAL: )?", "", text)
    return (
        text.removesuffix(" Is the server running on that host and accepting TCP/IP connections?")
        .removesuffix(" Is the server running locally and accepting connections on that socket?")
        .rstrip(".")
    )
