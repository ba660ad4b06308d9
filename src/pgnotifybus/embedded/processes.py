"""The postmaster and its children, seen from outside. Layer: embedded, leaf.

Each backend calls setsid(), so neither a process group nor a session covers a whole server:
its processes are found by their parent. Linux answers from /proc; elsewhere `ps` is asked. A
zombie counts as gone, because in a container nobody may ever reap it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_POLL = 0.005  # seconds between two looks; a process ends within milliseconds


def children(pid: int) -> list[int]:
    """Return the process ids of the living direct children of a process."""
    return [child for child, parent, letter in _table() if parent == pid and letter != "Z"]


def alive(pid: int) -> bool:
    """Tell whether a process exists and is more than a zombie."""
    return state(pid) not in {None, "Z"}


def state(pid: int) -> str | None:
    """Return the letter that `ps` shows for what a process does, or None if there is none.

    Among them: R runs, S sleeps, T was stopped by a signal, Z is a zombie.
    """
    if _has_proc():
        entry = _stat(pid)
        return None if entry is None else entry[2]
    return next((letter for each, _, letter in _table() if each == pid), None)


def works_in(pid: int, directory: Path) -> bool:
    """Tell whether a process is the postmaster of a data directory.

    A process id in a file that a crash left behind may belong to somebody else by now.
    """
    if _has_proc():
        try:
            return (_PROC / str(pid) / "cwd").readlink() == directory.resolve()
        except OSError:
            return False
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(directory) in answer.stdout


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is already gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_gone(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait until processes have ended, at most `timeout` seconds; return those that have not."""
    deadline = time.monotonic() + timeout
    left = [pid for pid in pids if alive(pid)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL)
        left = [pid for pid in left if alive(pid)]
    return left


def wait_stopped(pids: Iterable[int], timeout: float) -> None:
    """Wait until processes that were sent SIGSTOP have stopped, or ended, for `timeout` seconds.

    The signal is only noted by `kill`: one that runs on another core, or waits for the disk, goes
    on for a moment.
    """
    deadline = time.monotonic() + timeout
    going = list(pids)
    while going := [pid for pid in going if state(pid) not in {None, "T", "Z"}]:
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL)


def _has_proc() -> bool:
    return (_PROC / "self" / "stat").exists()


def _table() -> list[tuple[int, int, str]]:
    """Return (pid, parent's pid, state letter) of all processes."""
    if _has_proc():
        entries = (_stat(int(each.name)) for each in _PROC.iterdir() if each.name.isdigit())
        return [entry for entry in entries if entry is not None]
    command = ["ps", "-A", "-o", "pid=,ppid=,stat="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in lines.splitlines())
    return [(int(row[0]), int(row[1]), row[2][0]) for row in rows]


def _stat(pid: int) -> tuple[int, int, str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:  # it ended between the listing and this read
        return None
    # The name is in parentheses and may itself hold spaces and parentheses.
    letter, parent = text.rpartition(")")[2].split()[:2]
    return pid, int(parent), letter
