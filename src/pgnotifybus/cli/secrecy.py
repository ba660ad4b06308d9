"""No password in the process list. Layer: cli.

Everybody on a machine can read the arguments of every process. So a DSN that may hold a password
is handed to the same program, started anew in the same process, through a pipe: the arguments are
then clean, and neither the environment nor any child has it either.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

_HANDED_OVER = "PGNOTIFYBUS_DSN_FD"
_OPTION = "--dsn"
# Less than any pipe holds, as nobody reads it before the program has started anew.
_LONGEST = 4_000

_handed: list[str] = []  # at most one


class Split(NamedTuple):
    """Arguments taken apart."""

    dsn: str | None
    """The DSN that counts: the last one, as everywhere on the command line."""
    rest: list[str]
    """The arguments without it."""


def split(arguments: Sequence[str]) -> Split:
    """Take the DSN out of the arguments of the command line."""
    dsn: str | None = None
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument == _OPTION and (value := next(left, None)) is not None:
            dsn = value
        elif argument.startswith(f"{_OPTION}="):
            dsn = argument.partition("=")[2]
        else:
            rest.append(argument)
    return Split(dsn, rest)


def may_hold_password(dsn: str) -> bool:
    """Whether a DSN may hold a password, also one that is malformed."""
    text = unquote(dsn)
    if "password" in text.lower():
        return True
    scheme = re.match(r"[\w+.-]+://", text)
    # Without an @ it may be half a DSN: user:password, and then the quotes were forgotten.
    rest = text[scheme.end() :] if scheme else text
    before, at, _ = rest.rpartition("@")
    if at:
        return ":" in before
    return re.search(r":\d*[^\d/,?:\]]", rest.partition("?")[0]) is not None


def masked(text: str) -> str:
    """The text without the DSNs in it, for a message that repeats arguments."""
    text = re.sub(r"postgres(ql)?(\+\w+)?://[^\s'\")]*", "postgresql://...", text)
    return re.sub(r"(password\s*=\s*)('[^']*'|\S+)", r"\1...", text, flags=re.IGNORECASE)


def hide_dsn() -> None:
    """Start the program anew without its DSN in the arguments, if that may hold a password.

    In the program started anew, take over what was handed on. Where a process cannot replace
    itself (Windows), nothing is done.
    """
    take_over(os.environ)
    found = split(sys.argv[1:])
    if found.dsn is None or not may_hold_password(found.dsn) or sys.platform == "win32":
        return
    dsn = os.fsencode(found.dsn)
    if len(dsn) > _LONGEST:
        return  # the command will find it malformed
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    reader, writer = os.pipe()
    os.write(writer, dsn)
    os.close(writer)
    os.set_inheritable(reader, True)
    environment = {**os.environ, _HANDED_OVER: str(reader)}
    os.execve(sys.executable, [*program, *found.rest], environment)


def take_over(environ: MutableMapping[str, str]) -> None:
    """Read the DSN that was handed on, if one was, and leave no trace for children."""
    number = environ.pop(_HANDED_OVER, "")
    if not number.isdecimal():
        return
    try:
        with os.fdopen(int(number), "rb") as pipe:
            dsn = pipe.read(_LONGEST)
    except OSError:  # the variable is somebody else's
        return
    _handed[:] = [os.fsdecode(dsn)]


def handed_dsn() -> str | None:
    """The DSN of `--dsn` that was handed on, if one was."""
    return _handed[0] if _handed else None
