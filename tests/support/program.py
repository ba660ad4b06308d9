"""The command line as a process of its own, whose lines are waited for."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_TIMEOUT = 15.0  # seconds for whatever is waited for


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without anything that says where a server is, and with changes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PG") and name not in ("DATABASE_URL", "NO_COLOR", "FORCE_COLOR")
    }
    return {**kept, "COLUMNS": "100", **changes}


def command(*arguments: str) -> list[str]:
    """The command that runs the program with these arguments."""
    return [sys.executable, "-m", "pgnotifybus", *arguments]


def run(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    done = subprocess.run(
        command(*arguments),
        env=clean_environment(**(env or {})),
        input=stdin,
        capture_output=True,
        timeout=_TIMEOUT,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


class Program:
    """A program that runs: its lines arrive while it does."""

    def __init__(self, process: subprocess.Popen[bytes], *, read_stdout: bool) -> None:
        self.process = process
        self.out: list[str] = []
        """What it has written to stdout so far, as far as it was waited for."""
        self.err: list[str] = []
        self._lines: dict[str, queue.SimpleQueue[str | None]] = {
            "out": queue.SimpleQueue(),
            "err": queue.SimpleQueue(),
        }
        assert process.stdout is not None
        assert process.stderr is not None
        if read_stdout:
            self.read_stdout()
        self._read("err", process.stderr)

    @property
    def pid(self) -> int:
        return self.process.pid

    def read_stdout(self) -> None:
        """Begin to read what it writes to stdout."""
        assert self.process.stdout is not None
        self._read("out", self.process.stdout)

    def line(self, where: str = "out") -> str:
        """The next line of `out` or `err`, waited for."""
        line = self._lines[where].get(timeout=_TIMEOUT)
        if line is None:
            self._lines[where].put(None)  # for `end`, which waits for it too
            raise AssertionError(f"{where} ended; stdout {self.out}, stderr {self.err}")
        (self.out if where == "out" else self.err).append(line)
        return line

    def until(self, wanted: Callable[[str], bool], where: str = "out") -> str:
        """The next line for which a predicate holds, waited for."""
        while not wanted(line := self.line(where)):
            pass
        return line

    def listening(self) -> Program:
        """Wait until it says that it listens."""
        self.until(lambda line: "listening: generation" in line, "err")
        return self

    def write(self, data: bytes) -> None:
        """Write to its stdin, which must be a pipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        """End its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end, read the rest of its lines; its exit code."""
        code = self.process.wait(_TIMEOUT)
        for where, lines in self._lines.items():
            if where == "out" and self.process.stdout and self.process.stdout.closed:
                continue
            while (line := lines.get(timeout=_TIMEOUT)) is not None:
                (self.out if where == "out" else self.err).append(line)
        return code

    def _read(self, where: str, pipe: IO[bytes]) -> None:
        def read() -> None:
            for line in pipe:
                self._lines[where].put(line.decode().rstrip("\n"))
            self._lines[where].put(None)

        threading.Thread(target=read, daemon=True).start()


@contextlib.contextmanager
def running(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    read_stdout: bool = True,
    argv: Sequence[str] | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    cwd: Path | None = None,
) -> Iterator[Program]:
    """Start the program; at the end it is killed if it still runs."""
    process = subprocess.Popen(
        argv or command(*arguments),
        env=clean_environment(**(env or {})),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
    )
    try:
        yield Program(process, read_stdout=read_stdout)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_TIMEOUT)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # for what it has not read
                    pipe.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition of another process holds."""
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
