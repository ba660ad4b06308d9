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
    databases       a database for each test
    plugin          the fixtures, which pytest finds by itself
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "FaultProxy": "proxy",
    "MemoryBus": "memory",
    "MemoryServer": "server",
    "MemoryTransaction": "server",
    "RecordingObserver": "recording",
    "kill_link": "killing",
}


def __getattr__(name: str) -> object:
    # At first use: pytest imports the plugin beside this for every run, also for those of tests
    # that have nothing to do with a bus.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
