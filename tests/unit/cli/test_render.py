"""One message is one line, whatever is in it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifybus.cli.render import Json, Plain, printable
from pgnotifybus.messages import Gap, Notification

ANYTHING = st.text(st.characters(exclude_characters="\0", codec=None))


@given(ANYTHING, ANYTHING)
def test_a_line_for_people_is_one_line_with_one_tab(channel: str, payload: str) -> None:
    line = Plain().item(Notification(channel, payload, 1, 1))
    assert len(line.splitlines()) <= 1
    assert line.count("\t") == 1
    assert not any(ord(c) < 32 and c != "\t" for c in line)
    line.encode()  # no lone surrogate either


@given(ANYTHING, ANYTHING)
def test_json_is_one_ascii_line_that_gives_the_payload_back(channel: str, payload: str) -> None:
    line = Json().item(Notification(channel, payload, 7, 2))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    back = json.loads(line)
    assert (back["channel"], back["payload"]) == (channel, payload)


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (Gap("lagged", "a\tb", 1, 3), "3 skipped"),
        (Gap("reconnected", "a\tb", 2, None), "the connection was lost and made again"),
        (Gap("expired", "a\tb", 1, 1), "no longer in the table"),
        (Gap("unreadable", "a\tb", 1, 1), "could not be fetched"),
    ],
)
def test_a_gap_has_no_tab_and_says_what_is_missing(gap: Gap, said: str) -> None:
    line = Plain().item(gap)
    assert line.startswith("-- ")
    assert "\t" not in line
    assert said in line


def test_what_an_envelope_says_is_shown_as_json() -> None:
    plain = json.loads(Json().item(Notification("a", "1", 7, 2)))
    assert plain.keys() == {"type", "channel", "payload", "pid", "generation"}
    stamped = json.loads(Json().item(Notification("a", "1", 7, 2, "us", 1.5, None)))
    assert (stamped["origin"], stamped["sent_at"]) == ("us", 1.5)
    assert "traceparent" not in stamped


def test_what_is_harmless_stays_as_it_is() -> None:
    for text in ('{"a": "\\n"}', "naïve 日本語", "👨\u200d👩", "a b", "[bold]x[/]"):
        assert printable(text) == text
    assert printable("\udce4\u2066\x9b") == "\\udce4\\u2066\\x9b"
