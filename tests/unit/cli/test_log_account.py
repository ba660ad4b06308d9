"""What is said of lines that were to be appended adds up, and shows nothing of them."""

from __future__ import annotations

import json

from pgnotifybus.cli.log.account import Account


def account(lines: int) -> Account:
    made = Account("orders", seconds=2.0)
    for _ in range(lines):
        made.take(5)
    return made


def test_all_is_well() -> None:
    made = account(3_000)
    for last in (1_000, 2_000, 3_000):
        made.commit(list(range(last - 999, last + 1)), 1_000)
    assert made.ok
    assert made.summary() == (
        "appended 3,000 lines to orders in 3 commits, 2.00 s, 1,500 lines/s; the last id is 3000"
    )
    assert json.loads(made.json()) == {
        "channel": "orders",
        "accepted": 3_000,
        "appended": 3_000,
        "unsent": 0,
        "unknown": 0,
        "commits": 3,
        "bytes": 15_000,
        "seconds": 2.0,
        "last_id": 3_000,
    }


def test_which_lines_are_not_in_the_log_is_said_by_their_numbers() -> None:
    made = account(10)
    made.commit([1, 2, 3], 3)
    made.unknown = 4
    assert not made.ok
    assert made.waiting == 3
    assert made.failure("lost") == (
        "whether each of lines 4 to 7 was appended is not known; each of lines 8 to 10 was not "
        "appended: lost"
    )
    made.unknown = 0
    assert made.failure("full") == "each of lines 4 to 10 was not appended: full"


def test_one_line_is_one() -> None:
    made = account(1)
    assert made.failure("full") == "line 1 was not appended: full"
    made.commit(None, 1)
    assert made.summary().startswith("appended 1 line to orders in 1 commit, 2.00 s, 0 lines/s")
    assert made.progress() == "1 line appended to orders, 0 waiting"
