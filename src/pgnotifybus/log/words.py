"""What those who write and follow a log tell each other, as notifications. Layer: log.

::

    +orders                 a writer has appended to this channel, and nobody else will tell
    *                       somebody has appended something
    !awake  !draining  !asleep      how the pacemaker is; there may be something new anywhere
    !awake ["orders", "jobs"]       the same, and where it has seen something new
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
    state, _, news = payload.partition(" ")
    return Word(_channels(news) if news else None, belief=_BELIEFS.get(state))


def announce(belief: Belief) -> str:
    """What a pacemaker says of itself."""
    return f"!{belief}"


def found(channels: Collection[str], belief: Belief) -> str:
    """What a pacemaker says of new events."""
    text = json.dumps(sorted(channels), ensure_ascii=False, separators=(",", ":"))
    word = f"{announce(belief)} {text}"
    return word if len(word.encode()) <= MAX_PAYLOAD_BYTES else announce(belief)


def _channels(text: str) -> list[str] | None:
    try:
        channels = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(channels, list) and all(isinstance(each, str) for each in channels):
        return channels
    return None
