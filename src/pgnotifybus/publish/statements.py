"""From messages to the queries that send them, without sending. Layer: publish."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import Final

from pgnotifybus.core.envelope import pack, refer
from pgnotifybus.core.names import MAX_PAYLOAD_BYTES, quote
from pgnotifybus.database.queries import Query, Script, array
from pgnotifybus.errors import PayloadTooLarge
from pgnotifybus.links.base import NOTIFY
from pgnotifybus.publish.message import Message

# Which server this is, and since when it has not crashed: the statistics are reset when it recovers
# from a crash, as they cannot be trusted then; the timeline changes with a failover.
_IDENTITY: Final = """\
(SELECT pg_catalog.concat_ws(' ', system.system_identifier, checkpoint.timeline_id,
                              extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()))
   FROM pg_catalog.pg_control_system() AS system,
        pg_catalog.pg_control_checkpoint() AS checkpoint)"""

_NOTIFY_MANY: Final = """\
SELECT pg_catalog.count(pg_catalog.pg_notify(message.channel, message.wire))::text,
       pg_catalog.pg_current_xact_id()::text, {identity}
  FROM ROWS FROM (
         pg_catalog.unnest(CAST(CAST($1 AS text) AS text[])),
         pg_catalog.unnest(CAST(CAST($2 AS text) AS text[]))
       ) AS message (channel, wire)"""

_SPILL_ONE: Final = """\
WITH spilled AS (
  INSERT INTO {schema}.payloads (id, channel, payload)
  VALUES (CAST(CAST($1 AS text) AS uuid), CAST($2 AS text), CAST($3 AS text))
)
SELECT pg_catalog.pg_notify(CAST($2 AS text), CAST($4 AS text))"""

_SPILL_MANY: Final = """\
WITH spilled AS (
  INSERT INTO {schema}.payloads (id, channel, payload)
  SELECT CAST(one.id AS uuid), one.channel, one.payload
    FROM ROWS FROM (
           pg_catalog.unnest(CAST(CAST($3 AS text) AS text[])),
           pg_catalog.unnest(CAST(CAST($4 AS text) AS text[])),
           pg_catalog.unnest(CAST(CAST($5 AS text) AS text[]))
         ) AS one (id, channel, payload)
)
"""

# Asked of the catalog and not of the table: in the caller's transaction nothing may fail. The
# answer is of type name, as the caller may have told the driver to read text in another way.
_MAY_SPILL: Final = """\
SELECT (pg_catalog.has_schema_privilege(space.oid, 'USAGE')
        AND pg_catalog.has_table_privilege(class.oid, 'INSERT'))::text::name,
       (pg_catalog.current_setting('transaction_read_only') = 'on'
        AND NOT pg_catalog.pg_is_in_recovery())::text::name
  FROM pg_catalog.pg_class AS class
  JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
 WHERE space.nspname = CAST($1 AS text) AND class.relname = 'payloads' AND class.relkind = 'r'"""


QUEUE_FULL: Final = "54000"
"""The SQLSTATE of a commit for whose notifications there is no room in the server's queue."""


PAGE_BYTES: Final = 8192
"""BLCKSZ, in which max_notify_queue_pages counts (PostgreSQL 17 and later)."""


def queue_pages() -> Query:
    """Ask how many pages the notification queue has; null where that cannot be set, and is 8 GB."""
    return Query("SELECT pg_catalog.current_setting('max_notify_queue_pages', true)", ())


def make_room() -> Query:
    """Have the server throw away the notifications that all listeners have read.

    It does so by itself only when notifications are added. So a queue that is full stays full,
    also when the listener that held it up has long gone, until somebody asks how full it is
    (async.c, seen with PostgreSQL 18).
    """
    return Query("SELECT pg_catalog.pg_notification_queue_usage()::text", ())


def send_one(message: Message, schema: str) -> Script[None]:
    """Send one message, in whatever transaction the connection is in.

    Args:
        message: What to send.
        schema: The schema of the spill table.

    Raises:
        PayloadTooLarge: If it would have to be spilled and cannot be; nothing has failed in the
            transaction.
    """
    if message.wire is not None:
        yield Query(NOTIFY, (message.channel, message.wire))
        return
    yield from may_spill(message, schema)
    row = new_row()
    wire = refer(row, message.size, message.stamp)
    sql = _SPILL_ONE.format(schema=quote(schema))
    yield Query(sql, (row, message.channel, message.payload, wire))


def may_spill(message: Message, schema: str) -> Script[None]:
    """Ask whether the spill table is there and may be written.

    A standby is left to refuse by itself: it refuses every notification, and may be a primary soon.

    Raises:
        PayloadTooLarge: If it is not, or may not.
    """
    rows = yield Query(_MAY_SPILL, (schema,))
    if not rows:
        raise _too_large(
            message,
            "it does not fit compressed either. Install the spill table (`pgnotifybus schema "
            "install`, or `await schema.install(source)`), or send a key and let the receiver "
            "read the row",
        )
    permitted, read_only = rows[0]
    if permitted != "true":
        table = f"{quote(schema)}.payloads"
        raise _too_large(
            message,
            f"it would have to go into {table}, which this role may not write: GRANT USAGE ON "
            f"SCHEMA {quote(schema)}, and GRANT INSERT ON {table}, to it",
        )
    if read_only == "true":
        raise _too_large(
            message, "it would have to go into the spill table, and the transaction is read-only"
        )


def _too_large(message: Message, advice: str) -> PayloadTooLarge:
    """The error that says how much room there was: what an envelope needs is not there."""
    start = message.payload[:1]  # a payload that begins like an envelope needs one, too
    envelope = len(pack(start, len(start.encode()), message.stamp) or "") - len(start)
    if envelope:
        advice = f"its envelope takes the other {envelope}; {advice}"
    return PayloadTooLarge(message.size, MAX_PAYLOAD_BYTES - envelope, advice)


def send_many(messages: Sequence[Message], schema: str, *, identify: bool) -> Query:
    """One statement that sends messages in their order, spilling what has to be.

    It answers how many were sent, the id of the transaction, and which server it is.

    Args:
        messages: What to send; at least one.
        schema: The schema of the spill table.
        identify: Whether to ask which server it is; where not, it answers null.
    """
    wires: list[str] = []
    spilled: list[tuple[str, str, str]] = []
    for each in messages:
        if each.wire is not None:
            wires.append(each.wire)
        else:
            row = new_row()
            wires.append(refer(row, each.size, each.stamp))
            spilled.append((row, each.channel, each.payload))
    notify_many = _NOTIFY_MANY.format(identity=_IDENTITY if identify else "NULL::text")
    sent = (array([each.channel for each in messages]), array(wires))
    if not spilled:
        return Query(notify_many, sent)
    columns = tuple(array(column) for column in zip(*spilled, strict=True))
    return Query(_SPILL_MANY.format(schema=quote(schema)) + notify_many, sent + columns)


def identify() -> Query:
    """Ask which server it is; not every role may know."""
    return Query(f"SELECT {_IDENTITY}", ())


def status_of(transaction: str) -> Query:
    """Ask what has become of a transaction (PostgreSQL 13 and later, as the id has 64 bits)."""
    return Query("SELECT pg_catalog.pg_xact_status(CAST(CAST($1 AS text) AS xid8))", (transaction,))


def new_row() -> str:
    """An id for a row: nobody can guess it, and later ones sort behind earlier ones (RFC 9562)."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    bits = (bits & ~(0xF << 76)) | (7 << 76)
    bits = (bits & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=bits))
