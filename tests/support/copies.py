"""Copies of servers and databases, made by PostgreSQL's own programs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pgnotifybus.embedded import EmbeddedServer, account, find


def program(server: EmbeddedServer, name: str) -> str:
    """The path of one of the server's programs."""
    return str(find(server.server_version).bin_dir / name)


def dump(server: EmbeddedServer, database: str) -> str:
    """What pg_dump writes of a database."""
    done = subprocess.run(
        [program(server, "pg_dump"), "--dbname", server.dsn_for(database=database)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def restore(server: EmbeddedServer, database: str, script: str) -> None:
    """Have psql run a dump."""
    dsn = server.dsn_for(database=database)
    subprocess.run(
        [program(server, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", dsn],
        check=True,
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
    )


def standby_of(primary: EmbeddedServer, password: str) -> EmbeddedServer:
    """A standby that streams from a server; not started."""
    directory = primary.data_dir.parent / f"standby-{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            program(primary, "pg_basebackup"),
            *("--dbname", primary.dsn),
            *("--pgdata", str(directory)),
            *("--checkpoint", "fast"),
            *("--wal-method", "stream"),
            "--write-recovery-conf",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    owner = account.choose()
    for path in [directory, *directory.rglob("*")]:
        owner.own(path)
    version = primary.server_version
    settings = {"fsync": "off", "full_page_writes": "off", "hot_standby": "on"}
    settings["max_prepared_transactions"] = "4"  # at least as many as the primary
    return EmbeddedServer(
        directory, version=version, tcp=True, password=password, settings=settings
    )


@contextlib.contextmanager
def standby_beside(primary: EmbeddedServer, password: str) -> Iterator[EmbeddedServer]:
    """A standby that streams from a server, up and answering; gone at the end."""
    copy = standby_of(primary, password)
    try:
        copy.start()
        yield copy
    finally:
        discard(copy)


def several_hosts(one: str, other: str) -> str:
    """The first DSN, with the hosts of both."""
    first, second = urlsplit(one), urlsplit(other)
    netloc = f"{first.netloc},{second.hostname}:{second.port}"
    return urlunsplit(first._replace(netloc=netloc))


def discard(server: EmbeddedServer) -> None:
    """Stop a copy and delete it."""
    directory: Path = server.data_dir
    server.close()
    if directory.is_dir():
        shutil.rmtree(directory)
