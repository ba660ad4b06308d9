"""Names and payloads: either they work exactly, or the error says why before any I/O."""

from __future__ import annotations

import pytest

from pgnotifybus.core.names import check_channel, check_channels, payload_size, quote
from pgnotifybus.errors import InvalidChannel, PgNotifyBusError


@pytest.mark.parametrize(
    "name",
    [
        "orders",
        "MixedCase",
        "with space",
        'quo"te',
        "apo'strophe",
        "back\\slash",
        "semi;colon--",
        "new\nline",
        "%s",
        "$1",
        "select",
        "room:42",
        "x" * 63,
        "é" * 31 + "x",
        "日" * 21,
        "😀" * 15 + "abc",
    ],
)
def test_a_name_postgresql_can_have_is_taken_as_it_is(name: str) -> None:
    """Trap 22: quotes, capitals, non-ASCII, 63 bytes."""
    assert check_channel(name) is name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("x" * 64, "64 bytes"),
        ("é" * 32, "64 bytes"),
        ("日" * 21 + "x", "64 bytes"),
        ("😀" * 16, "64 bytes"),
        ("\ud800", "surrogate"),
        (b"orders", "bytes"),
        (None, "NoneType"),
        (42, "int"),
    ],
)
def test_a_name_postgresql_cannot_have_is_refused_with_the_reason(name: object, why: str) -> None:
    """Trap 22: bytes, not characters; LISTEN would cut the name in silence."""
    with pytest.raises(InvalidChannel, match=why):
        check_channel(name)


def test_the_error_for_a_name_can_be_printed_and_caught_broadly() -> None:
    with pytest.raises(PgNotifyBusError) as caught:
        check_channel("\ud800")
    assert isinstance(caught.value, ValueError)
    str(caught.value).encode()


def test_names_are_given_once_in_their_first_order() -> None:
    """Trap 15: the same channel twice."""
    assert check_channels(["b", "a", "b", "c", "a"]) == ("b", "a", "c")
    assert check_channels(iter(["b", "a"])) == ("b", "a")
    assert check_channels([]) == ()


@pytest.mark.parametrize("names", ["orders", b"orders"])
def test_a_single_name_is_not_taken_for_its_letters(names: str) -> None:
    with pytest.raises(InvalidChannel, match="pass a list"):
        check_channels(names)


def test_one_bad_name_refuses_them_all() -> None:
    with pytest.raises(InvalidChannel, match="empty"):
        check_channels(["orders", ""])


@pytest.mark.parametrize(
    ("payload", "size"),
    [("", 0), ("42", 2), ("x" * 7999, 7999), ("é" * 3999 + "x", 7999), ("😀" * 2000, 8000)],
)
def test_the_size_of_a_payload_is_that_of_its_utf8(payload: str, size: int) -> None:
    assert payload_size(payload) == size


@pytest.mark.parametrize(("payload", "why"), [("a\0b", "NUL"), ("ab\udfff", "index 2")])
def test_a_payload_postgresql_cannot_store_is_refused(payload: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        payload_size(payload)


@pytest.mark.parametrize("payload", [b"42", 42, None])
def test_a_payload_that_is_no_str_is_refused(payload: object) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        payload_size(payload)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("orders", '"orders"'),
        ("MixedCase", '"MixedCase"'),
        ('a"b', '"a""b"'),
        ('"', '""""'),
        ('"; drop table x; --', '"""; drop table x; --"'),
        ("a'b\\c", '"a\'b\\c"'),
    ],
)
def test_a_quoted_name_cannot_be_left(name: str, quoted: str) -> None:
    """Trap 22: quotes and case folding."""
    assert quote(name) == quoted
