"""A place in the event log: what has been read, and what has not. Layer: core.

Events get their ids when they are written and are seen when their transaction commits, so an id is
no place to go on from: a smaller one may still come. What has been read is said by a snapshot
instead: all events whose transactions it has seen. Reading goes from one snapshot to the next, in
the order of ids; who stops on the way also needs the id that was read last::

    since      the snapshot up to which all was read before; None if nothing was
    until      the snapshot that is being read up to; None between two reads
    after      the id of the event that was read last, on the way from `since` to `until`
    time       on this way, events that were written earlier are left out

A snapshot means something on one server only, and after a failover not even there: the new primary
may have given the ids of transactions that it has lost to others. So it goes with the *era* of the
server: who it is, in the upper bits, and in the lower ones its timeline, which each promotion
raises. Rows have the era in which they were written.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Final, NamedTuple

from pgnotifybus.core.snapshot import MAX_XID, Snapshot

TIMELINE_BITS: Final = 24
_TIMELINES: Final = 1 << TIMELINE_BITS

EPOCH_BYTES: Final = 8

MAX_TIME: Final = 253_402_300_799_999_999
"""The last microsecond since 1970 that a `datetime` can have."""

_VERSION: Final = 1
_SINCE: Final = 1
_UNTIL: Final = 2
_TIME: Final = 4
_MAX_RUNNING: Final = 100_000  # more transactions than any server runs
_MAX_BIGINT: Final = 2**63 - 1


class Instant(NamedTuple):
    """A snapshot, and the era in which it was taken."""

    era: int
    snapshot: Snapshot

    @property
    def first_era(self) -> int:
        """The first era of the same server."""
        return first_era(self.era)

    def covers(self, other: Instant) -> bool:
        """Whether this has seen whatever the other has seen; only of the same server."""
        if first_era(self.era) != first_era(other.era) or self.era < other.era:
            return False
        return self.era > other.era or self.snapshot.covers(other.snapshot)


def first_era(era: int) -> int:
    """The first era of the server of this one."""
    return era - era % _TIMELINES


def last_era(era: int) -> int:
    """The last era that the server of this one can have."""
    return first_era(era) + _TIMELINES - 1


class Position(NamedTuple):
    """A place in the event log, see above."""

    epoch: bytes
    """Which log it is: another one each time that the log is made."""
    era: int
    """The newest era that it knows."""
    since: Instant | None
    until: Instant | None = None
    after: int = 0
    time: int | None = None
    """In microseconds since 1970, UTC; at least 0."""

    @property
    def newest(self) -> Instant | None:
        """The newest snapshot by which anything has been read."""
        if self.until is not None:
            return self.until
        return self.since

    def on_the_way(self, until: Instant, after: int) -> Position:
        """The place behind an event that was read from here on, up to a snapshot."""
        return Position(self.epoch, until.era, self.since, until, after, self.time)


def behind(epoch: bytes, instant: Instant) -> Position:
    """The place behind everything that a snapshot has seen."""
    return Position(epoch, instant.era, instant)


# -- as text --------------------------------------------------------------------------------------


def encode(position: Position) -> str:
    """A short text of it, safe in a URL."""
    since, until = position.since, position.until
    flags = _SINCE * (since is not None) | _UNTIL * (until is not None)
    flags |= _TIME * (position.time is not None)
    out = bytearray([_VERSION << 4 | flags])
    out += position.epoch
    _put(out, position.era)
    if since is not None:
        _put(out, position.era - since.era)
        _put_snapshot(out, since.snapshot)
    if until is not None:
        _put_snapshot(out, until.snapshot)
        _put(out, position.after)
    if position.time is not None:
        _put(out, position.time)
    out += zlib.crc32(out).to_bytes(4, "big")
    return base64.urlsafe_b64encode(out).rstrip(b"=").decode()


def decode(text: str) -> Position:
    """Read it back.

    Raises:
        ValueError: If this is no text that `encode` has made.
    """
    try:
        # The decoder passes over characters that are not of the alphabet: so it is asked again.
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64") from None
    if len(raw) < 1 + EPOCH_BYTES + 4 or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
        raise ValueError("it is cut off, or has been changed")
    reader = _Reader(raw[:-4])
    version, flags = divmod(reader.byte(), 16)
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, this library knows {_VERSION}")
    epoch = reader.take(EPOCH_BYTES)
    era = reader.number()
    since = Instant(era - reader.number(), reader.snapshot()) if flags & _SINCE else None
    until, after = None, 0
    if flags & _UNTIL:
        until, after = Instant(era, reader.snapshot()), reader.number()
    time = reader.number() if flags & _TIME else None
    position = Position(epoch, era, since, until, after, time)
    if not reader.at_end or not _is_possible(position) or encode(position) != text:
        raise ValueError("it is not as this library writes them")
    return position


def _is_possible(position: Position) -> bool:
    """Whether each part is what PostgreSQL can have; a text can be made up, sum and all."""
    instants = [each for each in (position.since, position.until) if each is not None]
    return (
        max(position.era, position.after) <= _MAX_BIGINT
        and (position.time or 0) <= MAX_TIME
        and all(first_era(each.era) == first_era(position.era) for each in instants)
        and all(min((each.snapshot.end, *each.snapshot.running)) > 0 for each in instants)
    )


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._raw)

    def take(self, count: int) -> bytes:
        taken = self._raw[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("it is cut off")
        self._at += count
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if value > MAX_XID:
                raise ValueError("it holds a number that is too large")
            if byte < 0x80:
                return value

    def snapshot(self) -> Snapshot:
        end = self.number()
        count = self.number()
        if count > _MAX_RUNNING:
            raise ValueError("it holds more transactions than a server has")
        running: list[int] = []
        last = end
        for _ in range(count):  # downwards: those that run are the newest ones
            last -= self.number() + 1
            running.append(last)
        return Snapshot(end, tuple(reversed(running)))


def _put(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_snapshot(out: bytearray, snapshot: Snapshot) -> None:
    _put(out, snapshot.end)
    _put(out, len(snapshot.running))
    last = snapshot.end
    for xid in reversed(snapshot.running):
        _put(out, last - xid - 1)
        last = xid
