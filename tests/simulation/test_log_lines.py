"""What the log says of a server that is away for an hour: a handful of lines."""

from __future__ import annotations

import asyncio
import logging
from itertools import count

import pytest

from pgnotifybus import observe
from pgnotifybus.errors import ConnectError
from pgnotifybus.testing import RecordingObserver
from simulation.server import SimulatedLink, SimulatedServer, bus_on

HOUR = 3600.0


class Fickle(SimulatedServer):
    """While it is away, each attempt fails in the next way."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.away = False
        self._ways = ways
        self._turn = count()

    async def connect(self, part: str, timeout: float) -> SimulatedLink:
        turn = next(self._turn)
        way = self._ways[turn % len(self._ways)].format(turn)
        self.failure = ConnectError(way) if self.away else None
        return await super().connect(part, timeout)


@pytest.mark.parametrize(
    ("ways", "different"),
    [
        (["connection refused"], 1),
        (["connection refused", "no route to host"], 2),
        (["db1 refused (PID {})", "db2 refused (PID {})", "starting up, LSN 0/{:X}"], 2),
    ],
    ids=["one way", "two in turn", "with numbers"],
)
async def test_an_hour_without_a_server_is_a_handful_of_lines(
    ways: list[str], different: int, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.INFO)
    server, recorder = Fickle(*ways), RecordingObserver()
    async with bus_on(server, ["orders"], recorder) as bus:
        caplog.clear()
        server.away = True
        server.session.kill()
        await asyncio.sleep(HOUR)
        assert bus.health().state == "down"
        assert len(recorder.of(observe.ConnectFailed)) > 100
        server.away = False
        await recorder.wait_for(observe.LinkUp, 2, timeout=60)
    lines = [record for record in caplog.records if record.levelno >= logging.INFO]
    said = [record.getMessage() for record in lines]
    assert len(said) == 2 + different, said
    assert "the link is lost" in said[0]
    assert "listening to 1 channel(s): generation 2" in said[-1]
