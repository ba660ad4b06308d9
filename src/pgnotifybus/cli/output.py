"""Lines to stdout that never hold up the event loop. Layer: cli.

Whoever reads our output may stop: a pager, a terminal after Ctrl-S. Writing then blocks, and a
process that is blocked reads nothing from the server, which keeps notifications for it at the
cost of all others. So a thread writes, and who wants to write more waits for it without holding
up anything: the rings overrun then, and say how much is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Iterable
from typing import NamedTuple

from pgnotifybus.cli.outcomes import CommandFailed

_PATIENCE = 0.5  # seconds for what is still to be written at the end
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)


class _Chunk(NamedTuple):
    text: str
    written: asyncio.Future[None] | None


class Output:
    """Writes lines in the order in which they are put; enter it as a context manager."""

    def __init__(self) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nobody reads any more; fails with `CommandFailed` if writing does."""
        self._loop = asyncio.get_running_loop()
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._stream = sys.stdout
        self._encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            self._fd = self._stream.fileno()
        except (io.UnsupportedOperation, AttributeError, ValueError):
            self._fd = -1
        # A daemon, which writes to the descriptor and not to sys.stdout: it may be blocked when
        # the process ends, and must then hold no lock.
        self._thread = threading.Thread(target=self._write_all, name="output", daemon=True)
        self._watching = False

    async def __aenter__(self) -> Output:
        self._thread.start()
        self._watch_reader()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching:
            self._loop.remove_reader(self._fd)
        if not self.gone.done():
            rest = self._loop.create_future()
            self._chunks.put(_Chunk("", rest))
            await asyncio.wait(
                {rest, self.gone}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED
            )
        self._chunks.put(None)
        if self.gone.done():
            self.gone.exception()  # whoever cares has had it
        else:
            self.gone.cancel()

    def put(self, line: str) -> None:
        """Write a line some time soon, behind all those before it."""
        self._chunks.put(_Chunk(f"{line}\n", None))

    async def write(self, lines: Iterable[str]) -> None:
        """Write lines, and wait until they are out.

        Cancel safety: they are written all the same.
        """
        written = self._loop.create_future()
        self._chunks.put(_Chunk("".join(f"{line}\n" for line in lines), written))
        await written

    # -- inside -----------------------------------------------------------------------------------

    def _watch_reader(self) -> None:
        """Notice that the reader of a pipe has gone also while there is nothing to write."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError, NotImplementedError):
            if stat.S_ISFIFO(os.fstat(self._fd).st_mode):
                # The writing end never becomes readable, but an error is reported as that.
                self._loop.add_reader(self._fd, self._reader_gone)
                self._watching = True

    def _reader_gone(self) -> None:
        self._loop.remove_reader(self._fd)
        self._watching = False
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self.gone.done():
            return
        if error is None or error.errno in _GONE:
            self.gone.set_result(None)
        else:
            self.gone.set_exception(CommandFailed(f"cannot write the output: {error.strerror}"))

    def _write_all(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            try:
                self._write(chunk.text)
            except OSError as error:
                self._tell(self._end, error)
                return
            if chunk.written is not None:
                self._tell(_set, chunk.written)

    def _write(self, text: str) -> None:
        if self._fd < 0:
            self._stream.write(text)
            self._stream.flush()
            return
        data = memoryview(text.encode(self._encoding, "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody who shares the terminal made it so
                select.select([], [self._fd], [])

    def _tell(self, what: object, about: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(what, about)  # type: ignore[arg-type]


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
