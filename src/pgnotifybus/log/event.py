"""What is in the log. Layer: log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pgnotifybus.log.cursor import Cursor

P = TypeVar("P")

NO_HEADERS: Final[Mapping[str, Any]] = MappingProxyType({})


class Event(NamedTuple, Generic[P]):  # a tuple: made twice as fast as a frozen dataclass
    """One event. All followers of a process share it: do not change its headers."""

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
