"""Lines are the same however their bytes come, and a bad one has its number."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifybus.cli.lines import Line, Lines, key_field, no_key, one_key
from pgnotifybus.cli.outcomes import UsageProblem
from pgnotifybus.core.envelope import MAX_SPILLED_BYTES


def split(*pieces: bytes) -> list[Line]:
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed(piece)]
    return [*found, *lines.end()]


def texts(*pieces: bytes) -> list[str]:
    return [line.text for line in split(*pieces)]


@given(st.lists(st.text("a\n\r€ ", max_size=6).map(str.encode), max_size=6))
def test_it_makes_no_difference_how_the_bytes_come(pieces: list[bytes]) -> None:
    together = b"".join(pieces)
    one_by_one = [bytes([byte]) for byte in together]
    assert split(*pieces) == split(together) == split(*one_by_one)


@given(st.lists(st.text("a\r€ ").filter(lambda line: not line.endswith("\r"))), st.booleans())
def test_lines_come_back_with_their_numbers_and_sizes(written: list[str], crlf: bool) -> None:
    end = "\r\n" if crlf else "\n"
    data = "".join(line + end for line in written).encode()
    assert split(data) == [
        Line(number, text, len(text.encode())) for number, text in enumerate(written, 1)
    ]


def test_one_carriage_return_belongs_to_the_end_of_a_line() -> None:
    assert texts(b"a\r\r\n", b"b\r", b"\n\r\nc\rd\re\r") == ["a\r", "b", "", "c\rd\re\r"]


def test_only_a_line_feed_ends_a_line() -> None:
    text = "a\vb\fc\x1cd\x85e\u2028f"
    assert texts(text.encode()) == [text]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\nmore\n"])
def test_lines_before_a_bad_one_come_first(end: bytes) -> None:
    lines = Lines()
    found = itertools.chain(lines.feed(b"a\nb\nc\xfe" + end), lines.end())
    assert [next(found).text, next(found).text] == ["a", "b"]
    with pytest.raises(UsageProblem, match="line 3 of stdin is not UTF-8: its byte 1 is 0xfe"):
        next(found)


def test_the_longest_line_is_taken_and_one_byte_more_is_not() -> None:
    longest = b"x" * MAX_SPILLED_BYTES
    assert split(longest, b"\r", b"\n")[0].size == MAX_SPILLED_BYTES
    for pieces in ((longest, b"x\n"), (longest + b"x",), (longest, b"x\r\n")):
        with pytest.raises(UsageProblem, match="line 1 of stdin has over 16777216 bytes"):
            split(*pieces)


def test_a_line_without_an_end_is_given_up_before_it_fills_the_memory() -> None:
    lines = Lines()
    assert not list(lines.feed(b"x" * MAX_SPILLED_BYTES))
    with pytest.raises(UsageProblem, match="line 1 of stdin has over"):
        list(lines.feed(b"xx"))


# -- keys -----------------------------------------------------------------------------------------


def line(text: str) -> Line:
    return Line(7, text, len(text))


def test_without_a_field_all_lines_have_the_same_key_or_none() -> None:
    for key_of, key in ((no_key, None), (one_key("k"), "k")):
        assert [key_of(line("a")), key_of(line("b"))] == [key, key]


@given(st.text(), st.one_of(st.text(), st.integers(), st.booleans()), st.text())
def test_the_key_is_that_of_the_field(name: str, value: object, other: str) -> None:
    key_of = key_field(name)
    payload = json.dumps({name: value})
    assert key_of(line(payload)) == key_of(line(f" {payload} "))
    if other != value:
        assert key_of(line(payload)) != key_of(line(json.dumps({name: other})))


def test_values_of_other_types_are_other_keys() -> None:
    values = ["1", 1, "true", True, 1.5, "1.5"]
    keys = {key_field("k")(line(json.dumps({"k": value}))) for value in values}
    assert len(keys) == len(values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ('"k"', "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ("{}", "has no field 'k'"),
        ('{"k": null}', "has no string, number or boolean as field 'k'"),
        ('{"k": []}', "has no string, number or boolean as field 'k'"),
    ],
)
def test_a_line_without_a_key_is_named_and_not_shown(text: str, said: str) -> None:
    with pytest.raises(UsageProblem, match=f"^line 7 of stdin {said}"):
        key_field("k")(line(text))
