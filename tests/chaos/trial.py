"""One fault against one world: what must hold, and how long it takes."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from chaos.cases import Case
from chaos.crowd import Crowd
from chaos.world import QUICK, World, running
from pgnotifybus import LinkLost, ProbeTimeout, observe
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver
from pgnotifybus.testing import FaultProxy
from support.servers import PASSWORD

_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """What a trial has shown; that everything was accounted for it has asserted."""

    noticed: float | None
    """Seconds from the fault to the loss of the link; None if none was lost."""
    live: float | None
    """Seconds from the end of the fault, or the loss if it ends by itself, to the next link."""
    missing: int
    """Messages of all channels that lie in the gaps."""


async def trial(
    case: Case, server: EmbeddedServer, driver: Driver, options: dict[str, Any] | None = None
) -> Outcome:
    """Strike, and see what becomes of it.

    Args:
        case: The fault.
        server: A server of which the trial may do what it likes.
        driver: The driver of the bus.
        options: Of the bus; those that are quick, if None.

    Raises:
        AssertionError: If anything was lost silently, given twice, or told in the wrong place.
    """
    name = f"chaos_{uuid.uuid4().hex[:8]}"
    dsn = server.dsn_for(database=name)
    chosen = dict(QUICK if options is None else options)
    world = World(server, dsn, FaultProxy.in_front_of(dsn), driver, chosen)
    await world.sql(f"CREATE DATABASE {name}")
    try:
        with _Log() as log:
            async with running(world, case.prepare):
                outcome = await _strike(case, world)
        _check_secrets(world, log)
    finally:
        await world.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    return outcome


class _Log(logging.Handler):
    """All that the library logs, down to the last detail."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def __enter__(self) -> _Log:
        self._before = observe.logger.level
        observe.logger.setLevel(logging.DEBUG)
        observe.logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        observe.logger.removeHandler(self)
        observe.logger.setLevel(self._before)


def _check_secrets(world: World, log: _Log) -> None:
    """See that nothing that was said, logged or shown tells a password."""
    events, bus = world.observer.events, world.bus
    errors = [error for event in events if (error := getattr(event, "error", None))]
    said = [*map(repr, events), *map(str, errors), repr(bus), repr(bus.health()), *log.lines]
    assert said
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "of yesterday", "of today"):
        assert not [line for line in said if secret in line], "a secret was told"


async def _strike(case: Case, world: World) -> Outcome:
    crowd = await Crowd.gather(world, case.channels, case.receivers)
    if case.quiet:
        world.quiet.clear()
    struck = time.monotonic()
    await case.strike(world)
    if case.noticed_by == "nobody":
        last = await world.settle()
        missing = sum(book.check(world.sent, [], struck, last) for book in world.received.values())
        assert (world.bus.health().generation, missing) == (1, 0)
        return Outcome(None, None, 0)
    down = await world.observer.wait_for(observe.LinkDown, timeout=_PATIENCE)
    noticed = world.observer.when(observe.LinkDown) - struck
    assert isinstance(down.error, LinkLost)
    assert isinstance(down.error, ProbeTimeout) == (case.noticed_by == "probe")
    await case.meanwhile(world)
    if not case.mends_itself:
        health = world.bus.health()
        assert health.state in ("down", "connecting", "standby"), health
        assert health.cause
    await case.mend(world)
    mended = world.observer.when(observe.LinkDown) if case.mends_itself else time.monotonic()
    await world.observer.wait_for(observe.LinkUp, 2, timeout=_PATIENCE)
    up_at = world.observer.when(observe.LinkUp, 2)
    world.quiet.set()
    await case.afterwards(world)
    last = await world.settle()
    missing = sum(book.check(world.sent, [2], up_at, last) for book in world.received.values())
    await crowd.check(world)
    health, told = world.bus.health(), world.observer
    assert (health.generation, health.state) == (2, "live")
    assert (told.count(observe.LinkDown), told.count(observe.LinkUp)) == (1, 2)
    states = [event.new for event in told.of(observe.StateChanged)]
    assert states[0] == "connecting"
    assert states[1:].count("live") == 2
    assert str(down.error)
    return Outcome(noticed, max(0.0, up_at - mended), missing)
