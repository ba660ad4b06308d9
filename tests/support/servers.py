"""The PostgreSQL servers that tests run against, each started when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgnotifybus.embedded import EmbeddedServer, find
from pgnotifybus.errors import MissingExtra

PASSWORD = "s3cret+pw/x"  # with characters that a DSN has to quote

# Only these versions may be absent from a machine; the others come with the test dependencies.
PACKAGES = {15: "postgresql-15"}


def why_absent(version: int) -> str | None:
    """Return the reason to skip tests of a version that need not be here, or None."""
    if version not in PACKAGES:
        return None  # and if it is absent all the same, starting it fails and says so
    try:
        find(version)
    except MissingExtra:
        return f"PostgreSQL {version} is not installed (package {PACKAGES[version]})"
    return None


@dataclass(slots=True)
class Servers:
    """Servers by version and settings; `close` stops them all."""

    running: dict[tuple[object, ...], EmbeddedServer] = field(default_factory=dict)

    def get(self, version: int, settings: Mapping[str, str] | None = None) -> EmbeddedServer:
        """Return the server of a version and settings, up and answering whatever was done to it."""
        chosen = dict(settings or {})
        key = (version, *sorted(chosen.items()))
        server = self.running.get(key)
        if server is None:
            server = self.running[key] = EmbeddedServer(
                version=version, tcp=True, settings=chosen, password=PASSWORD
            )
        server.resume()
        server.start()
        return server

    def dsns(self) -> list[str]:
        """Return the superuser's DSN of every server that answers at this moment."""
        return [each.dsn for each in self.running.values() if each.running and not each.paused]

    def close(self) -> None:
        """Stop all servers and remove their data."""
        for each in self.running.values():
            each.close()
        self.running.clear()
