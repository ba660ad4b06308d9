"""A TCP port for a server that keeps it while it is down. Layer: embedded, leaf."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _HIGHEST = 15_000, 32_000
_TRIES = 200


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses at this moment.

    It lies below the ephemeral range. A port out of that range, as binding port 0 gives, could be
    taken by any outgoing connection while the server is down; and a client that keeps trying to
    connect to it would sooner or later get it as its own source port and connect to itself.
    Another process may still take it first: start, and on a conflict ask again.
    """
    highest = min(_HIGHEST, _ephemeral_start() - 1)
    for _ in range(_TRIES if highest > _LOWEST else 0):
        port = random.randint(_LOWEST, highest)
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _HIGHEST + 1  # macOS and the BSDs begin at 49152


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As PostgreSQL does, so that connections in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
