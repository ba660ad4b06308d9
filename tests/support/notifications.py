"""What the server sends, seen by a listener that has nothing of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
from psycopg import sql

_TIMEOUT = 15.0  # seconds
_END = "the test's own end"


class Heard:
    """A plain LISTEN; payloads come as PostgreSQL carries them."""

    def __init__(self, dsn: str, channel: str) -> None:
        self._dsn = dsn
        self._channel = channel
        self._listening = psycopg.connect(dsn, autocommit=True)
        self._listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        self._payloads: list[str] = []

    def take(self, count: int) -> list[str]:
        """The next payloads, waited for."""
        self._wait_for(count)
        taken, self._payloads = self._payloads[:count], self._payloads[count:]
        return taken

    def rest(self) -> list[str]:
        """All that was committed so far and not taken: what is sent now comes behind it."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_notify(%s, %s)", (self._channel, _END))
        while self._payloads[-1:] != [_END]:
            self._wait_for(len(self._payloads) + 1)
        return self.take(len(self._payloads))[:-1]

    def close(self) -> None:
        """Listen no longer."""
        self._listening.close()

    def _wait_for(self, count: int) -> None:
        while (missing := count - len(self._payloads)) > 0:
            came = self._listening.notifies(timeout=_TIMEOUT, stop_after=missing)
            payloads = [each.payload for each in came]
            assert payloads, f"{missing} of {count} did not come"
            self._payloads += payloads


@contextlib.contextmanager
def hearing(dsn: str, channel: str) -> Iterator[Heard]:
    """Listen to a channel from now on."""
    heard = Heard(dsn, channel)
    try:
        yield heard
    finally:
        heard.close()
