"""PostgreSQL LISTEN/NOTIFY that is safe to build on.

One LISTEN connection per process, any number of subscribers, and nothing lost silently::

    async with PgNotifyBus("postgresql://localhost/shop", ["orders"]) as bus:
        async for payload in bus.subscribe("orders"):
            print(payload)

`broadcast` and `watch` are the two primitives underneath, usable alone.
"""

from pgnotifybus import broadcast, observe, schema, triggers, watch
from pgnotifybus._version import __version__
from pgnotifybus.bus import ChannelStatistics, Health, PgNotifyBus, Statistics
from pgnotifybus.errors import (
    AuthenticationFailed,
    BehindPooler,
    BufferFull,
    Closed,
    ConnectError,
    CursorExpired,
    Empty,
    EpochMismatch,
    EventLogError,
    FatalLinkError,
    InvalidChannel,
    InvalidCursor,
    Lagged,
    LinkError,
    LinkLost,
    ListenRejected,
    Malformed,
    MissingExtra,
    PayloadLost,
    PayloadTooLarge,
    PgNotifyBusError,
    PoolTooSmall,
    ProbeTimeout,
    PublishFailed,
    SchemaError,
    SchemaMissing,
    Standby,
)
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event import Event
from pgnotifybus.log.event_log import EventLog, LogStatistics
from pgnotifybus.messages import Gap, Notification
from pgnotifybus.publish.message import Envelope
from pgnotifybus.publish.publisher import Publisher
from pgnotifybus.publish.settings import PublisherStatistics
from pgnotifybus.publish.transaction import notify, notify_sync
from pgnotifybus.typed import Channel

__all__ = [
    "AuthenticationFailed",
    "BehindPooler",
    "BufferFull",
    "Channel",
    "ChannelStatistics",
    "Closed",
    "ConnectError",
    "Cursor",
    "CursorExpired",
    "Empty",
    "Envelope",
    "EpochMismatch",
    "Event",
    "EventLog",
    "EventLogError",
    "FatalLinkError",
    "Gap",
    "Health",
    "InvalidChannel",
    "InvalidCursor",
    "Lagged",
    "LinkError",
    "LinkLost",
    "ListenRejected",
    "LogStatistics",
    "Malformed",
    "MissingExtra",
    "Notification",
    "PayloadLost",
    "PayloadTooLarge",
    "PgNotifyBus",
    "PgNotifyBusError",
    "PoolTooSmall",
    "ProbeTimeout",
    "PublishFailed",
    "Publisher",
    "PublisherStatistics",
    "SchemaError",
    "SchemaMissing",
    "Standby",
    "Statistics",
    "__version__",
    "broadcast",
    "notify",
    "notify_sync",
    "observe",
    "schema",
    "triggers",
    "watch",
]
