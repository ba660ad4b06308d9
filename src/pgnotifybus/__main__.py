"""The console entry, also `python -m pgnotifybus`. Layer: cli.

It does what must come before everything else: it takes a password out of the process list, and
says what to install where the packages of the command line are missing.
"""

from __future__ import annotations

import os
import sys

from pgnotifybus.errors import MissingExtra

_USAGE = 2


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
    except BrokenPipeError:
        # The reader of our output has had enough. What is buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)


if __name__ == "__main__":
    main()
