"""One server in the user's data directory for several processes. Layer: embedded.

Two lock files stand beside the data directory. The *door* is held exclusively while a process
comes in or leaves; the *room* is held shared by everybody who is in. Who leaves tries to make its
hold on the room exclusive: that works for the last one only, which then stops the server. The
kernel drops the locks of a killed process, so none goes stale, and a server that was left running
is adopted by whoever comes in next.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgnotifybus.embedded import installations, startup
from pgnotifybus.embedded.server import EmbeddedServer, require_posix
from pgnotifybus.errors import MissingExtra

if sys.platform != "win32":
    import fcntl

DATA_DIR_VARIABLE = "PGNOTIFYBUS_DATA_DIR"
_ROOTS_PLACE = Path("/var/lib/pgnotifybus")  # below /root the server's own user could not get in


def default_data_dir(version: int) -> Path:
    """Return where the shared server of a major version keeps its data: `.../pg18`.

    It is below $PGNOTIFYBUS_DATA_DIR if that is set, else in the user's data directory, and for
    root in /var/lib.

    Raises:
        MissingExtra: platformdirs is not installed; the message is the pip command.
    """
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    if chosen:
        base = Path(chosen).expanduser().absolute()
    elif os.geteuid() == 0:
        base = _ROOTS_PLACE
    else:
        try:
            import platformdirs
        except ImportError as error:
            raise MissingExtra("embedded") from error
        base = Path(platformdirs.user_data_dir("pgnotifybus", appauthor=False))
    return base / f"pg{version}"


@contextmanager
def shared_server(data_dir: Path | None = None) -> Iterator[EmbeddedServer]:
    """Use the server that all processes of this user share; start it if nobody has.

    It listens on a Unix socket only, and stops when the last process that uses it leaves. The
    data stay.

    Args:
        data_dir: The data directory; None takes `default_data_dir` of the newest version here.

    Raises:
        MissingExtra: There is no PostgreSQL here; the message is the pip command.
        EmbeddedServerError: The server did not start; the message says why and what helps.
    """
    require_posix()
    place = data_dir or default_data_dir(installations.find().version)
    startup.make_parents(place)
    server = EmbeddedServer(place)
    with _hold(place.with_name(f"{place.name}.room.lock")) as room:
        with _hold(place.with_name(f"{place.name}.door.lock"), fcntl.LOCK_EX):
            fcntl.flock(room, fcntl.LOCK_SH)
            if not server.adopt():
                server.start()
        try:
            yield server
        finally:
            with _hold(place.with_name(f"{place.name}.door.lock"), fcntl.LOCK_EX):
                if _is_last(room):
                    server.close()
                else:
                    server.disown()


def _is_last(room: int) -> bool:
    try:
        fcntl.flock(room, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _hold(path: Path, operation: int | None = None) -> Iterator[int]:
    """Open a lock file, lock it if an operation is given, and let go of it at the end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if operation is not None:
            fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)
