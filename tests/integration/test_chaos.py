"""Every fault is noticed, told in its place on every channel, and mended; see `tests/chaos`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from chaos.cases import CASES
from chaos.fleet import fleet
from chaos.table import BEGIN, END
from chaos.trial import Outcome, trial
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from support import pgbouncer
from support.documents import ROOT

PrivateServer = Callable[..., EmbeddedServer]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def test_the_table_has_every_fault() -> None:
    page = (ROOT / "docs/topics/reliability.md").read_text()
    table = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    shown = [line.split(" | ")[0].removeprefix("| ") for line in table if line]
    assert shown[2:] == [case.title for case in CASES.values()]


async def test_a_fleet_comes_back_spread_out(private_server: PrivateServer) -> None:
    """That lost its server in one moment: over a half of the first delay, a quarter of a second."""
    back = await fleet(private_server(18), "psycopg", 30, 0)
    assert len(back.seconds) == 30
    assert back.knocked[-1] - back.knocked[0] > 0.1  # by chance less, once in ten billion times


# Not async: each brings its own loop. Both drivers and both loops, though not all four pairs.
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("driver", "loop"), [("psycopg", "uvloop"), ("asyncpg", "asyncio")])
@pytest.mark.parametrize("name", CASES)
def test_the_fault(name: str, private_server: PrivateServer, driver: Driver, loop: str) -> None:
    case = CASES[name]
    if case.needs_pgbouncer and pgbouncer.PROGRAM is None:
        pytest.skip("PgBouncer is not installed (package pgbouncer)")
    server = private_server(18, dict(case.settings))
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        outcome: Outcome = runner.run(trial(case, server, driver))
    if outcome.noticed is not None:
        assert outcome.noticed < 3  # `make chaos` says how long it really takes
