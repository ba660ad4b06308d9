"""What those who write and follow tell each other."""

from __future__ import annotations

import pytest

from pgnotifybus.core.load import Belief
from pgnotifybus.core.names import MAX_PAYLOAD_BYTES
from pgnotifybus.log.words import Word, announce, found, understand

NAMES = ["a", "With Space", '"quo"', "!", "+", "[x]", "new\nline", "é" * 31, "back\\slash"]


@pytest.mark.parametrize("belief", ["awake", "draining", "asleep"])
def test_what_a_pacemaker_says_is_understood(belief: Belief) -> None:
    assert understand(announce(belief)) == Word(None, belief=belief)
    assert understand(found(NAMES, belief)) == Word(sorted(NAMES), belief=belief)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_writer_says_is_understood(name: str) -> None:
    assert understand(f"+{name}") == Word((name,), from_writer=True)


def test_too_many_channels_to_name_are_all() -> None:
    names = [f"{number:060}" for number in range(500)]
    word = found(names, "awake")
    assert len(word.encode()) <= MAX_PAYLOAD_BYTES
    assert understand(word) == Word(None, belief="awake")


@pytest.mark.parametrize("text", ["", "*", "!", "!awaken", "nonsense", '["a"]', "! []", "42"])
def test_what_nobody_of_us_says_may_mean_anything(text: str) -> None:
    word = understand(text)
    assert (word.from_writer, word.belief) == (False, None)
    assert not word.channels


@pytest.mark.parametrize(
    "news",
    [
        "{}",
        "7",
        '"a"',
        "[",
        "null",
        '[["orders"]]',
        '["orders", null]',
        "[1]",
        "[" * 5000,
        f"{'[' * 3000}{']' * 3000}",
    ],
    ids=lambda news: news[:20],
)
def test_channels_that_are_none_are_all(news: str) -> None:
    assert understand(f"!awake {news}") == Word(None, belief="awake")
