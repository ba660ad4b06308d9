"""One running postmaster: signals, and waiting for its end. Layer: embedded.

Started here it is our own child, which is waited for; adopted from another process it is only a
process id. It lives in a session of its own, so that a Ctrl-C in the terminal does not reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pgnotifybus.embedded import processes
from pgnotifybus.embedded.account import Account
from pgnotifybus.embedded.cluster import EmbeddedServerError
from pgnotifybus.embedded.initdb import environment

_KILL_TIMEOUT = 30.0  # seconds; a killed process ends as soon as the kernel lets go of its I/O
_STOP_SECONDS = 5.0  # a process in the kernel stops when it leaves it, at the end of an I/O


class PostmasterProcess:
    """A postmaster that runs, or ran.

    Args:
        pid: Its process id.
        child: The handle of our own child; None for one that another process started.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.paused = False
        self._child = child

    @classmethod
    def launch(cls, command: Sequence[str], account: Account, log_path: Path) -> PostmasterProcess:
        """Start a postmaster whose output is appended to a log. It is not yet ready."""
        # No link is followed: the log may lie in a directory that others can write to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.open(log_path, flags, 0o600)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(),
                start_new_session=True,
                **account.switch,
            )
        except OSError as error:
            raise EmbeddedServerError(f"cannot run {command[0]}: {error}") from error
        finally:
            os.close(log)
        return cls(child.pid, child)

    @property
    def running(self) -> bool:
        """Whether it lives; a paused one does."""
        if self._child is not None:
            return self._child.poll() is None
        return processes.alive(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the postmaster alone; one that is gone is no error."""
        processes.send(self.pid, number)

    def wait(self, timeout: float) -> bool:
        """Wait for its end, at most `timeout` seconds; tell whether it has ended."""
        if self._child is None:
            return not processes.wait_gone([self.pid], timeout)
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill it and all its children (SIGKILL) and wait until all of them are gone."""
        if not self.running:
            return
        self.signal(signal.SIGSTOP)  # it must not fork while its children are listed
        family = processes.children(self.pid)
        for pid in (self.pid, *family):
            processes.send(pid, signal.SIGKILL)
        if not self.wait(_KILL_TIMEOUT) or processes.wait_gone(family, _KILL_TIMEOUT):
            raise EmbeddedServerError(
                f"the processes of postmaster {self.pid} do not end although they were killed: "
                "look for a disk or network file system that hangs"
            )

    def pause(self) -> None:
        """Stop it and all its children where they stand (SIGSTOP)."""
        self.signal(signal.SIGSTOP)
        self.paused = True
        processes.wait_stopped([self.pid], _STOP_SECONDS)  # first, so that it forks no more
        children = processes.children(self.pid)
        for pid in children:
            processes.send(pid, signal.SIGSTOP)
        processes.wait_stopped(children, _STOP_SECONDS)

    def resume(self) -> None:
        """Let it and its children go on (SIGCONT); harmless when it is not paused."""
        if self.paused:
            for pid in (*processes.children(self.pid), self.pid):
                processes.send(pid, signal.SIGCONT)
            self.paused = False

    def disown(self) -> None:
        """Leave it running for other processes: from now on it is theirs to stop."""
        if self._child is not None and self._child.poll() is None:
            # Otherwise the handle would complain, when collected, about a child left behind.
            self._child.returncode = 0
        self._child = None
