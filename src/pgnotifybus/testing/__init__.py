"""What your tests need: an in-memory bus, faults on demand, a recording observer, pytest fixtures.

Layer: edge; nothing imports it.

::

    recording       an observer that remembers, and is waited for
    pending         what a transaction will send
    killing         ending the link of a bus, real or in memory
    session         one session of the in-memory server
    server          MemoryServer: what commits, and who is told; its transactions
    memory          MemoryBus: the real bus on that server
    proxied         one connection through the proxy
    proxy           FaultProxy: a TCP proxy that cuts, resets, stalls, drips and refuses
"""

from __future__ import annotations

from pgnotifybus.testing.killing import kill_link
from pgnotifybus.testing.memory import MemoryBus
from pgnotifybus.testing.proxy import FaultProxy
from pgnotifybus.testing.recording import RecordingObserver
from pgnotifybus.testing.server import MemoryServer, MemoryTransaction

__all__ = [
    "FaultProxy",
    "MemoryBus",
    "MemoryServer",
    "MemoryTransaction",
    "RecordingObserver",
    "kill_link",
]
