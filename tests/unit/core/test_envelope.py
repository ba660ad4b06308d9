"""The wire format: what is sent arrives as it was, and nothing else is taken for an envelope."""

from __future__ import annotations

import base64
import itertools
import random
import zlib

import pytest

from pgnotifybus.core.envelope import (
    MAX_COMPRESSIBLE_BYTES,
    NO_STAMP,
    Content,
    Reference,
    Stamp,
    all_plain,
    check_origin,
    check_traceparent,
    pack,
    refer,
    unpack,
)

LIMIT = 7_999
ROW = "01890a5d-ac96-774b-bcce-b302099a8057"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

STAMPS = [
    Stamp(*fields)
    for fields in itertools.product((None, "bus-1"), (None, 1_700_000_000.123456), (None, TRACE))
]
LARGEST_STAMP = Stamp("o" * 64, 9_999_999_999.0, TRACE)

every_stamp = pytest.mark.parametrize("stamp", [*STAMPS, LARGEST_STAMP])


def sent(payload: str, stamp: Stamp = NO_STAMP) -> str | None:
    """What PostgreSQL will carry; checks that it can."""
    wire = pack(payload, len(payload.encode()), stamp)
    assert wire is None or len(wire.encode()) <= LIMIT
    return wire


def received(wire: str) -> tuple[str, Stamp]:
    """What a receiver gets."""
    match unpack(wire):
        case None:
            return wire, NO_STAMP
        case Content(payload, stamp):
            return payload, stamp
        case Reference():
            raise AssertionError("it refers to a row")


def heading(stamp: Stamp) -> int:
    """The bytes that an envelope takes which says this."""
    wire = sent("x", stamp)
    assert wire is not None
    return len(wire) - 1


def compressible(unit: str, size: int) -> str:
    """A text of exactly so many bytes."""
    count, rest = divmod(size, len(unit.encode()))
    return unit * count + "." * rest


def incompressible(size: int, seed: int = 1) -> str:
    """A text of exactly so many bytes, that does not become shorter as base64."""
    dice = random.Random(seed)
    return "".join(chr(dice.randrange(0x20, 0x7F)) for _ in range(size))


def by_hand(data: bytes, fields: str = ";z=1") -> str:
    """An envelope around a compressed payload, as somebody else might write it."""
    return f"\x01pgnb1{fields}\x02" + base64.b64encode(zlib.compress(data)).decode()


# -- what is written ------------------------------------------------------------------------------


def test_the_format_is_as_documented() -> None:
    """Other versions of the library, and other programs, read it: it may only be added to."""
    stamp = Stamp("bus-1", 1_700_000_000.123456, TRACE)
    assert sent("hi", stamp) == f"\x01pgnb1;o=bus-1;s=1700000000123456;t={TRACE}\x02hi"
    assert sent("\x01hi") == "\x01pgnb1\x02\x01hi"
    assert refer(ROW, 8_000, stamp) == (
        f"\x01pgnb1;o=bus-1;s=1700000000123456;t={TRACE};r=8000\x02{ROW}"
    )
    assert refer(ROW, 0) == f"\x01pgnb1;r=0\x02{ROW}"
    long = sent("ab" * 5_000, Stamp(origin="me"))
    assert long is not None
    head, _, body = long.partition("\x02")
    assert head == "\x01pgnb1;o=me;z=1"
    assert zlib.decompress(base64.b64decode(body, validate=True)).decode() == "ab" * 5_000


@pytest.mark.parametrize("size", [0, 1, 2, 100, 7_997, 7_998, 7_999])
@pytest.mark.parametrize("unit", ["x", "é", "日", "😀", "\x02", ";o=1"])
def test_a_payload_that_fits_travels_as_it_is(unit: str, size: int) -> None:
    """Any other listener can read it, and it is not copied on the way in."""
    payload = compressible(unit, size)
    assert sent(payload) is payload
    assert received(payload) == (payload, NO_STAMP)


@every_stamp
@pytest.mark.parametrize("unit", ["x", "é", "日", "😀", "\x01", "\x02;z=1", "=;"])
def test_what_is_sent_arrives_on_either_side_of_the_border(unit: str, stamp: Stamp) -> None:
    """Around 7,999 bytes, for the payload alone and for the payload in its envelope."""
    for border in (LIMIT, LIMIT - heading(stamp)):
        for size in range(border - 3, border + 4):
            payload = compressible(unit, size)
            wire = sent(payload, stamp)
            assert wire is not None
            assert received(wire) == (payload, stamp)


@every_stamp
def test_an_envelope_is_filled_to_the_last_byte_before_it_is_compressed(stamp: Stamp) -> None:
    soh = "\x01" if stamp == NO_STAMP else ""  # so that it needs an envelope
    room = LIMIT - len(sent(soh + "x", stamp) or "") + 1
    payload = soh + incompressible(room)
    wire = sent(payload, stamp)
    assert wire is not None
    assert wire.endswith("\x02" + payload)
    assert len(wire) == LIMIT
    assert sent(payload + ".", stamp) is None, "it shrinks"
    longer = soh + "x" * (room + 1)
    assert len(sent(longer, stamp) or "") < 300


def test_what_does_not_shrink_enough_is_not_sent() -> None:
    payload = incompressible(8_000)
    assert sent(payload) is None
    assert sent(payload[:-1]) == payload[:-1]
    assert sent(payload[:-1], Stamp(origin="me")) is None


@pytest.mark.parametrize("stamp", [NO_STAMP, Stamp(origin="me"), LARGEST_STAMP])
def test_a_compressed_payload_fills_the_notification_to_the_last_byte(stamp: Stamp) -> None:
    """Hexadecimal shrinks to about three quarters: somewhere in here is the border."""
    digits = random.Random(2).randbytes(6_000).hex()
    sizes = []
    for size in range(8_500, 11_500):
        wire = sent(digits[:size], stamp)
        if wire is not None:
            assert received(wire) == (digits[:size], stamp)
            sizes.append(len(wire))
    assert LIMIT - 3 <= max(sizes) <= LIMIT  # base64 grows by four
    assert len(sizes) < 3_000, "all of them fit"
    if stamp == NO_STAMP:
        assert max(sizes) == LIMIT


@pytest.mark.parametrize("unit", ["x", "é", "日", "😀", "\x01"])
def test_the_largest_payload_that_is_compressed_arrives(unit: str) -> None:
    payload = compressible(unit, MAX_COMPRESSIBLE_BYTES)
    wire = sent(payload, LARGEST_STAMP)
    assert wire is not None
    assert received(wire) == (payload, LARGEST_STAMP)
    assert sent(payload + ".", LARGEST_STAMP) is None
    assert sent(payload + ".") is None


@pytest.mark.parametrize(
    "payload",
    [
        "\x01",
        "\x01\x02",
        "\x01pgnb1",
        "\x01pgnb1\x02",
        "\x01pgnb1\x02nested",
        f"\x01pgnb1;o=else;t={TRACE}\x02nested",
        f"\x01pgnb1;r=9000\x02{ROW}",
        by_hand(b"nested"),
        "\x01pgnb1;z=1\x02garbage",
        "\x01" * 7_000,
        "\x01" * 7_999,
    ],
)
def test_a_payload_that_looks_like_an_envelope_arrives_as_it_is(payload: str) -> None:
    for stamp in (*STAMPS, LARGEST_STAMP):
        wire = sent(payload, stamp)
        assert wire is not None
        assert wire != payload
        assert received(wire) == (payload, stamp)


@pytest.mark.parametrize("payload", ["\x02", "\x02x", ";o=me\x02x", "a\x01pgnb1\x02x", "=;=", ""])
def test_the_marks_of_the_format_may_stand_in_a_payload(payload: str) -> None:
    for stamp in (*STAMPS, LARGEST_STAMP):
        wire = sent(payload, stamp)
        assert wire is not None
        assert received(wire) == (payload, stamp)


@pytest.mark.parametrize("micros", [0, 1, 999_999, 1_700_000_000_000_001, 2**51])
def test_the_time_arrives_to_the_microsecond(micros: int) -> None:
    wire = sent("x", Stamp(sent_at=micros / 1e6))
    assert wire == f"\x01pgnb1;s={micros}\x02x"
    assert received(wire)[1].sent_at == micros / 1e6


@every_stamp
@pytest.mark.parametrize("size", [0, 8_000, 16 * 1024 * 1024])
def test_a_reference_arrives_and_always_fits(size: int, stamp: Stamp) -> None:
    wire = refer(ROW, size, stamp)
    assert len(wire.encode()) <= 300
    assert unpack(wire) == Reference(ROW, size, stamp)


# -- what is read ---------------------------------------------------------------------------------


def test_what_a_later_version_may_add_is_passed_over() -> None:
    assert unpack("\x01pgnb1;o=me;new=a=b\x02hi") == Content("hi", Stamp(origin="me"))
    assert unpack("\x01pgnb1;=\x02hi") == Content("hi", NO_STAMP)


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "x",
        "\x02",
        "\x01",
        "\x01\x02",
        "\x01pgnb",
        "\x01pgnb1",
        "\x01pgnb2\x02x",
        "\x01PGNB1\x02x",
        " \x01pgnb1\x02x",
        "pgnb1\x02x",
        "\x01pgnb1;o=me",  # cut off
        "\x01pgnb1x\x02x",
        "\x01pgnb10;o=me\x02x",
        "\x01pgnb1o=me\x02x",
        "\x01pgnb1;\x02x",
        "\x01pgnb1;;\x02x",
        "\x01pgnb1;o\x02x",
        "\x01pgnb1;o=me;\x02x",
        "\x01pgnb1;o=me;o=me\x02x",  # twice
        "\x01pgnb1;new=1;new=1\x02x",
        "\x01pgnb1;o=\x02x",
        "\x01pgnb1;o=not me\x02x",
        "\x01pgnb1;o=mé\x02x",
        "\x01pgnb1;o=" + "o" * 65 + "\x02x",
        "\x01pgnb1;s=\x02x",
        "\x01pgnb1;s=-1\x02x",
        "\x01pgnb1;s=1.5\x02x",
        "\x01pgnb1;s=1e9\x02x",
        "\x01pgnb1;s= 1\x02x",
        "\x01pgnb1;s=1\n\x02x",
        "\x01pgnb1;s=\u0661\x02x",  # a digit elsewhere
        "\x01pgnb1;s=" + "9" * 17 + "\x02x",
        "\x01pgnb1;s=" + "9" * 7_000 + "\x02x",
        "\x01pgnb1;t=\x02x",
        f"\x01pgnb1;t={TRACE.upper()}\x02x",
        f"\x01pgnb1;t={TRACE}\n\x02x",
        # compressed
        "\x01pgnb1;z=\x02" + by_hand(b"x").partition("\x02")[2],
        by_hand(b"x", ";z=2"),
        by_hand(b"x", ";z=01"),
        by_hand(b"x", ";z=1;r=1"),
        "\x01pgnb1;z=1\x02",
        "\x01pgnb1;z=1\x02x",
        "\x01pgnb1;z=1\x02xxxx",
        "\x01pgnb1;z=1\x02é",
        "\x01pgnb1;z=1\x02\udc80",
        by_hand(b"x") + "\n",
        by_hand(b"x").replace("\x02", "\x02 "),
        by_hand(b"x" * 100)[:-4],
        by_hand(b"x" * 100)[:-8],
        by_hand(b"\xff"),  # not UTF-8
        by_hand("\ud800".encode(errors="surrogatepass")),
        by_hand(b"a\0b"),  # PostgreSQL could not store it
        "\x01pgnb1;z=1\x02" + base64.b64encode(zlib.compress(b"x") + b"more").decode(),
        "\x01pgnb1;z=1\x02" + base64.b64encode(zlib.compress(b"x") * 2).decode(),
        "\x01pgnb1;z=1\x02" + base64.b64encode(zlib.compress(b"x")[:-1] + b"\0").decode(),
        # spilled
        "\x01pgnb1;r=1\x02",
        "\x01pgnb1;r=1\x02x",
        f"\x01pgnb1;r=\x02{ROW}",
        f"\x01pgnb1;r=-1\x02{ROW}",
        f"\x01pgnb1;r=x\x02{ROW}",
        f"\x01pgnb1;r={'9' * 17}\x02{ROW}",
        f"\x01pgnb1;r=1;z=1\x02{ROW}",
        f"\x01pgnb1;r=1\x02{ROW.upper()}",
        f"\x01pgnb1;r=1\x02{ROW}\n",
        f"\x01pgnb1;r=1\x02{{{ROW}}}",
        f"\x01pgnb1;r=1\x02{ROW.replace('-', '')}",
        f"\x01pgnb1;r=1\x02{ROW}'; drop table payloads; --",
    ],
)
def test_what_does_not_read_as_an_envelope_is_a_plain_payload(wire: str) -> None:
    """Somebody else sent it: nothing is raised, and it arrives as it is."""
    assert unpack(wire) is None


@pytest.mark.parametrize("size", [131_073, 131_074, 1_000_000, 10_000_000])
@pytest.mark.parametrize("unit", [b"x", "日".encode()])
def test_what_would_become_more_than_is_ever_sent_is_not_decompressed(
    unit: bytes, size: int
) -> None:
    """Anybody may notify, and 8,000 bytes of theirs may be worth many megabytes."""
    bomb = by_hand((unit * (size // len(unit) + 1))[:size])
    assert unpack(bomb) is None
    largest = compressible(unit.decode(), MAX_COMPRESSIBLE_BYTES)
    assert unpack(by_hand(largest.encode())) == Content(largest, NO_STAMP)


def test_a_bomb_takes_no_more_memory_than_what_may_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even for a moment: the decompressor is told where to stop."""
    asked: list[int] = []
    make = zlib.decompressobj

    class Spy:
        def __init__(self) -> None:
            self._inflater = make()

        def decompress(self, data: bytes, limit: int = 0) -> bytes:
            asked.append(limit)
            return self._inflater.decompress(data, limit)

        @property
        def eof(self) -> bool:
            return self._inflater.eof

        @property
        def unused_data(self) -> bytes:
            return self._inflater.unused_data

    monkeypatch.setattr(zlib, "decompressobj", Spy)
    assert unpack(by_hand(b"x" * 10_000_000)) is None
    assert asked == [MAX_COMPRESSIBLE_BYTES + 1]


@pytest.mark.parametrize(
    ("wires", "plain"),
    [
        (["x"], True),
        (["\x02"], True),
        (["é", "\x7f", "\t", "😀", " "], True),
        (["\x02", "\x03\x01"], True),
        (["\x01"], False),
        (["\x01pgnb1\x02x"], False),
        (["a", "b", "\x01pgnb1\x02x"], False),
        (["\x01pgnb1\x02x", "a", "b"], False),
        (["a", "\x01pgnb1\x02x", ""], False),
        (["", "\x01pgnb1\x02x"], False),
    ],
)
def test_a_batch_is_plain_only_if_none_is_in_an_envelope(wires: list[str], plain: bool) -> None:
    """The fast way; an envelope that went through it would arrive as it is."""
    assert all_plain(wires) is plain


# -- what may be said -----------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["a", "0", "bus-1", "eu.shop:worker_7", "o" * 64, "-", "A.b"])
def test_an_origin_is_taken_as_it_is(origin: str) -> None:
    assert check_origin(origin) is origin
    assert received(sent("x", Stamp(origin)) or "") == ("x", Stamp(origin))


@pytest.mark.parametrize(
    "origin",
    ["", "o" * 65, "a b", "a;b", "a=b", "é", "a\n", "\x02", "a/b", None, 7, b"bus", ["a"]],
)
def test_an_origin_that_would_not_be_read_is_refused(origin: object) -> None:
    with pytest.raises(ValueError, match="origin must be 1 to 64"):
        check_origin(origin)


@pytest.mark.parametrize(
    "traceparent",
    [
        TRACE,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "fe-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        f"00-{'0' * 31}1-{'0' * 15}1-00",
        f"00-1{'0' * 31}-1{'0' * 15}-00",
        f"00-{'f' * 32}-{'f' * 16}-00",
    ],
)
def test_a_traceparent_is_taken_as_it_is(traceparent: str) -> None:
    """Source: https://www.w3.org/TR/trace-context/#traceparent-header-field-values."""
    assert check_traceparent(traceparent) is traceparent
    stamp = Stamp(traceparent=traceparent)
    assert received(sent("x", stamp) or "") == ("x", stamp)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        TRACE[:-1],
        TRACE + "0",
        TRACE + "-00",
        TRACE + "\n",
        " " + TRACE,
        TRACE.upper(),
        TRACE.replace("-", "_"),
        "ff" + TRACE[2:],  # forbidden
        "0" + TRACE,
        f"00-{'0' * 32}-00f067aa0ba902b7-01",  # no trace
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",  # no parent
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0\u0661",
        None,
        7,
        TRACE.encode(),
    ],
)
def test_a_traceparent_that_is_none_is_refused(traceparent: object) -> None:
    with pytest.raises(ValueError, match="W3C Trace Context"):
        check_traceparent(traceparent)
    if isinstance(traceparent, str):
        assert unpack(f"\x01pgnb1;t={traceparent}\x02x") is None
