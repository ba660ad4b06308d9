"""Notifying in the caller's transaction: sent when that commits, not sent if it does not.
Layer: publish.

The connection, and its transaction, stay the caller's: nothing is committed here, and what the
driver raises goes through as it is. Nothing is run that could fail and abort the transaction.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

from pgnotifybus.core.names import SCHEMA, check_schema
from pgnotifybus.database.callers import async_caller, sync_caller
from pgnotifybus.publish.message import Envelope, message
from pgnotifybus.publish.statements import send_one
from pgnotifybus.typed import Channel

__all__ = ["notify", "notify_sync"]

T = TypeVar("T")


@overload
async def notify(
    connection: object,
    channel: str,
    payload: str = "",
    *,
    envelope: Envelope | None = None,
    schema: str = SCHEMA,
) -> None: ...
@overload
async def notify(
    connection: object,
    channel: Channel[T],
    payload: T,
    *,
    envelope: Envelope | None = None,
    schema: str = SCHEMA,
) -> None: ...
async def notify(
    connection: object,
    channel: str | Channel[Any],
    payload: Any = "",
    *,
    envelope: Envelope | None = None,
    schema: str = SCHEMA,
) -> None:
    """Send a notification when the transaction of this connection commits.

    Rolled back, also to a savepoint, means not sent. On a connection that is in no transaction it
    is sent at once (asyncpg, and autocommit), or begins one (psycopg, SQLAlchemy), which you
    commit. The same channel and payload twice in one transaction arrive once.

    Args:
        connection: An asyncpg connection, a psycopg `AsyncConnection`, or a SQLAlchemy
            `AsyncSession` or `AsyncConnection`.
        channel: Any channel, case and special characters are kept; or a typed channel.
        payload: The text to send; for a typed channel, a value of its type. Over 7,999 bytes of
            UTF-8 it is compressed, or else written to the spill table, in this transaction.
        envelope: What the message should carry beside its payload.
        schema: The schema of the spill table, as `schema.install` was told.

    Raises:
        InvalidChannel, ValueError, TypeError: If channel, payload or envelope cannot be sent, or
            the connection is of another kind.
        PayloadTooLarge: If it does not fit into a notification, and there is no spill table that
            may be written; or if it has over 16 MiB.
        Exception: What the driver raises, as it is. Of the others, none touches the transaction.

    Cancel safety: as for any statement of the driver; roll the transaction back.
    """
    caller = async_caller(connection, "notify", "notify_sync")
    await caller.run(send_one(message(channel, payload, envelope), check_schema(schema)))


@overload
def notify_sync(
    connection: object,
    channel: str,
    payload: str = "",
    *,
    envelope: Envelope | None = None,
    schema: str = SCHEMA,
) -> None: ...
@overload
def notify_sync(
    connection: object,
    channel: Channel[T],
    payload: T,
    *,
    envelope: Envelope | None = None,
    schema: str = SCHEMA,
) -> None: ...
def notify_sync(
    connection: object,
    channel: str | Channel[Any],
    payload: Any = "",
    *,
    envelope: Envelope | None = None,
    schema: str = SCHEMA,
) -> None:
    """As `notify`, for a psycopg `Connection`, or a SQLAlchemy `Session` or `Connection`."""
    caller = sync_caller(connection, "notify_sync", "notify")
    caller.run(send_one(message(channel, payload, envelope), check_schema(schema)))
