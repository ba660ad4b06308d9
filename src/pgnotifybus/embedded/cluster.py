"""A data directory: what postmaster.pid says about it, and its error. Layer: embedded, leaf."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pgnotifybus.embedded import processes
from pgnotifybus.errors import PgNotifyBusError


class EmbeddedServerError(PgNotifyBusError):
    """The embedded server could not do what was asked; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running postmaster, as its own lock file describes it.

    Attributes:
        pid: Its process id.
        port: The port number of its sockets.
        socket_dir: The directory of its Unix socket; None until it has one.
        tcp: Whether it listens on TCP too.
        ready: Whether it accepts connections.
    """

    pid: int
    port: int
    socket_dir: Path | None
    tcp: bool
    ready: bool


def postmaster_of(data_dir: Path) -> Postmaster | None:
    """Return the postmaster that runs on a data directory, or None.

    Source: src/include/utils/pidfile.h names the lines of postmaster.pid.
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        pid = abs(int(lines[0]))  # negative for a single-user server
    except (OSError, ValueError, IndexError):  # absent, or being written at this moment
        return None
    if not processes.alive(pid) or not processes.works_in(pid, data_dir):
        return None
    lines += [""] * (8 - len(lines))
    return Postmaster(
        pid=pid,
        port=int(lines[3] or 0),
        socket_dir=Path(lines[4]) if lines[4] else None,
        tcp=bool(lines[5].strip()),
        ready=lines[7].strip() in {"ready", "standby"},
    )


def major_version(data_dir: Path) -> int | None:
    """Return the major version that a data directory was made by, or None if it is none."""
    try:
        return int((data_dir / "PG_VERSION").read_text())
    except (OSError, ValueError):
        return None


def remove_stale_locks(data_dir: Path, socket_dir: Path, port: int) -> None:
    """Remove the lock files of a dead postmaster.

    PostgreSQL does so itself unless the process id lives on: as a zombie that nobody reaps, or
    given to another process since. To be called only when `postmaster_of` says None.
    """
    socket = socket_dir / f".s.PGSQL.{port}"
    for each in (data_dir / "postmaster.pid", socket, socket.with_name(f"{socket.name}.lock")):
        each.unlink(missing_ok=True)


def tail(path: Path, offset: int = 0, lines: int = 15) -> str:
    """Return the last lines of a log file, from a byte offset on, indented for a message."""
    try:
        with path.open("rb") as log:
            log.seek(offset)
            text = log.read().decode(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (empty log)"
