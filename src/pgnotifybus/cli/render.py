"""One message or event as one line. Layer: cli.

Two forms. For people: `channel TAB payload`, and lines that begin with `--` and have no tab for
everything else. For programs: one JSON object a line, in pure ASCII.
"""

from __future__ import annotations

import json
from typing import Protocol

from pgnotifybus import observe
from pgnotifybus.messages import Gap, Notification

# Format characters that letters and emoji are composed with; the others could hide or turn text.
_HARMLESS = frozenset("\u200c\u200d\u00a0\u3000")


class Renderer(Protocol):
    """How lines are written."""

    def item(self, item: Notification | Gap) -> str:
        """The line for a message or gap, without its end."""

    def event(self, event: observe.Event) -> str | None:
        """The line for something that happened to the link; None for what nobody asked for."""


def printable(text: str) -> str:
    """The text on one line and without anything that a terminal would obey.

    Line ends, control characters, lone surrogates and characters that turn the direction of
    writing are written as Python escapes. A backslash stays as it is: a JSON payload remains one.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _HARMLESS else c.encode("unicode_escape").decode()
        for c in text
    )


class Plain:
    """Lines for people, and for `cut -f2`."""

    def item(self, item: Notification | Gap) -> str:
        channel = printable(item.channel)
        match item:
            case Notification():
                return f"{channel}\t{printable(item.payload)}"
            case Gap(reason="lagged"):
                return f"-- gap in {channel}: {item.skipped} skipped, the output was too slow"
            case Gap(reason="expired"):
                return f"-- gap in {channel}: a message whose payload is no longer in the table"
            case Gap(reason="unreadable"):
                return f"-- gap in {channel}: a message whose payload could not be fetched"
            case Gap():
                return (
                    f"-- gap in {channel}: the connection was lost and made again "
                    f"(generation {item.generation}); messages may be missing here"
                )

    def event(self, event: observe.Event) -> str | None:
        match event:
            case observe.LinkUp():
                return (
                    f"-- listening: generation {event.generation}, PostgreSQL "
                    f"{event.server_version}, PID {event.pid}"
                )
            case observe.LinkDown():
                return f"-- connection lost: {event.error}; trying again in {event.retry_in:.1f} s"
            case observe.ConnectFailed():
                return (
                    f"-- attempt {event.attempt} to connect failed: {event.error}; "
                    f"trying again in {event.retry_in:.1f} s"
                )
        return None


class Json:
    """One object a line."""

    def item(self, item: Notification | Gap) -> str:
        match item:
            case Notification():
                stamp = {
                    name: value
                    for name in ("origin", "sent_at", "traceparent")
                    if (value := getattr(item, name)) is not None
                }
                return _line(
                    type="notification",
                    channel=item.channel,
                    payload=item.payload,
                    pid=item.pid,
                    generation=item.generation,
                    **stamp,
                )
            case Gap():
                return _line(
                    type="gap",
                    reason=item.reason,
                    channel=item.channel,
                    generation=item.generation,
                    skipped=item.skipped,
                )

    def event(self, event: observe.Event) -> str | None:
        match event:
            case observe.LinkUp():
                return _line(
                    type="link",
                    state="up",
                    generation=event.generation,
                    pid=event.pid,
                    server_version=event.server_version,
                    seconds=round(event.seconds, 4),
                )
            case observe.LinkDown():
                return _line(
                    type="link",
                    state="down",
                    generation=event.generation,
                    error=str(event.error),
                    retry_in=round(event.retry_in, 3),
                )
            case observe.ConnectFailed():
                return _line(
                    type="link",
                    state="down",
                    attempt=event.attempt,
                    error=str(event.error),
                    retry_in=round(event.retry_in, 3),
                )
        return None


def _line(**fields: object) -> str:
    # ASCII only: a lone surrogate, from bytes that were not UTF-8, stays representable.
    return json.dumps(fields, separators=(",", ":"))
