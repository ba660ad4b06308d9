"""The headers of events: read when they are looked at."""

from __future__ import annotations

import copy
import pickle

import pytest

from pgnotifybus.log.event import NO_HEADERS, Headers, headers_text


def test_they_are_a_mapping_that_cannot_be_changed() -> None:
    headers = Headers('{"a": [1, null], "ž": "é"}')
    assert headers == {"a": [1, None], "ž": "é"}
    assert (headers["a"], headers.get("b", 7), list(headers), len(headers)) == (
        [1, None],
        7,
        ["a", "ž"],
        2,
    )
    with pytest.raises(KeyError):
        headers["b"]
    with pytest.raises(TypeError):
        headers["a"] = 1  # type: ignore[index]
    assert NO_HEADERS == {}
    assert not NO_HEADERS


def test_they_may_be_copied_and_sent() -> None:
    headers = Headers('{"a": 1}')
    for same in (copy.copy(headers), copy.deepcopy(headers), pickle.loads(pickle.dumps(headers))):
        assert same == headers
    assert eval(repr(headers)) == headers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "no object"),
        ('{"a": ' + "1" * 5000 + "}", "4300"),
        ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "recursion"),
    ],
    ids=["no object", "too large", "too deep"],
)
def test_what_python_cannot_read_troubles_only_who_looks(text: str, why: str) -> None:
    headers = Headers(text)
    assert headers_text(headers) == headers.text == text
    for look in (lambda: headers.get("a"), lambda: dict(headers), lambda: len(headers)):
        with pytest.raises(ValueError, match=why):
            look()


def test_those_of_a_users_own_event_are_written_as_json() -> None:
    assert headers_text({"a": [1, "é"]}) == '{"a": [1, "\\u00e9"]}'
