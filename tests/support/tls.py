"""TLS in front of a PostgreSQL server that has none: the wheels are built without OpenSSL."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import trustme

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_CHUNK = 65_536


@dataclass
class Tls:
    """Where TLS is, and how it sends."""

    dsn: str
    collect: int = 0
    """How many bytes for the client to collect before they are sent at once: so the size of the
    records is known."""


@contextlib.asynccontextmanager
async def tls_in_front_of(dsn: str, *, verified: bool = False) -> AsyncIterator[Tls]:
    """Reach the same server through TLS, which is taken off on the way.

    Args:
        dsn: Of the server.
        verified: Whether the DSN has the client verify the certificate, by its private CA.
    """
    tls = Tls("")
    parts = urlsplit(dsn)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    tasks: set[asyncio.Task[None]] = set()
    directory = tempfile.TemporaryDirectory(prefix="tls-")
    root = Path(directory.name) / "root.pem"
    authority.cert_pem.write_to_path(root)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        inner: asyncio.StreamWriter | None = None
        try:
            assert await reader.readexactly(8) == _SSL_REQUEST
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(context)
            from_server, inner = await asyncio.open_connection(parts.hostname, parts.port)
            async with asyncio.TaskGroup() as group:
                group.create_task(_forward(reader, inner, Tls("")))
                group.create_task(_forward(from_server, writer, tls))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in (writer, inner):
                if each is not None:
                    each.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_CHUNK)
    try:
        port = server.sockets[0].getsockname()[1]
        who = parts.netloc.rpartition("@")[0]
        query = "sslmode=require"
        if verified:
            query = f"sslmode=verify-full&sslrootcert={root}"
        tls.dsn = parts._replace(netloc=f"{who}@127.0.0.1:{port}", query=query).geturl()
        yield tls
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        directory.cleanup()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: Tls) -> None:
    collected = b""
    while data := await reader.read(_CHUNK):
        collected += data
        if len(collected) >= tls.collect:
            writer.write(collected)
            await writer.drain()
            collected = b""
    raise ConnectionResetError("one side has ended")
