"""The console entry, also `python -m pgnotifybus`. Layer: cli.

It does what must come before everything else: it takes a password out of the process list, and
says what to install where the packages of the command line are missing.
"""

from __future__ import annotations

import errno
import os
import sys

from pgnotifybus.errors import MissingExtra

_FAILED = 1
_USAGE = 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """Run the command line, and exit with its code."""
    try:
        from pgnotifybus.cli import secrecy

        secrecy.hide_dsn()
        try:
            from pgnotifybus.cli import app
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in ("typer", "rich"):
                raise
            sys.stderr.write(f"error: the command line is not installed: {MissingExtra('cli')}\n")
            sys.exit(_USAGE)
        app.main()
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has had enough
        _give_up_stdout()
        sys.exit(0)
    except OSError as error:
        # Of stdout: an error about a file that was opened by its name would name it.
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _give_up_stdout()
        from pgnotifybus.cli.outcomes import say

        say(f"error: cannot write the output: {error.strerror}")
        sys.exit(_FAILED)


def _give_up_stdout() -> None:
    """Let what is buffered not be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
