"""What others than this library say and write: it troubles nobody but who looks at it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgnotifybus import EventLog, EventLogError, observe, schema
from pgnotifybus.log import wakes
from pgnotifybus.log.event import Event, Headers
from support.sql import execute

APPEND = "SELECT pgnotifybus.append('orders', %s)"


@pytest.fixture
async def dsn(database18: str) -> str:
    """A database with a log."""
    await schema.install(database18)
    return database18


async def _next(follower: Any) -> Event[str]:
    async with asyncio.timeout(20):
        event: Event[str] = await anext(follower)
    return event


@pytest.mark.parametrize(
    "word",
    ['!awake [["orders"]]', "!awake " + "[" * 5000, "!awake [1]", "+", "!", "\x01", "[" * 7999],
    ids=lambda word: word[:20],
)
async def test_an_odd_notification_is_no_reason_to_stop_hearing(dsn: str, word: str) -> None:
    async with EventLog(dsn) as log, log.follow("orders") as follower:
        await execute(dsn, "SELECT pg_notify('pgnotifybus:pgnotifybus', %s)", word)
        for number in range(3):
            await execute(dsn, APPEND, str(number))
            assert (await _next(follower)).payload == str(number)


async def test_after_what_nobody_foresaw_it_hears_on(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And looks for itself, as it has not understood what it heard."""
    hear = wakes.Wakes.hear

    def fail_once(*_: object) -> None:
        monkeypatch.setattr(wakes.Wakes, "hear", hear)
        raise RuntimeError("nobody foresaw it")

    told: list[observe.Event] = []
    async with (
        EventLog(dsn, observer=told.append) as log,
        log.follow("orders") as follower,
    ):
        monkeypatch.setattr(wakes.Wakes, "hear", fail_once)
        await execute(dsn, APPEND, "1")
        assert (await _next(follower)).payload == "1"
        await execute(dsn, APPEND, "2")
        assert (await _next(follower)).payload == "2"
    assert [event.doing for event in told if isinstance(event, observe.LogDelayed)] == ["the wakes"]
    assert "the wakes of the event log has failed" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("after", ["now", "beginning"])
async def test_headers_that_python_cannot_read_hold_up_nothing(dsn: str, after: str) -> None:
    deep = '{"a": ' + "[" * 3000 + "]" * 3000 + "}"
    large = '{"a": 1e5000}'
    async with EventLog(dsn) as log, log.follow("orders", after=after) as follower:
        for headers in (deep, large, "[1]"):
            sql = "SELECT pgnotifybus.append('orders', 'x', NULL, CAST(%s AS jsonb))"
            await execute(dsn, sql, headers)
            event = await _next(follower)
            assert isinstance(event.headers, Headers)
            if headers != deep:  # Python 3.13 can read that
                with pytest.raises(ValueError, match="headers"):
                    dict(event.headers)
        await execute(dsn, APPEND, "behind them")
        assert (await _next(follower)).payload == "behind them"


@pytest.mark.parametrize("after", ["now", "beginning"])
async def test_a_row_that_is_not_as_we_write_them_is_an_error_and_no_silence(
    dsn: str, after: str
) -> None:
    async with EventLog(dsn) as log, log.follow("orders", after=after) as follower:
        await execute(
            dsn,
            "INSERT INTO pgnotifybus.events (channel, payload, created_at) "
            "VALUES ('orders', 'x', 'infinity'); SELECT pgnotifybus.wake()",
        )
        for _ in range(2):
            with pytest.raises(EventLogError, match="isoformat"):
                await _next(follower)
        await execute(dsn, "DELETE FROM pgnotifybus.events")
        await execute(dsn, APPEND, "behind it")
        assert (await _next(follower)).payload == "behind it"
