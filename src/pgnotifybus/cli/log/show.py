"""Events, gaps and tables as lines. Layer: cli.

As in `render`, there are two forms: for people, tabs between fields, and lines that begin with `--`
and have no tab for everything else; for programs, one JSON object a line, in pure ASCII.
"""

from __future__ import annotations

import asyncio
import json as json_format
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from rich.cells import cell_len

from pgnotifybus.cli.output import Output
from pgnotifybus.cli.render import printable
from pgnotifybus.log.event import Event, headers_text

GapReason = Literal["expired", "epoch"]

_GAPS = {
    "expired": "retention has deleted events; it goes on with the oldest that is kept",
    "epoch": "the cursor is of another log, and what lies between is not known; it goes on from "
    "now",
}


def fields_of(event: Event[str]) -> dict[str, object]:
    """What is in an event, for programs."""
    return {
        "id": event.id,
        "channel": event.channel,
        "key": event.key,
        "payload": event.payload,
        "headers": _headers(event),
        "created_at": event.created_at.isoformat(),
        "cursor": str(event.cursor),
    }


def _headers(event: Event[str]) -> object:
    try:
        return dict(event.headers)
    except ValueError:  # what Python cannot read is shown as it is
        return headers_text(event.headers)


def event_line(event: Event[str], *, json: bool) -> str:
    """One event."""
    if json:
        return json_line({"type": "event", **fields_of(event)})
    parts = (moment(event.created_at), event.channel, str(event.id), event.key or "", event.payload)
    return tabbed(*parts)


def gap_line(channel: str, reason: GapReason, cursor: str, *, json: bool) -> str:
    """A place where events are missing, and the cursor behind it."""
    if json:
        return json_line({"type": "gap", "reason": reason, "channel": channel, "cursor": cursor})
    return f"-- gap in {printable(channel)}: {_GAPS[reason]}"


def json_line(fields: dict[str, object]) -> str:
    """One JSON object on one line."""
    return json_format.dumps(fields, separators=(",", ":"))


def tabbed(*fields: str) -> str:
    """Fields with tabs between them, and none in them."""
    return "\t".join(map(printable, fields))


def moment(time: datetime) -> str:
    """A time as `--after` takes it, of the same width each time."""
    text = time.astimezone(UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def duration(seconds: float) -> str:
    """Some seconds in the largest unit of which there are at least two: 90 s, 3 h, 7 d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def size(count: float) -> str:
    """Some bytes in a unit of which there are not too many, as PostgreSQL counts."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 10 * 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.0f} TB"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as columns of equal width; the last one as wide as it likes."""
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths)).rstrip() for line in lines]


def _padded(line: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    return (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))


async def printed(lines: Iterable[str]) -> None:
    """Write lines to stdout, or as many as somebody reads.

    Raises:
        CommandFailed: If stdout cannot be written to.
    """
    async with Output() as output:
        await written(output, lines)


async def written(output: Output, lines: Iterable[str]) -> bool:
    """Write lines, and wait until they are out; whether there is still somebody who reads.

    Raises:
        CommandFailed: If stdout cannot be written to.
    """
    writing = asyncio.ensure_future(output.write(lines))
    try:
        await asyncio.wait({writing, output.gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        writing.cancel()
    if output.gone.done():
        output.gone.result()
        return False
    return True
