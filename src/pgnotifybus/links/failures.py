"""Why a connection could not be made, and what to do about it. Layer: links."""

from __future__ import annotations

import re
from typing import Final

from pgnotifybus.errors import AuthenticationFailed, ConnectError, FatalLinkError, Standby

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
    (re.compile(r"match the target attribute requirement"), "25006"),  # asyncpg's words
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
            f"{where} refused these credentials: {text}", "Check user, password and pg_hba.conf"
        )
    if sqlstate == "3D000":
        return FatalLinkError(
            f"{where} has no such database: {text}", "Create it or correct the DSN"
        )
    if sqlstate == "42501":
        return FatalLinkError(
            f"{where} refuses this user: {text}", "GRANT CONNECT on the database to it"
        )
    if sqlstate == "25006":
        return Standby(f"{where} is a standby, which takes no LISTEN: {text}")
    if sqlstate in _WAITING_HELPS:
        return ConnectError(f"{where} takes no connection now: {text}", waiting_helps=True)
    return ConnectError(
        f"cannot connect to {where}: {text}", "Check host, port and that the server runs"
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
