"""The wire format, whatever is sent and whatever arrives."""

from __future__ import annotations

import base64
import zlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgnotifybus.core.envelope import (
    MAX_COMPRESSIBLE_BYTES,
    NO_STAMP,
    Content,
    Reference,
    Stamp,
    all_plain,
    pack,
    refer,
    unpack,
)

LIMIT = 7_999

storable = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
telling = st.sampled_from("\x01\x02;=zrost1")
"""The characters of which the format is made."""

texts = st.one_of(
    st.text(storable, max_size=50),
    st.text(telling, max_size=50),
    st.text(telling, max_size=30).map("\x01pgnb1".__add__),
)


@st.composite
def around_the_border(draw: st.DrawFn) -> str:
    """A payload of about the size at which something changes."""
    unit = draw(st.text(storable, min_size=1, max_size=6))
    size = draw(st.one_of(st.integers(7_700, 8_100), st.integers(7_990, 8_010)))
    start = draw(st.sampled_from(["", "", "\x01", "\x01pgnb1\x02"]))
    return start + unit * (size // len(unit.encode()))


@st.composite
def noise(draw: st.DrawFn) -> str:
    """A payload that hardly shrinks, or only so much that it is a near thing."""
    data = draw(st.randoms(use_true_random=False)).randbytes(draw(st.integers(3_500, 6_500)))
    text = draw(st.sampled_from([data.hex(), base64.b85encode(data).decode()]))
    return text[: draw(st.integers(7_700, 12_000))]


payloads = st.one_of(texts, around_the_border(), noise())

hexadecimal = st.sampled_from("0123456789abcdef")
stamps = st.builds(
    Stamp,
    st.none()
    | st.text(st.sampled_from("abcXYZ012._:-"), min_size=1, max_size=64)
    | st.just("o" * 64),
    # Beyond 2041 a float does not tell microseconds apart any more.
    st.none() | st.integers(0, 2**51).map(lambda micros: micros / 1e6),
    st.none()
    | st.builds(
        "00-{}1-1{}-{}".format,
        st.text(hexadecimal, min_size=31, max_size=31),
        st.text(hexadecimal, min_size=15, max_size=15),
        st.text(hexadecimal, min_size=2, max_size=2),
    ),
)


@given(payloads, stamps | st.just(NO_STAMP))
@settings(max_examples=400, deadline=None, print_blob=True)
def test_what_is_sent_arrives(payload: str, stamp: Stamp) -> None:
    size = len(payload.encode())
    wire = pack(payload, size, stamp)
    plain = stamp == NO_STAMP and not payload.startswith("\x01")
    if wire is None:
        assert size > LIMIT - (0 if plain else 200)
        return
    assert len(wire.encode()) <= LIMIT
    assert (wire == payload) == (plain and size <= LIMIT)
    if wire == payload:
        assert all_plain([wire]) or not payload
        assert unpack(wire) is None
    else:
        assert not all_plain([wire])
        assert unpack(wire) == Content(payload, stamp)


@given(st.uuids().map(str), st.integers(0, 2**50), stamps)
@settings(max_examples=200, deadline=None, print_blob=True)
def test_a_reference_arrives(row: str, size: int, stamp: Stamp) -> None:
    wire = refer(row, size, stamp)
    assert len(wire.encode()) <= LIMIT
    assert not all_plain([wire])
    assert unpack(wire) == Reference(row, size, stamp)


def check(wire: str) -> None:
    """Whatever it is, it is read without an error, and as something that could have been sent."""
    match unpack(wire):
        case Content(payload, stamp):
            assert len(payload.encode(errors="surrogatepass")) <= MAX_COMPRESSIBLE_BYTES
            assert "\0" not in payload or payload in wire
        case Reference(row, size, stamp):
            assert unpack(refer(row, size, stamp)) == Reference(row, size, stamp)
        case None:
            return
    assert not all_plain([wire])


@given(st.text() | st.text().map("\x01pgnb1".__add__) | texts)
@settings(max_examples=400, deadline=None, print_blob=True)
def test_garbage_is_read_without_an_error(wire: str) -> None:
    check(wire)


@given(payloads, stamps, st.booleans(), st.data())
@settings(max_examples=200, deadline=None, print_blob=True)
def test_an_envelope_that_was_damaged_is_read_without_an_error(
    payload: str, stamp: Stamp, spilled: bool, data: st.DataObject
) -> None:
    row = "01890a5d-ac96-774b-bcce-b302099a8057"
    wire = refer(row, 9_000, stamp) if spilled else pack(payload, len(payload.encode()), stamp)
    for _ in range(data.draw(st.integers(1, 4))):
        # Near its beginning, where the heading is, or anywhere.
        at = data.draw(st.integers(0, 250) | st.integers(0, 8_000))
        put = data.draw(st.text(telling, max_size=2) | st.text(max_size=2))
        wire = (wire or "")[:at] + put + (wire or "")[at + data.draw(st.integers(0, 3)) :]
    check(wire or "")


@given(
    st.binary(max_size=100)
    | st.text(storable).map(str.encode)
    | st.integers(131_060, 131_080).map(lambda size: b"x" * size),
    st.binary(max_size=3),
    st.integers(0, 12),
)
@example(b"x" * MAX_COMPRESSIBLE_BYTES, b"", 0)
@example(b"x" * (MAX_COMPRESSIBLE_BYTES + 1), b"", 0)
@settings(max_examples=200, deadline=None, print_blob=True)
def test_only_what_we_would_send_is_decompressed(data: bytes, tail: bytes, cut: int) -> None:
    whole = zlib.compress(data)
    stream = (whole + tail)[: max(0, len(whole + tail) - cut)]
    found = unpack("\x01pgnb1;z=1\x02" + base64.b64encode(stream).decode())
    text = data.decode(errors="replace")
    as_we_send = text.encode() == data and "\0" not in text and len(data) <= MAX_COMPRESSIBLE_BYTES
    if stream == whole and as_we_send:
        assert found == Content(text, NO_STAMP)
    else:
        assert found is None


@given(st.lists(st.one_of(texts, payloads), min_size=1, max_size=6), st.data())
@settings(max_examples=300, deadline=None, print_blob=True)
def test_the_fast_way_never_passes_an_envelope(wires: list[str], data: st.DataObject) -> None:
    stamp = data.draw(stamps)
    for index in data.draw(st.sets(st.integers(0, len(wires) - 1))):
        wires[index] = pack(wires[index], len(wires[index].encode()), stamp) or ""
    if all_plain(wires):
        assert all(unpack(wire) is None for wire in wires)
