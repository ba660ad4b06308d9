"""The account of one subscriber: what is missing is measured, and explained or lost."""

from __future__ import annotations

from pgnotifybus.cli.demo.account import Account
from pgnotifybus.messages import Gap

RECONNECTED = Gap("reconnected", "c", 2, None)


def lagged(skipped: int) -> Gap:
    return Gap("lagged", "c", 2, skipped)


def account(*events: int | Gap) -> Account:
    made = Account()
    for event in events:
        if isinstance(event, Gap):
            made.gap(event)
        else:
            made.notification(event, 1)
    return made


def numbers(made: Account) -> tuple[int, int, int, int]:
    return made.delivered, made.skipped, made.missed, made.lost


def test_without_gaps_everything_is_delivered() -> None:
    assert numbers(account(1, 2, 3)) == (3, 0, 0, 0)


def test_a_lag_is_what_it_says() -> None:
    assert numbers(account(1, lagged(3), 5)) == (2, 3, 0, 0)
    assert numbers(account(1, lagged(3), lagged(2), 7)) == (2, 5, 0, 0)


def test_a_reconnect_explains_the_hole_at_its_place() -> None:
    assert numbers(account(1, RECONNECTED, 5)) == (2, 0, 3, 0)
    assert numbers(account(RECONNECTED, 5)) == (1, 0, 4, 0)
    assert numbers(account(1, RECONNECTED, 2)) == (2, 0, 0, 0)  # nothing was sent meanwhile


def test_a_lag_and_a_reconnect_share_a_hole_in_either_order() -> None:
    assert numbers(account(1, lagged(3), RECONNECTED, 10)) == (2, 3, 5, 0)
    assert numbers(account(1, RECONNECTED, lagged(3), 10)) == (2, 3, 5, 0)


def test_a_hole_without_a_gap_is_lost() -> None:
    assert numbers(account(1, 3)) == (2, 0, 0, 1)
    assert numbers(account(1, RECONNECTED, 3, 5)) == (3, 0, 1, 1)


def test_a_wrong_count_a_repetition_and_a_wrong_order_are_lost_too() -> None:
    assert account(1, lagged(2), 3).lost == 1
    assert account(1, lagged(1), 4).lost == 1
    assert account(1, 1).lost == 1
    assert account(2, 1, 3).lost > 0
    assert account(1, RECONNECTED, lagged(5), 4).lost > 0
