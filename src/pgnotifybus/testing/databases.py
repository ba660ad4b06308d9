"""A database for each test. Layer: testing.

It is made and dropped in a thread of its own, so that a fixture that does it is of no event loop,
and works with every plugin for asynchronous tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from pgnotifybus.core.names import quote
from pgnotifybus.database.sidelink import one_connection
from pgnotifybus.links.sources import connector

_TIMEOUT: Final = 60.0
"""The seconds that making or dropping a database may take; on a busy machine it takes some."""


@contextlib.contextmanager
def fresh_database(dsn: str, template: str | None = None) -> Iterator[str]:
    """Make a database, and drop it at the end with whatever is connected to it.

    Args:
        dsn: In URI form; its role must be allowed to create databases.
        template: The database to copy, to which nobody may be connected; None for an empty one.

    Returns:
        The DSN of the new database. It may hold a password.

    Raises:
        ValueError: If the DSN is not in URI form.
        LinkError, FatalLinkError: If there is no connection.
        ServerError: If the server refuses.
    """
    parts = urlsplit(dsn)
    if not parts.scheme.startswith("postgres"):
        raise ValueError("the DSN of a server must be in URI form: postgresql://...")
    name = f"test_{uuid4().hex[:12]}"
    copied = "" if template is None else f" TEMPLATE {quote(template)}"
    _execute(dsn, f"CREATE DATABASE {name}{copied}")
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        _execute(dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _execute(dsn: str, sql: str) -> None:
    async def run() -> None:
        source = connector(dsn, None if find_spec("psycopg") else "asyncpg")
        async with one_connection(source, part="fixture", timeout=_TIMEOUT) as runner:
            await runner.execute(sql)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(run())).result()
