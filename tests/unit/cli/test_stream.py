"""The order of things in a stream, and what no server can be brought to do quickly."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, cast

import pytest

from pgnotifybus import observe
from pgnotifybus.cli import stream
from pgnotifybus.cli.lines import Line, no_key
from pgnotifybus.cli.outcomes import UsageProblem
from pgnotifybus.cli.stdin import Stdin
from pgnotifybus.errors import LinkLost, PublishFailed
from pgnotifybus.links.sources import Connector
from pgnotifybus.publish.settings import PublisherStatistics

NOTHING = dict.fromkeys(
    ("accepted", "sent", "replaced", "unsent", "unknown", "waiting", "commits"), 0
)


class Stub:
    """A publisher and a connection that do what a test says, and note what is asked of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.complaints: list[PublishFailed] = []
        self.waiting = [0]
        """What to say at each question in turn; the last one for ever."""
        self.commits = 0
        self.never_flushed = False

    async def publish(self, channel: str, payload: str, key: str | None) -> None:
        if self.complaints:
            raise self.complaints.pop()
        self.asked.append(payload)

    async def flush(self) -> None:
        self.asked.append("flush")
        if self.never_flushed:
            await asyncio.Event().wait()

    def statistics(self) -> PublisherStatistics:
        waiting = self.waiting.pop(0) if len(self.waiting) > 1 else self.waiting[0]
        return PublisherStatistics(**{**NOTHING, "waiting": waiting, "commits": self.commits})

    async def __aenter__(self) -> Stub:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.asked.append("end")

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        self.asked.append("connect")
        yield

    async def close(self) -> None:
        self.asked.append("close")


class Streaming(NamedTuple):
    """What is tested, on a stub."""

    it: stream._Streaming
    stub: Stub


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Streaming:
    """A stream of two lines."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n")))
    settings = stream.settings(10, 0.0, durable=True)
    it = stream._Streaming(
        cast("Connector", None),
        stream.Request(Stdin(), "a", "schema", settings, no_key, json=False, verbose=False),
    )
    stub = Stub()
    it._publisher = cast("Any", stub)
    it._side = cast("Any", stub)
    return Streaming(it, stub)


async def test_it_connects_reads_sends_and_waits_in_this_order(streaming: Streaming) -> None:
    await streaming.it.run()
    assert streaming.stub.asked == ["connect", "1", "2", "flush", "end", "close"]


async def test_what_is_to_stop_before_it_is_connected_reads_nothing(streaming: Streaming) -> None:
    streaming.it.stop.set()
    await streaming.it.run()
    assert streaming.stub.asked == ["close"]
    assert not streaming.it.begun


async def test_the_end_waits_as_long_as_anything_is_sent(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of the same line takes a commit each: that may last."""
    monkeypatch.setattr(stream, "_PATIENCE", 0.001)
    streaming.stub.never_flushed = True
    streaming.stub.waiting = [9, 7, 7, 5, 5, 5]  # before and after each try
    await streaming.it._settle()
    assert streaming.stub.asked == ["flush"] * 3


async def test_a_line_is_offered_again_after_a_complaint_about_earlier_ones(
    streaming: Streaming,
) -> None:
    """A publisher says so when nobody has asked for long; the line that heard it is not lost."""
    streaming.stub.complaints = [PublishFailed("refused", [("a", "x")] * 2, []) for _ in range(2)]
    await streaming.it._take(Line(1, "hello", 5))
    assert streaming.stub.asked == ["hello"]
    assert streaming.it._sent.reasons == ["refused"]
    assert streaming.it._sent.sizes == [1, 1, 1]


def test_each_outage_is_said_once_and_refusals_once(
    streaming: Streaming, capsys: pytest.CaptureFixture[str]
) -> None:
    for commits in (0, 0, 5, 5, 5):
        streaming.stub.commits = commits
        streaming.it._observe(observe.PublishDelayed(LinkLost("gone"), 3, 0.1))
        streaming.it._observe(observe.PublishRefused("a", 1, "too large"))
    assert capsys.readouterr().err.splitlines() == [
        "-- cannot send: gone; 3 waiting, trying again",
        "-- refused: too large; going on with the others",
        "-- cannot send: gone; 3 waiting, trying again",
    ]


def test_a_large_batch_has_room_to_gather() -> None:
    assert stream.settings(1_000, 0.0, durable=True).capacity == 10_000
    assert stream.settings(50_000, 0.0, durable=False).capacity == 100_000


def test_there_is_one_way_to_tell_the_key() -> None:
    with pytest.raises(UsageProblem, match="exclude each other"):
        stream.keys("k", "f")
    assert stream.keys(None, None) is no_key
