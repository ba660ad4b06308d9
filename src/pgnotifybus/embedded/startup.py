"""From programs and a directory to a server that takes connections. Layer: embedded."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pgnotifybus.embedded import account as accounts
from pgnotifybus.embedded import cluster, ports, scratch
from pgnotifybus.embedded.cluster import EmbeddedServerError
from pgnotifybus.embedded.initdb import initdb
from pgnotifybus.embedded.installations import Installation
from pgnotifybus.embedded.postmaster import PostmasterProcess

# Source: the server's documentation, "Shutting Down the Server".
STOP_SIGNALS: Mapping[Literal["fast", "immediate", "smart"], signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT if sys.platform != "win32" else signal.SIGTERM,
}

_START_TIMEOUT = 60.0  # seconds; crash recovery of a small server takes well under one
_PATIENCE = 10.0  # seconds in which a conflict with what is just ending may pass
_POLL = 0.005
_SOCKET_PORT = 5432  # without TCP only part of the socket's name
_LARGEST_LOG = 10_000_000  # bytes after which a log starts anew
_PORT_TAKEN = "could not create any TCP/IP sockets"
# Children outlive a killed postmaster for a moment, and hold its shared memory.
_STILL_ENDING = "pre-existing shared memory block"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start.

    Attributes:
        installation: The programs as they were found.
        account: Who runs them.
        data_dir: The data directory; made when absent.
        log_path: The log to append to.
        programs_dir: Where a mirror of the programs may go.
        settings: Server settings by name.
        password: The superuser's password, for a data directory that is made.
        tcp: Whether to listen on 127.0.0.1.
        port: The port of the last start; None chooses one.
        socket_dir: The socket's directory at the last start; None chooses one.
    """

    installation: Installation
    account: accounts.Account
    data_dir: Path
    log_path: Path
    programs_dir: Path
    settings: Mapping[str, str]
    password: str | None = field(repr=False)
    tcp: bool
    port: int | None
    socket_dir: Path | None


class Started(NamedTuple):
    """A server that takes connections, and where."""

    process: PostmasterProcess
    port: int
    socket_dir: Path


def start(plan: Plan) -> Started:
    """Make the data directory if it is absent, start the server and wait until it is ready.

    Raises:
        EmbeddedServerError: It did not start; the message holds the end of its log.
    """
    installation = _prepare(plan)
    if cluster.postmaster_of(plan.data_dir) is not None:
        raise EmbeddedServerError(
            f"another process runs a server on {plan.data_dir}: stop that one first, or share it "
            "(shared_server)"
        )
    socket_dir = plan.socket_dir
    if socket_dir is None or not socket_dir.is_dir():
        socket_dir = scratch.socket_directory(plan.data_dir, plan.account)
    deadline = time.monotonic() + _PATIENCE
    while True:
        port = plan.port or (ports.free_port() if plan.tcp else _SOCKET_PORT)
        cluster.remove_stale_locks(plan.data_dir, socket_dir, port)
        offset = _log_size(plan.log_path)
        command = _command(installation, plan, socket_dir, port)
        process = PostmasterProcess.launch(command, plan.account, plan.log_path)
        try:
            ready = _wait_ready(process, plan.data_dir)
        except BaseException:
            process.kill()
            raise
        if ready:
            return Started(process, port, socket_dir)
        said = cluster.tail(plan.log_path, offset)
        passing = _PORT_TAKEN in said or _STILL_ENDING in said
        if not passing or time.monotonic() > deadline:
            hint = "another process took its port" if _PORT_TAKEN in said else "see its log"
            raise EmbeddedServerError(
                f"the server on {plan.data_dir} did not start: {hint}. "
                f"{plan.log_path} ends:\n{said}"
            )
        time.sleep(_POLL)


def find_running(data_dir: Path) -> Started | None:
    """Return the server that runs on a data directory once it is ready, or None.

    Raises:
        EmbeddedServerError: There is one, and it does not become ready.
    """
    found = cluster.postmaster_of(data_dir)
    if found is None or not _wait_ready(PostmasterProcess(found.pid), data_dir):
        return None
    found = cluster.postmaster_of(data_dir)
    if found is None or found.socket_dir is None:
        return None
    return Started(PostmasterProcess(found.pid), found.port, found.socket_dir)


def make_parents(data_dir: Path) -> None:
    """Make the directories above; root's let the server's own user through whatever the umask."""
    for each in reversed([each for each in data_dir.parents if not each.exists()]):
        each.mkdir(exist_ok=True)
        each.chmod(0o755 if os.geteuid() == 0 else 0o700)


def _prepare(plan: Plan) -> Installation:
    """Make sure of programs that the account can run and of a data directory it can use."""
    make_parents(plan.data_dir)
    if not plan.account.can_enter(plan.data_dir.parent):
        raise EmbeddedServerError(
            f"the server runs as the user '{plan.account.name}', who cannot enter "
            f"{plan.data_dir.parent}: choose a directory that others may pass through "
            "(PGNOTIFYBUS_DATA_DIR), or run this as a normal user"
        )
    installation = accounts.reachable(plan.installation, plan.account, plan.programs_dir)
    if cluster.major_version(plan.data_dir) is None:
        if plan.data_dir.exists() and any(plan.data_dir.iterdir()):
            raise EmbeddedServerError(
                f"{plan.data_dir} is neither empty nor a PostgreSQL data directory: choose another"
            )
        initdb(installation, plan.account, plan.data_dir, plan.password)
    return installation


def _command(installation: Installation, plan: Plan, socket_dir: Path, port: int) -> list[str]:
    settings = {
        "port": str(port),
        "listen_addresses": "127.0.0.1" if plan.tcp else "",
        "unix_socket_directories": _quoted(socket_dir),
        "log_destination": "stderr",
        "logging_collector": "off",
        "lc_messages": "C",
        **plan.settings,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [str(installation.bin_dir / "postgres"), "-D", str(plan.data_dir), *flags]


def _quoted(path: Path) -> str:
    """Quote a path for a setting that is a list: it may hold commas."""
    return '"' + str(path).replace('"', '""') + '"'


def _wait_ready(process: PostmasterProcess, data_dir: Path) -> bool:
    """Wait until the postmaster takes connections; False when it ends instead."""
    deadline = time.monotonic() + _START_TIMEOUT
    while process.running:
        found = cluster.postmaster_of(data_dir)
        if found is not None and found.pid == process.pid and found.ready:
            return True
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"the server on {data_dir} did not become ready within {_START_TIMEOUT:.0f} s: "
                "it may be recovering; look at its log and try again"
            )
        time.sleep(_POLL)
    return False


def _log_size(path: Path) -> int:
    """Return where the log of this start begins; a log that has grown large starts anew."""
    if not path.exists():
        return 0
    if path.stat().st_size > _LARGEST_LOG:
        path.unlink()
        return 0
    return path.stat().st_size
