"""A private PostgreSQL server from pip wheels, for the demo, the command line and tests.

Layer: edge; only the command line and tests import it, and it imports nothing but `errors`.
Importing it is cheap: the wheels are looked for when a server starts, and never imported.
POSIX only.

::

    installations   which PostgreSQL programs are on this machine
    account         the OS user the server runs as, and programs it can reach
    processes       the postmaster and its children, seen from outside
    scratch         private temporary directories that outlive no process for long
    cluster         a data directory: what postmaster.pid says
    initdb          making a data directory
    ports           a TCP port that stays free while the server is down
    postmaster      one running postmaster: signals, and waiting for its end
    startup         from programs and a directory to a server that takes connections
    server          EmbeddedServer: start, stop, kill, pause
    shared          one server in the user's data directory for several processes
"""

from __future__ import annotations

from pgnotifybus.embedded.cluster import EmbeddedServerError
from pgnotifybus.embedded.installations import Installation, find, find_installations
from pgnotifybus.embedded.server import EmbeddedServer
from pgnotifybus.embedded.shared import default_data_dir, shared_server

__all__ = [
    "EmbeddedServer",
    "EmbeddedServerError",
    "Installation",
    "default_data_dir",
    "find",
    "find_installations",
    "shared_server",
]
