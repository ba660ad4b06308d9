"""PostgreSQL LISTEN/NOTIFY that is safe to build on.

One LISTEN connection per process, any number of subscribers, and nothing lost silently::

    async with PgNotifyBus("postgresql://localhost/shop", ["orders"]) as bus:
        async for payload in bus.subscribe("orders"):
            print(payload)

`broadcast` and `watch` are the two primitives underneath, usable alone.
"""

from pgnotifybus import broadcast, observe, watch
from pgnotifybus._version import __version__
from pgnotifybus.bus import ChannelStatistics, Health, PgNotifyBus, Statistics
from pgnotifybus.errors import (
    AuthenticationFailed,
    Closed,
    ConnectError,
    Empty,
    FatalLinkError,
    InvalidChannel,
    Lagged,
    LinkError,
    LinkLost,
    ListenRejected,
    MissingExtra,
    PayloadTooLarge,
    PgNotifyBusError,
    PoolTooSmall,
    ProbeTimeout,
)
from pgnotifybus.messages import Gap, Notification

__all__ = [
    "AuthenticationFailed",
    "ChannelStatistics",
    "Closed",
    "ConnectError",
    "Empty",
    "FatalLinkError",
    "Gap",
    "Health",
    "InvalidChannel",
    "Lagged",
    "LinkError",
    "LinkLost",
    "ListenRejected",
    "MissingExtra",
    "Notification",
    "PayloadTooLarge",
    "PgNotifyBus",
    "PgNotifyBusError",
    "PoolTooSmall",
    "ProbeTimeout",
    "Statistics",
    "__version__",
    "broadcast",
    "observe",
    "watch",
]
