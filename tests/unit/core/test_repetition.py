"""What has been told is not told again, and yet is told again one day."""

from __future__ import annotations

from pgnotifybus.core.repetition import FORGOTTEN_AFTER, REMEMBERED, Repetition


def test_ways_to_fail_that_alternate_are_each_told_once() -> None:
    repetition = Repetition()
    ways = ["no route to host", "connection refused", "starting up"]
    told = [repetition.is_news("connect", ways[turn % 3], float(turn)) for turn in range(300)]
    assert told == [True] * 3 + [False] * 297


def test_another_number_is_no_other_way_to_fail() -> None:
    repetition = Repetition()
    assert repetition.is_news("connect", "port 5432 of db1: WAL at 0/16B3740", 0)
    assert not repetition.is_news("connect", "port 5433 of db2: WAL at 0/9A00FF8", 1)
    assert repetition.is_news("connect", "port 5433 of dbx: WAL at 0/9A00FF8", 2)


def test_it_is_news_again_when_things_were_well() -> None:
    repetition = Repetition()
    assert repetition.is_news("connect", "refused", 0)
    repetition.forget()
    assert repetition.is_news("connect", "refused", 1)


def test_it_is_news_again_when_it_was_not_seen_for_long() -> None:
    repetition = Repetition()
    assert repetition.is_news("connect", "refused", 0)
    assert not repetition.is_news("connect", "refused", FORGOTTEN_AFTER - 1)
    assert not repetition.is_news("connect", "refused", 2 * FORGOTTEN_AFTER - 2)
    assert repetition.is_news("connect", "refused", 3 * FORGOTTEN_AFTER)


def test_however_many_ways_there_are_only_so_many_are_told() -> None:
    repetition = Repetition()
    names = [chr(ord("g") + turn % 20) * (1 + turn // 20) for turn in range(1000)]
    news = [repetition.is_news("connect", name, turn) for turn, name in enumerate(names)]
    assert news == [turn < REMEMBERED or 600 <= turn < 600 + REMEMBERED for turn in range(1000)]
    # Noise of one kind does not drown another.
    assert repetition.is_news("publish", names[-1], 1000)
