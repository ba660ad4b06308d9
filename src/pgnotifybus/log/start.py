"""Where reading begins: what users pass as `after`. Layer: log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pgnotifybus.log.cursor import Cursor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Start:
    """A cursor, a time, the beginning (neither) or now."""

    cursor: Cursor | None = None
    microseconds: int | None = None
    is_now: bool = False


def start(after: object) -> Start:
    """Understand what was passed as `after`.

    Raises:
        InvalidCursor: If it is a text, but neither a cursor nor a word that is known.
        ValueError: If it is a time without a time zone.
        TypeError: If it is something else.
    """
    match after:
        case Cursor():
            return Start(after)
        case "beginning":
            return Start()
        case "now":
            return Start(is_now=True)
        case str():
            return Start(Cursor(after))
        case datetime():
            if after.utcoffset() is None:
                raise ValueError(
                    f"a point in time needs a time zone: {after!r} has none. Use "
                    "datetime.now(timezone.utc), or .astimezone() for local time"
                )
            passed = after - _EPOCH
            microseconds = (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds
            return Start(microseconds=max(0, microseconds))
        case _:
            raise TypeError(
                "after must be a Cursor or its text, 'beginning', 'now' or a datetime, not "
                f"{type(after).__name__}"
            )
