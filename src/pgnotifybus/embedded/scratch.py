"""Private temporary directories that outlive no process for long. Layer: embedded.

Each process has at most one scratch directory. Its owner holds a lock on a file in it for as
long as it lives, so a later process can tell a directory in use from one whose owner was killed,
and clears the latter away together with the server that still runs in it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from pgnotifybus.embedded import processes
from pgnotifybus.embedded.account import Account
from pgnotifybus.embedded.cluster import EmbeddedServerError, postmaster_of

if sys.platform != "win32":
    import fcntl

_PREFIX = "pgnotifybus-"
_SOCKET_PREFIX = "pgnotifybus_socket-"  # not one that a sweep looks at
_LOCK = "owner.lock"
# A socket's address has room for 104 bytes on macOS and 108 on Linux; of these ours take some.
LONGEST_SOCKET_DIR = 103 - len("/.s.PGSQL.65535")
_LONGEST_BASE = LONGEST_SOCKET_DIR - len(f"/{_PREFIX}12345678/9999/data")


class _Scratch:
    """The scratch directory of this process."""

    def __init__(self, account: Account) -> None:
        base = _base(account)
        _sweep(base)
        self.pid = os.getpid()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self.path.chmod(0o755)  # the account must get through; what is inside is private
        self.numbers = count(1)
        # Locked before it has its name: a sweep must never see it unlocked.
        unnamed = self.path / f"{_LOCK}.new"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)
        self.closers: list[Callable[[], None]] = []
        atexit.register(self._remove)

    def _remove(self) -> None:
        if os.getpid() == self.pid:  # a forked child must not pull it from under its parent
            for close in list(self.closers):
                with suppress(EmbeddedServerError):
                    close()
            shutil.rmtree(self.path, ignore_errors=True)


_current: list[_Scratch] = []  # at most one; a forked child replaces its parent's
_guard = threading.Lock()


def root(account: Account) -> Path:
    """Return this process's scratch directory, made on first use and removed at exit."""
    return _scratch(account).path


def new_directory(account: Account) -> Path:
    """Make an empty directory with a short path, that the account can enter and we own."""
    scratch = _scratch(account)
    path = scratch.path / str(next(scratch.numbers))
    path.mkdir()
    path.chmod(0o755)
    return path


def socket_directory(data_dir: Path, account: Account) -> Path:
    """Return where the socket of a server goes: its data directory, if the path is short enough.

    Otherwise a directory made for it, which `remove_socket_directory` removes.
    """
    if len(os.fsencode(data_dir)) <= LONGEST_SOCKET_DIR:
        return data_dir
    path = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=_base(account)))
    account.own(path)
    return path


def remove_socket_directory(path: Path | None) -> None:
    """Remove a directory that `socket_directory` made; leave any other alone."""
    if path is not None and path.name.startswith(_SOCKET_PREFIX):
        shutil.rmtree(path, ignore_errors=True)


def at_removal(close: Callable[[], None]) -> None:
    """Call a function before the scratch directory goes, at the exit of this process."""
    for scratch in _current:
        scratch.closers.append(close)


def forget(close: Callable[[], None]) -> None:
    """Undo `at_removal`; harmless when it was not called."""
    for scratch in _current:
        if close in scratch.closers:
            scratch.closers.remove(close)


def _scratch(account: Account) -> _Scratch:
    with _guard:
        if not _current or _current[0].pid != os.getpid() or not _current[0].path.is_dir():
            _current[:] = [_Scratch(account)]
        return _current[0]


def _base(account: Account) -> Path:
    """Choose a temporary directory: short enough for sockets, and open to the account."""
    for each in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        path = Path(each).resolve()
        if len(os.fsencode(path)) <= _LONGEST_BASE and path.is_dir() and account.can_enter(path):
            return path
    raise EmbeddedServerError(
        f"no temporary directory has a path of at most {_LONGEST_BASE} bytes and lets the user "
        f"'{account.name}' in: set TMPDIR to one"
    )


def _sweep(base: Path) -> None:
    """Clear away what processes left that were killed before they could do it themselves."""
    for each in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another sweep is at it, or it is not ours to touch
            facts = each.lstat()
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
                _sweep_one(each)


def _sweep_one(path: Path) -> None:
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for data_dir in path.glob("*/data"):
            postmaster = postmaster_of(data_dir)
            if postmaster is not None:
                processes.send(postmaster.pid, signal.SIGCONT)
                processes.send(postmaster.pid, signal.SIGQUIT)
                for left in processes.wait_gone([postmaster.pid], timeout=10):
                    processes.send(left, signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
