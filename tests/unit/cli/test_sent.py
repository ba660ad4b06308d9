"""What is said of a stream adds up, and shows nothing of a payload."""

from __future__ import annotations

import json

from pgnotifybus.cli.sent import Sent
from pgnotifybus.errors import PublishFailed
from pgnotifybus.publish.settings import PublisherStatistics


def sent(**counts: int) -> Sent:
    account = Sent("orders", bytes=50, seconds=2.0)
    zero = dict.fromkeys(
        ("accepted", "sent", "replaced", "unsent", "unknown", "waiting", "commits"), 0
    )
    account.count(PublisherStatistics(**{**zero, **counts}))
    return account


def test_all_is_well() -> None:
    account = sent(accepted=3_000, sent=3_000, commits=3)
    assert account.ok
    assert account.summary() == "sent 3,000 lines to orders in 3 commits, 2.00 s, 1,500 lines/s"
    assert json.loads(account.json()) == {
        "channel": "orders",
        "accepted": 3_000,
        "sent": 3_000,
        "replaced": 0,
        "unsent": 0,
        "unknown": 0,
        "commits": 3,
        "bytes": 50,
        "seconds": 2.0,
    }


def test_what_was_not_sent_is_counted_and_its_payloads_are_not_shown() -> None:
    account = sent(accepted=10, sent=1, replaced=2, unsent=6, unknown=1, commits=1)
    account.fail(PublishFailed("too large", [("a", "secret"), ("a", "sécret")], []))
    account.fail(PublishFailed("too large", [("a", "x")] * 4, []))
    account.fail(PublishFailed("the server is away", [], [("a", "secret")]))
    assert not account.ok
    assert account.summary() == (
        "sent 1 line to orders in 1 commit, 2.00 s, 0 lines/s; 2 replaced by newer ones of the "
        "same key; 6 not sent; 1 sent or not, which is not known"
    )
    assert account.failure() == (
        "6 lines not sent and 1 line sent or not, which is not known (of 6, 7, 1, ... bytes): "
        "too large; the server is away"
    )


def test_what_was_given_up_without_a_reason_was_interrupted() -> None:
    account = sent(accepted=1, unsent=1)
    assert account.failure() == "1 line not sent: interrupted"
    account = sent(accepted=1, unknown=1)
    account.seconds = 0.0
    assert account.failure() == "1 line sent or not, which is not known: interrupted"
    assert "0 lines/s" in account.summary()


def test_progress_is_one_short_line() -> None:
    account = sent(accepted=12_001, sent=10_000, waiting=2_001)
    assert account.progress() == "10,000 lines sent to orders, 2,001 waiting"
