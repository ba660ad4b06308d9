"""Events are checked before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from pgnotifybus import Channel
from pgnotifybus.errors import InvalidChannel, PayloadTooLarge
from pgnotifybus.log.appending import New, append, append_many, new

LIMIT = 100
NESTED: list[Any] = []
for _ in range(200_000):
    NESTED = [NESTED]
Arguments = tuple[Any, Any, Any, Any]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a", "x", None, None), New("a", "x", None, None, 1)),
        (("a", "", "", {}), New("a", "", "", "{}", 0)),
        (("a", "é", "k", {"é": [1, None]}), New("a", "é", "k", '{"é":[1,null]}', 2)),
        (("a", {"b": 1}, None, None), New("a", '{"b":1}', None, None, 7)),
        (("a", None, None, None), New("a", "null", None, None, 4)),
        (("a", "x" * LIMIT, None, None), New("a", "x" * LIMIT, None, None, LIMIT)),
        (("a", "x", None, {"p": "\\u0000"}), New("a", "x", None, '{"p":"\\\\u0000"}', 1)),
        ((Channel("a", int), 7, None, None), New("a", "7", None, None, 1)),
    ],
)
def test_what_can_be_appended_is_made_text(arguments: Arguments, expected: New) -> None:
    assert new(*arguments, LIMIT) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        (("", "x", None, None), InvalidChannel, "empty"),
        (("x" * 64, "x", None, None), InvalidChannel, "63"),
        (("a", "x\0", None, None), ValueError, "NUL"),
        (("a", "\ud800", None, None), ValueError, "the payload has a lone surrogate"),
        (("a", "é" * 51, None, None), PayloadTooLarge, "event_limit"),
        (("a", {1, 2}, None, None), TypeError, "the payload cannot be written as JSON"),
        (("a", float("nan"), None, None), ValueError, "the payload cannot be written as JSON"),
        (("a", "x", 7, None), TypeError, "the key must be a str"),
        (("a", "x", "\0", None), ValueError, "the key has a NUL"),
        (("a", "x", None, ["no"]), TypeError, "headers must be a mapping"),
        (("a", "x", None, {"a": object()}), TypeError, "the headers cannot be written"),
        (("a", "x", None, {"a": "\0"}), ValueError, "a header has a NUL"),
        (("a", "x", "\ud800", None), ValueError, "the key has a lone surrogate"),
        (("a", NESTED, None, None), ValueError, "the payload cannot .* nested too deeply"),
        (("a", "x", None, {"a": NESTED}), ValueError, "the headers cannot .* nested too deeply"),
        (("a", "x", None, {"a": "\ud800"}), ValueError, "the text of the headers has a lone"),
    ],
)
def test_what_cannot_is_refused(arguments: Arguments, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        new(*arguments, LIMIT)


@pytest.mark.parametrize(
    ("event", "parameters", "text"),
    [
        (New("a", "x", None, None, 1), ("a", "x"), "NULL, NULL"),
        (New("a", "x", "k", None, 1), ("a", "x", "k"), "CAST($3 AS text), NULL"),
        (New("a", "x", None, "{}", 1), ("a", "x", "{}"), "NULL, CAST(CAST($3 AS text) AS jsonb)"),
        (New("a", "x", "k", "{}", 1), ("a", "x", "k", "{}"), "$3 AS text), CAST(CAST($4"),
    ],
)
def test_only_what_there_is_is_sent(event: New, parameters: tuple[str, ...], text: str) -> None:
    script = append("my schema", event)
    query = next(script)
    assert query.parameters == parameters
    assert text in query.sql
    assert '"my schema".append(' in query.sql
    with pytest.raises(StopIteration) as end:
        script.send([("42",)])
    assert end.value.value == 42


def test_nothing_is_sent_for_no_events() -> None:
    with pytest.raises(StopIteration) as end:
        next(append_many("pgnotifybus", []))
    assert end.value.value == []
