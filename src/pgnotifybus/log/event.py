"""What is in the log. Layer: log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pgnotifybus.log.cursor import Cursor

P = TypeVar("P")


class Headers(Mapping[str, Any]):
    """What goes with an event. Cannot be changed, as all followers of a process share it.

    Read from its text when it is first looked at: others than this library may have appended what
    Python cannot read, and that shall trouble only who wants it.

    Args:
        text: A JSON object.
    """

    __slots__ = ("_read", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._read: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        """What has this name.

        Raises:
            KeyError: If nothing has.
            ValueError: If the text is no JSON object that Python can read; see `text`. So does
                whatever else looks into it.
        """
        return self._dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def __repr__(self) -> str:
        return f"Headers({self.text!r})"

    def __reduce__(self) -> tuple[type[Headers], tuple[str]]:
        return Headers, (self.text,)

    def _dict(self) -> dict[str, Any]:
        if self._read is None:
            try:
                read = json.loads(self.text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the headers cannot be read: {error}") from None
            if not isinstance(read, dict):
                raise ValueError("the headers are JSON, but no object")
            self._read = read
        return self._read


NO_HEADERS: Final = Headers("{}")


def headers_text(headers: Mapping[str, Any]) -> str:
    """Their JSON; as it is in the database, if they come from there."""
    return headers.text if isinstance(headers, Headers) else json.dumps(dict(headers))


class Event(NamedTuple, Generic[P]):  # a tuple: made twice as fast as a frozen dataclass
    """One event. All followers of a process share it."""

    id: int
    """Unique in its log. Rising within a transaction; between transactions it says little about
    which was committed first."""
    channel: str
    key: str | None
    payload: P
    """The text as it was appended; decoded, if a typed channel is followed."""
    headers: Mapping[str, Any]
    created_at: datetime
    """When it was appended, by the server's clock, in UTC. Its commit came later."""
    cursor: Cursor
    """Follow after this to get everything behind this event."""

    def json(self) -> Any:
        """The payload, read as JSON.

        Raises:
            ValueError: If it is none.
        """
        return json.loads(self.payload) if isinstance(self.payload, str) else self.payload
