"""What your tests need: an in-memory bus, faults on demand, a recording observer, pytest fixtures.

Layer: edge; nothing imports it.

::

    recording       an observer that remembers, and is waited for
    proxied         one connection through the proxy
    proxy           FaultProxy: a TCP proxy that cuts, resets, stalls, drips and refuses
"""

from __future__ import annotations

from pgnotifybus.testing.proxy import FaultProxy
from pgnotifybus.testing.recording import RecordingObserver

__all__ = ["FaultProxy", "RecordingObserver"]
