"""The wire format of what does not travel as it is. Layer: core.

Most payloads are plain: what is sent is what PostgreSQL carries, and any other listener can read
it. An envelope is put around a payload only where there is something to say about it::

    SOH "pgnb1" ";" name "=" value ";" ... STX body

SOH and STX are the characters U+0001 and U+0002, the start of heading and the start of text of
ASCII. The fields are `o` (the origin), `s` (when it was sent, in microseconds since 1970), `t` (a
W3C traceparent), and one that tells what the body is: `z=1` for base64 of the zlib-compressed
payload, `r=SIZE` for the id of a row in the spill table, neither for the payload itself.

Anything that begins with SOH and does not read as an envelope is a plain payload: somebody else
sent it. A payload of ours that begins with SOH travels in an envelope, so that it arrives as it is.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from pgnotifybus.core.names import MAX_PAYLOAD_BYTES

_START: Final = "\x01"
_TEXT: Final = "\x02"
_MARK: Final = _START + "pgnb1"

PLAIN_ABOVE: Final = _TEXT
"""Every text that sorts behind this begins with neither SOH nor NUL, and so is plain."""

MAX_COMPRESSIBLE_BYTES: Final = 131_072
"""More is not tried: it would take long, and hardly ever shrink to 6 kB."""

MAX_SPILLED_BYTES: Final = 16 * 1024 * 1024
"""The largest payload that is sent at all: receivers hold a ring of them in memory."""

_ORIGIN: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# https://www.w3.org/TR/trace-context/#traceparent-header-field-values
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGITS: Final = re.compile(r"[0-9]{1,16}")


class Stamp(NamedTuple):
    """What an envelope says about its payload."""

    origin: str | None = None
    sent_at: float | None = None
    """Unix time in seconds, by the clock of the sender."""
    traceparent: str | None = None


NO_STAMP: Final = Stamp()


@dataclass(frozen=True, slots=True)
class Content:
    """An envelope with its payload."""

    payload: str
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Reference:
    """An envelope whose payload lies in the spill table."""

    row: str
    """The id of the row: a UUID in its canonical form."""
    size: int
    """The size of the payload in bytes of UTF-8."""
    stamp: Stamp


def check_origin(origin: object) -> str:
    """The origin itself, if it can be one.

    Raises:
        ValueError: If it is not 1 to 64 letters, digits or any of `._:-`.
    """
    if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
        raise ValueError(f"an origin must be 1 to 64 of A-Z a-z 0-9 . _ : -, not {origin!r}")
    return origin


def check_traceparent(traceparent: object) -> str:
    """The traceparent itself, if it is one.

    Raises:
        ValueError: If it is not what the W3C's Trace Context asks for.
    """
    if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
        raise ValueError(
            "a traceparent must look like 00-<32 hex digits>-<16 hex digits>-01 "
            f"(W3C Trace Context), not {traceparent!r}"
        )
    return traceparent


# -- writing --------------------------------------------------------------------------------------


def pack(payload: str, size: int, stamp: Stamp = NO_STAMP) -> str | None:
    """What to send for a payload: itself if that will do, else in an envelope.

    Args:
        payload: Text that PostgreSQL can store.
        size: How many bytes of UTF-8 it has.
        stamp: What to say about it.

    Returns:
        None if it does not fit into a notification, not even compressed.
    """
    heading = "" if stamp is NO_STAMP else _heading(stamp)
    if not heading and not payload.startswith(_START):
        if size <= MAX_PAYLOAD_BYTES:
            return payload
    else:
        wrapped = f"{_MARK}{heading}{_TEXT}"
        if len(wrapped) + size <= MAX_PAYLOAD_BYTES:
            return wrapped + payload
    if size > MAX_COMPRESSIBLE_BYTES:
        return None
    body = base64.b64encode(zlib.compress(payload.encode())).decode()
    wrapped = f"{_MARK}{heading};z=1{_TEXT}{body}"
    return wrapped if len(wrapped) <= MAX_PAYLOAD_BYTES else None


def refer(row: str, size: int, stamp: Stamp = NO_STAMP) -> str:
    """What to send for a payload that lies in the spill table."""
    return f"{_MARK}{_heading(stamp)};r={size}{_TEXT}{row}"


def _heading(stamp: Stamp) -> str:
    fields = ""
    if stamp.origin is not None:
        fields += f";o={stamp.origin}"
    if stamp.sent_at is not None:
        fields += f";s={round(stamp.sent_at * 1e6)}"
    if stamp.traceparent is not None:
        fields += f";t={stamp.traceparent}"
    return fields


# -- reading --------------------------------------------------------------------------------------


def all_plain(wires: list[str]) -> bool:
    """Whether none of them is in an envelope; quick, and may say no where the answer is yes.

    Args:
        wires: What has arrived; at least one.
    """
    # Nothing sorts before SOH but the empty text, as PostgreSQL has no NUL.
    return min(wires) >= _TEXT


def unpack(wire: str) -> Content | Reference | None:
    """What is in the envelope; None for a plain payload, which is its own content."""
    if not wire.startswith(_MARK):
        return None
    heading, text, body = wire[len(_MARK) :].partition(_TEXT)
    if not text or (heading and not heading.startswith(";")):
        return None
    fields: dict[str, str] = {}
    for field in heading.split(";")[1:]:
        name, equals, value = field.partition("=")
        if not equals or name in fields:
            return None
        fields[name] = value
    stamp = _stamp(fields)
    compressed, size = fields.get("z"), fields.get("r")
    if stamp is None or (compressed is not None and size is not None):
        return None
    if size is not None:
        valid = _UUID.fullmatch(body) and _DIGITS.fullmatch(size)
        return Reference(body, int(size), stamp) if valid else None
    if compressed is None:
        return Content(body, stamp)
    payload = _decompressed(body) if compressed == "1" else None
    return None if payload is None else Content(payload, stamp)


def _stamp(fields: dict[str, str]) -> Stamp | None:
    origin, sent, traceparent = fields.get("o"), fields.get("s"), fields.get("t")
    if origin is not None and not _ORIGIN.fullmatch(origin):
        return None
    if sent is not None and not _DIGITS.fullmatch(sent):
        return None
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        return None
    return Stamp(origin, None if sent is None else int(sent) / 1e6, traceparent)


def _decompressed(body: str) -> str | None:
    inflater = zlib.decompressobj()
    try:
        # Anybody can notify: what they send must not become more than we would ever send. One byte
        # of room, so that the end of the stream is seen behind the last byte that is allowed.
        limit = MAX_COMPRESSIBLE_BYTES + 1
        data = inflater.decompress(base64.b64decode(body, validate=True), limit)
        if not inflater.eof or inflater.unused_data or len(data) == limit:
            return None
        # Nor what PostgreSQL cannot store: whoever receives a payload may send it on.
        return None if b"\0" in data else data.decode()
    except (binascii.Error, zlib.error, ValueError):
        return None
