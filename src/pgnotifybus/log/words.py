"""What those who write and follow a log tell each other, as notifications. Layer: log.

::

    +orders                 a writer has appended to this channel, and nobody else will tell
    *                       somebody has appended something
    ["orders", "jobs"]      the pacemaker has seen new events on these channels
    !awake  !draining  !asleep      how the pacemaker is from now on
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final, NamedTuple

from pgnotifybus.core.load import Belief
from pgnotifybus.core.names import MAX_PAYLOAD_BYTES

_BELIEFS: Final[dict[str, Belief]] = {
    "!awake": "awake",
    "!draining": "draining",
    "!asleep": "asleep",
}


class Word(NamedTuple):
    """One notification, understood."""

    channels: Collection[str] | None
    """Where there may be something new; None for anywhere."""
    from_writer: bool = False
    belief: Belief | None = None
    """What it says of the pacemaker."""


def understand(payload: str) -> Word:
    """Read a notification; one that nobody of us has sent may mean anything."""
    if payload.startswith("+"):
        return Word((payload[1:],), from_writer=True)
    if payload.startswith("["):
        try:
            channels = json.loads(payload)
        except ValueError:
            return Word(None)
        return Word(channels) if isinstance(channels, list) else Word(None)
    return Word(None, belief=_BELIEFS.get(payload))


def announce(belief: Belief) -> str:
    """What a pacemaker says of itself."""
    return f"!{belief}"


def found(channels: Collection[str]) -> str:
    """What a pacemaker says of new events."""
    text = json.dumps(sorted(channels), ensure_ascii=False, separators=(",", ":"))
    return text if len(text.encode()) <= MAX_PAYLOAD_BYTES else "*"
