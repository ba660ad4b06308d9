"""PgBouncer, Debian's package, in front of a server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import psycopg

from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.embedded.ports import free_port
from support.servers import PASSWORD

Mode = Literal["session", "transaction", "statement"]

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

_CONFIGURATION = """\
[databases]
{database} = host={host} port={port} user={user} password='{password}' dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
admin_users = {user}
pool_mode = {mode}
default_pool_size = {size}
query_wait_timeout = 5
ignore_startup_parameters = extra_float_digits
logfile = {directory}/log
pidfile = {directory}/pid
"""


@dataclass(frozen=True)
class Bouncer:
    """One that runs."""

    dsn: str
    """Leads through it."""
    _write: Callable[[Mode], object]

    def change(self, mode: Mode) -> None:
        """Have another pool_mode from now on; who is connected keeps the session as it is."""
        self._write(mode)
        console = urlunsplit(urlsplit(self.dsn)._replace(path="/pgbouncer"))
        with psycopg.connect(console, autocommit=True, cursor_factory=psycopg.ClientCursor) as own:
            own.execute("RELOAD")


@contextlib.contextmanager
def bouncer(server: EmbeddedServer, dsn: str, mode: Mode, *, size: int = 5) -> Iterator[Bouncer]:
    """Run it.

    Args:
        server: What it stands in front of.
        dsn: Of one database of it.
        mode: Its pool_mode.
        size: How many connections it opens to the server.
    """
    assert PROGRAM is not None, "pgbouncer is not installed (package pgbouncer)"
    parts = urlsplit(server.dsn)
    database = urlsplit(dsn).path.lstrip("/")
    listen = free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        directory = Path(name)
        directory.chmod(0o777)  # it gives up root
        configuration = directory / "ini"

        def write(mode: Mode) -> None:
            configuration.write_text(
                _CONFIGURATION.format(
                    database=database,
                    host=parts.hostname,
                    port=parts.port,
                    user=parts.username,
                    password=PASSWORD,
                    listen=listen,
                    mode=mode,
                    size=size,
                    directory=directory,
                )
            )

        write(mode)
        configuration.chmod(0o644)
        as_nobody = ["--user", "nobody"] if os.getuid() == 0 else []
        process = subprocess.Popen(
            [PROGRAM, "--quiet", *as_nobody, str(configuration)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not _answers(listen):  # it says nowhere when it is ready
                assert process.poll() is None, (directory / "log").read_text()
                time.sleep(0.01)
            user = parts.username or "postgres"
            through = ("postgresql", f"{user}@127.0.0.1:{listen}", f"/{database}", "", "")
            yield Bouncer(urlunsplit(through), write)
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
