"""Every exception of the library. Layer: leaf.

::

    PgNotifyBusError
    |- Empty, Lagged(skipped), Closed                       outcomes of receiving
    |- PayloadLost(reason)                                  one message of which only the id came
    |- Malformed(channel, payload, reason)                  one message that is not of the type
    |- InvalidChannel, PayloadTooLarge                      the caller's mistakes; also ValueError
    |- SchemaError                                          the library's tables in the database
    |- EventLogError: CursorExpired(oldest), EpochMismatch, SchemaMissing, InvalidCursor
    |- BufferFull, PublishFailed(unsent, unknown)           outcomes of publishing
    |- LinkError: ConnectError, LinkLost, ProbeTimeout      retried by the bus, cause chained
    |      ConnectError: Standby
    |- FatalLinkError: AuthenticationFailed, BehindPooler, ListenRejected, PoolTooSmall
    |                                                       waiting will not help
    |- MissingExtra(extra)                                  also ImportError; says what to install

No message here ever carries a password: what a driver says about a DSN it could not parse is
not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal


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


class PayloadLost(PgNotifyBusError):
    """A message has arrived whose payload lay in the spill table and could not be had.

    It counts as skipped. Go on receiving, after re-reading what it would have told you.

    Attributes:
        reason: `"expired"`: retention has removed it. `"unreadable"`: it could not be fetched.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return {
            "expired": "the payload of a message is no longer in the spill table: it was written "
            "longer ago than the retention says (see schema.install)",
        }.get(
            self.reason,
            "the payload of a message could not be fetched from the spill table; the log says why",
        )


class Malformed(PgNotifyBusError):
    """A payload has arrived that does not decode as the type of its channel.

    Raised by `recv`, and yielded as an item by `events()`. It takes the place of that one message:
    go on receiving.

    Attributes:
        channel: The name of the channel.
        payload: The text as it has arrived. The message of the error never repeats it: it may
            hold secrets.
        reason: What is wrong with it and where, in the words of the decoder.
    """

    def __init__(self, channel: str, payload: str, reason: str) -> None:
        super().__init__(channel, payload, reason)
        self.channel = channel
        self.payload = payload
        self.reason = reason

    def __repr__(self) -> str:  # asyncio logs it, for a task that nobody has awaited
        return f"{type(self).__name__}({self.channel!r}, {self.reason!r})"

    def __str__(self) -> str:
        # Bytes that were not UTF-8 stand in it as one lone surrogate each: "replace" counts one.
        size = len(self.payload.encode(errors="replace"))
        return (
            f"a payload of {size} bytes on channel {self.channel!r} is not of the channel's type: "
            f"{self.reason}. `.payload` has it raw; go on receiving, the next one may be well"
        )


class BufferFull(PgNotifyBusError):
    """The publisher holds as many messages as it may: await `publish`, or send less."""


class Closed(PgNotifyBusError):
    """The channel is closed and everything unread has been handed out: stop receiving.

    A send raises it too, when the channel has been closed.
    """


# -- the caller's mistakes ------------------------------------------------------------------------


class InvalidChannel(PgNotifyBusError, ValueError):
    """The name cannot be a PostgreSQL channel; the message says why. Raised before any I/O."""


class PayloadTooLarge(PgNotifyBusError, ValueError):
    """The payload cannot be sent; the message says what to do about it.

    Attributes:
        size: The size of the payload in bytes of UTF-8.
        limit: The largest size that can be sent, in bytes.
    """

    def __init__(self, size: int, limit: int, advice: str = "") -> None:
        super().__init__(size, limit, advice)
        self.size = size
        self.limit = limit
        self._advice = advice or "send a key and let the receiver read the row"

    def __str__(self) -> str:
        return (
            f"the payload has {self.size} bytes of UTF-8, and {self.limit} is the limit: "
            f"{self._advice}"
        )


class SchemaError(PgNotifyBusError):
    """What the library keeps in the database cannot be installed, used or removed.

    The message says why, and names the GRANT where one is missing.
    """


class EventLogError(PgNotifyBusError):
    """The event log cannot do what was asked of it."""


class SchemaMissing(EventLogError, SchemaError):
    """The tables of the library are not there, or not all: install them (`schema.install`)."""


class InvalidCursor(EventLogError, ValueError):
    """The text is no cursor of an event log: pass `str(event.cursor)` exactly as it was."""


class CursorExpired(EventLogError):
    """Retention has deleted events behind this cursor: what they told is lost to this reader.

    Re-read what they would have told you, and go on after `oldest`; or let `follow(gaps=True)` do
    so, which yields a `Gap`.

    Attributes:
        oldest: The `Cursor` in front of the oldest event that is kept.
    """

    def __init__(self, message: str, oldest: Any) -> None:
        super().__init__(message, oldest)
        self.oldest = oldest

    def __str__(self) -> str:
        return str(self.args[0])


class EpochMismatch(EventLogError):
    """The cursor is of another log: another server or database, or one that was made anew.

    Nothing can be said about what lies between. Re-read what events would have told you, and follow
    from `"now"`, taken before; or let `follow(gaps=True)` do so, which yields a `Gap`.
    """


# -- sending --------------------------------------------------------------------------------------


class PublishFailed(PgNotifyBusError):
    """Messages that a publisher had taken were not sent, or it cannot know whether they were.

    Attributes:
        unsent: Those that were certainly not sent, in their order.
        unknown: Those that may have been sent: the connection was lost while they were committed,
            and the server could not be asked afterwards.
    """

    def __init__(
        self, reason: str, unsent: Sequence[tuple[str, str]], unknown: Sequence[tuple[str, str]]
    ) -> None:
        super().__init__(reason, unsent, unknown)
        self.reason = reason
        self.unsent = list(unsent)
        self.unknown = list(unknown)

    def __repr__(self) -> str:  # asyncio logs it, for a task that nobody has awaited
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        counts = [f"{len(self.unsent)} message(s) were not sent"] if self.unsent else []
        if self.unknown:
            counts.append(f"of {len(self.unknown)} it is not known whether they were sent")
        return f"{' and '.join(counts)}: {self.reason}"


# -- the connection -------------------------------------------------------------------------------


class ConnectionProblem(PgNotifyBusError):
    """What is wrong with a connection, and what to do about it.

    Attributes:
        cause: What is wrong.
        advice: What to do; empty where nobody knows.
    """

    health: ClassVar[Literal["down", "standby", "behind a pooler"]] = "down"
    """What a bus that has no link because of it is."""

    def __init__(self, cause: str, advice: str = "") -> None:
        super().__init__(*filter(None, (cause, advice)))
        self.cause = cause
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.cause}. {self.advice}" if self.advice else self.cause


class LinkError(ConnectionProblem):
    """Something about the connection to the server that passes: the bus retries these."""


class ConnectError(LinkError):
    """A connection could not be made: check host, port, network and that the server runs.

    Attributes:
        waiting_helps: The server answered, but is starting, stopping, full or a standby.
    """

    def __init__(self, cause: str, advice: str = "", *, waiting_helps: bool = False) -> None:
        super().__init__(cause, advice)
        self.waiting_helps = waiting_helps


class Standby(ConnectError):
    """The server is a standby, which takes no LISTEN: connect to the primary.

    In a DSN that names several hosts, the primary is looked for.
    """

    health = "standby"

    def __init__(
        self,
        cause: str,
        advice: str = "Connect to the primary: name all hosts in the DSN, and it is found, also "
        "after it has moved",
    ) -> None:
        super().__init__(cause, advice, waiting_helps=True)


class LinkLost(LinkError):
    """An established connection is gone; the cause is chained."""


class ProbeTimeout(LinkLost):
    """The server did not answer a statement in time, so the connection is held to be dead."""


class FatalLinkError(ConnectionProblem):
    """Something about the connection that waiting will not mend; the message says what will."""


class AuthenticationFailed(FatalLinkError):
    """The server refused these credentials: check user, password and pg_hba.conf."""


class BehindPooler(FatalLinkError):
    """A pooler lends the connection to others between transactions, and swallows notifications.

    It takes LISTEN without an error, and then nothing ever arrives: PgBouncer in transaction or
    statement mode, and its like. Use its session mode, or the server's own address.
    """

    health = "behind a pooler"

    def __init__(
        self,
        cause: str,
        advice: str = "Use session pooling (PgBouncer: pool_mode=session), or listen at the "
        "server's own address (PgNotifyBus: direct_dsn=)",
    ) -> None:
        super().__init__(cause, advice)


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
