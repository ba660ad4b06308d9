"""What comes on stdin, without holding up the event loop. Layer: cli.

Nobody knows when the next piece comes: it may be somebody who types. A thread that waits for it
could not be ended, so the loop waits; and what the loop cannot wait for, as a regular file, is
there at once.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from typing import Final, TextIO

from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem

_CHUNK: Final = 65_536  # bytes: as many as a pipe holds on Linux (pipe(7))


class Stdin:
    """Stdin, piece by piece or as a whole."""

    def __init__(self) -> None:
        """Read nothing yet.

        Raises:
            UsageProblem: If stdin is closed.
        """
        # Descriptor 0 may be anything then: the next one that was opened.
        stdin: TextIO | None = sys.stdin
        if stdin is None:
            raise UsageProblem("stdin is closed: there is nothing to read the payload from")
        self._stream = stdin.buffer
        try:
            self._fd = stdin.fileno()
            self._pollable = True
        except (io.UnsupportedOperation, ValueError):
            self._fd = -1
            self._pollable = False

    def whole(self, most: int) -> bytes:
        """All of it, or one byte more than `most` if there is more. Holds up whoever calls it.

        Raises:
            CommandFailed: If it cannot be read.
        """
        try:
            return self._stream.read(most + 1)
        except OSError as error:
            raise _unreadable(error) from None

    async def read(self) -> bytes:
        """What has come, as soon as something has; nothing at the end of the input.

        Raises:
            CommandFailed: If it cannot be read.

        Cancel safety: nothing is lost.
        """
        while True:
            await self._readable()
            try:
                if self._fd < 0:
                    return self._stream.read(_CHUNK)
                # It stays a descriptor that blocks, as others may share it; what is readable does
                # not block.
                return os.read(self._fd, _CHUNK)
            except BlockingIOError:  # one who shares it made it so, and took what was there
                continue
            except OSError as error:
                raise _unreadable(error) from None

    async def _readable(self) -> None:
        if self._pollable:
            loop = asyncio.get_running_loop()
            readable = asyncio.Event()
            try:
                loop.add_reader(self._fd, readable.set)
            except (OSError, NotImplementedError):  # epoll refuses regular files (epoll_ctl(2))
                self._pollable = False
            else:
                try:
                    await readable.wait()
                finally:
                    loop.remove_reader(self._fd)
                return
        await asyncio.sleep(0)  # others have their turn


def _unreadable(error: OSError) -> CommandFailed:
    return CommandFailed(f"cannot read stdin: {error.strerror}")
