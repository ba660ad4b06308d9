"""Where in the log to begin, as one writes it, and what to do if that cannot be. Layer: cli."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem
from pgnotifybus.cli.schema import parsed_retention
from pgnotifybus.errors import CursorExpired, EpochMismatch, InvalidCursor
from pgnotifybus.log.cursor import Cursor
from pgnotifybus.log.event_log import After

_AGO = re.compile("[0-9]+[smhd]")


def parsed_place(text: str, option: str) -> After:
    """Understand a cursor, `beginning`, `now`, a time, or how long ago (`15m`).

    A time without a zone is local time.

    Args:
        text: What was written.
        option: Where it was written, for the message.

    Raises:
        UsageProblem: If it is none of these.
    """
    if text in ("beginning", "now"):
        return text
    try:
        if _AGO.fullmatch(text):
            ago = parsed_retention(text, option)
            assert ago is not None
            return datetime.now(UTC) - ago
        with contextlib.suppress(InvalidCursor):
            return Cursor(text)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise UsageProblem(
            f"{option} must be beginning, now, a time (2026-01-31T12:00:00Z), how long ago (15m, "
            f"7d), or a cursor exactly as it was printed; not {shown!r}"
        ) from None


def parsed_headers(options: Sequence[str]) -> dict[str, str] | None:
    """The headers of `name=value` each; None if there are none.

    Raises:
        UsageProblem: If one is written in another way, or named twice. No value is repeated.
    """
    headers: dict[str, str] = {}
    for number, option in enumerate(options, 1):
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageProblem(f"--header must look like name=value, and number {number} does not")
        if name in headers:
            raise UsageProblem(f"--header {name} is given twice: a header has one value")
        headers[name] = value
    return headers or None


@contextlib.contextmanager
def beginning_there(advice: str) -> Iterator[None]:
    """Say what to do where one cannot begin from a cursor.

    Args:
        advice: What to write instead.

    Raises:
        CommandFailed: For a cursor that is expired, or of another log.
    """
    try:
        yield
    except CursorExpired:
        raise CommandFailed(
            f"retention has deleted events behind this cursor, they are lost to it: {advice}"
        ) from None
    except EpochMismatch as error:
        raise CommandFailed(f"{error}: {advice}") from None
