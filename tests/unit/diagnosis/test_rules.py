"""From what a server answers to what is well, and what is not."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import pytest

from pgnotifybus.diagnosis import rules
from pgnotifybus.diagnosis.finding import Finding, worst
from pgnotifybus.links.base import Rows

TODAY = date(2026, 11, 27)


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    return {each.id: each.level for each in findings}


@pytest.mark.parametrize(
    ("number", "in_recovery", "encoding", "expected"),
    [
        ("180006", "false", "UTF8", ("ok", "ok", "ok")),
        ("140020", "false", "UTF8", ("warning", "ok", "ok")),
        ("120022", "false", "UTF8", ("problem", "ok", "ok")),
        ("190000", "true", "UTF8", ("ok", "problem", "ok")),
        ("170006", "false", "LATIN1", ("ok", "ok", "note")),
        ("170006", "false", "SQL_ASCII", ("ok", "ok", "warning")),
    ],
)
def test_the_server(
    number: str, in_recovery: str, encoding: str, expected: tuple[str, ...]
) -> None:
    found = levels(rules.server([(number, "x.y", in_recovery, encoding)], TODAY))
    assert tuple(found[each] for each in ("server-version", "standby", "encoding")) == expected


@pytest.mark.parametrize(
    ("number", "level"),
    [
        ("180001", "warning"),
        ("180002", "ok"),
        ("170007", "warning"),
        ("140021", "ok"),
        ("130023", "warning"),
        ("190000", "ok"),
    ],
)
def test_bugs_that_are_known(number: str, level: str) -> None:
    [found] = [
        each
        for each in rules.server([(number, "x.y", "false", "UTF8")], TODAY)
        if each.id == "known-bugs"
    ]
    assert found.level == level


@pytest.mark.parametrize(
    ("row", "level"),
    [
        (("true", "TLSv1.3", "false"), "ok"),
        (("false", None, "true"), "ok"),
        (("false", None, "false"), "warning"),
        ((None, None, "false"), "warning"),
    ],
)
def test_the_connection(row: tuple[str | None, ...], level: str) -> None:
    assert levels(rules.connection([row])) == {"tls": level}


@pytest.mark.parametrize(
    ("usage", "pages", "level", "seen"),
    [
        ("0.000001", None, "ok", "0.0% of 8 GiB"),
        ("0.051", "1048576", "warning", "5.1% of 8 GiB"),
        ("0.5", "64", "problem", "50.0% of 512 KiB"),
    ],
)
def test_the_queue(usage: str, pages: str | None, level: str, seen: str) -> None:
    [found] = rules.queue([(usage, pages, "8192")])
    assert (found.level, seen in found.seen) == (level, True)


def test_who_is_stuck_is_named_with_what_ends_it() -> None:
    rows: Rows = [
        ("7", "report", "shop", "idle in transaction", "3600", ""),
        ("8", "", "shop", "idle", "61", "ClientWrite"),
    ]
    first, second = rules.stuck(rows)
    assert first.level == second.level == "warning"
    assert "PID 7 (report, database shop) is idle in transaction for 3,600 s" in first.seen
    assert "pg_terminate_backend(7)" in first.advice
    assert "does not read what it is sent" in second.seen
    assert levels(rules.stuck([])) == {"stuck-sessions": "ok"}


@pytest.mark.parametrize(
    ("here", "number", "level"), [(50, 180000, "ok"), (51, 180000, "warning"), (51, 190000, "ok")]
)
def test_many_listeners_cost_before_19(here: int, number: int, level: str) -> None:
    row: tuple[str | None, ...] = ("1", "", "", "", "0", "0", "", "true")
    elsewhere = (*row[:7], "false")
    assert levels(rules.listeners([row] * here + [elsewhere] * 9, number)) == {"listeners": level}


NO_ROWS = ("false", "3000", "true")


@pytest.mark.parametrize(
    ("width", "has_long", "level", "told"),
    [
        (None, "false", "note", "tell on orders"),
        ("1999", "false", "note", "tell on orders (1,999 bytes on average)"),
        ("2000", "false", "warning", "tell on orders (2,000 bytes on average)"),
        ("90", "true", "warning", "tell on orders (90 bytes on average, some over 2,000)"),
    ],
)
def test_whole_rows_are_near_the_limit_where_rows_are_long(
    width: str | None, has_long: str, level: str, told: str
) -> None:
    rows: Rows = [("orders", "tell", "false", "true", width, has_long)]
    [found] = [each for each in rules.triggers(rows, 1) if each.id == "whole-rows"]
    assert (found.level, found.seen) == (level, f"triggers send whole rows: {told}")


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        (rules.waiting([("0",)]), "ok"),
        (rules.waiting([("3",)]), "warning"),
        (rules.triggers([], 0), "ok"),
        (rules.triggers([("orders", "tell", "true", *NO_ROWS)], 1), "warning"),
        (rules.triggers([("orders", "tell", "false", *NO_ROWS)], 1), "ok"),
        (rules.triggers([("orders", "tell", "false", *NO_ROWS)], 0), "note"),
        (rules.timeouts([]), "ok"),
        (rules.timeouts([("idle_session_timeout", "60000 ms")]), "note"),
        (rules.spill([("0", "0", "0")]), "ok"),
        (rules.spill([("5", "9000", "1")]), "warning"),
        (rules.log([("2", "0", "", "0")]), "ok"),
        (rules.log([("2", "1", "billing", "0")]), "warning"),
        (rules.log([("2", "0", "", "4")]), "warning"),
        ([rules.round_trip(0.002, 5.0)], "ok"),
        ([rules.round_trip(1.5, 5.0)], "warning"),
        ([rules.round_trip(None, 5.0)], "problem"),
        ([rules.pooler(True)], "note"),
        ([rules.pooler(False)], "ok"),
        (rules.rights([("true", "true")]), "ok"),
        (rules.rights([("true", "false")]), "note"),
        (rules.rights([("false", "true")]), "warning"),
    ],
)
def test_the_rest(findings: Iterable[Finding], level: str) -> None:
    found = [*findings]
    assert worst(found) == level
    assert all(each.why and each.advice for each in found if each.level != "ok")


def test_nothing_found_is_well() -> None:
    assert worst([]) == "ok"
