"""Every exception of the library. Layer: leaf.

::

    PgNotifyBusError
    |- Empty, Lagged(skipped), Closed                       outcomes of receiving
    |- InvalidChannel, PayloadTooLarge                      the caller's mistakes; also ValueError
    |- LinkError: ConnectError, LinkLost, ProbeTimeout      retried by the bus, cause chained
    |- FatalLinkError: AuthenticationFailed, ListenRejected, PoolTooSmall   waiting will not help
    |- MissingExtra(extra)                                  also ImportError; says what to install

No message here ever carries a password: what a driver says about a DSN it could not parse is
not repeated.
"""

from __future__ import annotations


class PgNotifyBusError(Exception):
    """The base of all errors that this library raises on purpose."""


# -- outcomes of receiving ----------------------------------------------------------------------


class Empty(PgNotifyBusError):
    """Nothing is there now, but more may come: await `recv` instead of polling `try_recv`."""


class Lagged(PgNotifyBusError):
    """The receiver was too slow and its oldest unread values were overwritten.

    It now stands at the oldest value that is kept; the next receive returns that one. Go on
    receiving, after re-reading whatever the skipped values would have told you.

    Attributes:
        skipped: How many values this receiver missed; exact, at least 1.
    """

    def __init__(self, skipped: int) -> None:
        super().__init__(skipped)
        self.skipped = skipped

    def __str__(self) -> str:
        return (
            f"the receiver lagged and skipped {self.skipped} value(s); it goes on at the oldest "
            "one kept. Receive in batches (recv_many) or raise the capacity if this is frequent"
        )


class Closed(PgNotifyBusError):
    """The channel is closed and everything unread has been handed out: stop receiving.

    A send raises it too, when the channel has been closed.
    """


# -- the caller's mistakes ------------------------------------------------------------------------


class InvalidChannel(PgNotifyBusError, ValueError):
    """The name cannot be a PostgreSQL channel; the message says why. Raised before any I/O."""


class PayloadTooLarge(PgNotifyBusError, ValueError):
    """The payload does not fit into a notification: send a key and let the receiver read the row.

    Attributes:
        size: The size of the payload in bytes of UTF-8.
        limit: The largest size that fits, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"the payload has {self.size} bytes of UTF-8, PostgreSQL takes {self.limit} at the "
            "most: send a key and let the receiver read the row"
        )


# -- the connection -------------------------------------------------------------------------------


class LinkError(PgNotifyBusError):
    """Something about the connection to the server that passes: the bus retries these."""


class ConnectError(LinkError):
    """A connection could not be made: check host, port, network and that the server runs.

    Attributes:
        waiting_helps: The server answered, but is starting, stopping, full or a standby.
    """

    def __init__(self, message: str, *, waiting_helps: bool = False) -> None:
        super().__init__(message)
        self.waiting_helps = waiting_helps


class LinkLost(LinkError):
    """An established connection is gone; the cause is chained."""


class ProbeTimeout(LinkLost):
    """The server did not answer a statement in time, so the connection is held to be dead."""


class FatalLinkError(PgNotifyBusError):
    """Something about the connection that waiting will not mend; the message says what will."""


class AuthenticationFailed(FatalLinkError):
    """The server refused these credentials: check user, password and pg_hba.conf."""


class ListenRejected(FatalLinkError):
    """The server refused to LISTEN; the message names the channel and the server's reason."""


class PoolTooSmall(FatalLinkError):
    """The pool has one connection, and the bus would keep it for ever: give it at least 2."""


# -- installation ---------------------------------------------------------------------------------


class MissingExtra(PgNotifyBusError, ImportError):
    """A feature was asked for whose packages are not installed.

    Attributes:
        extra: The name of the extra that brings them.
    """

    def __init__(self, extra: str, instead: str = "") -> None:
        super().__init__(extra)
        self.extra = extra
        self._instead = instead

    def __str__(self) -> str:
        command = f"pip install 'pgnotifybus[{self.extra}]'"
        return f"{command}   ({self._instead})" if self._instead else command
