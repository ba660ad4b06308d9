"""One fault against one world: what must hold, and how long it takes."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

from chaos.case import Case
from chaos.crowd import Crowd
from chaos.world import QUICK, World, running
from pgnotifybus import LinkLost, PgNotifyBusError, ProbeTimeout, observe
from pgnotifybus.core.names import SCHEMA
from pgnotifybus.diagnosis.doctor import examine
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.links.sources import Driver, connector
from pgnotifybus.testing import FaultProxy
from support.servers import PASSWORD
from support.watched import Watched, no_secret_in

_PATIENCE = 60.0
_DOCTOR_TIMEOUT = 0.5


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
        with Watched(world.observer) as watched:
            async with running(world, case.prepare):
                watched.add(world.bus)
                crowd = await Crowd.gather(world, case.channels, case.receivers)
                if case.quiet:
                    world.quiet.clear()
                struck = time.monotonic()
                await case.strike(world)
                async with asyncio.TaskGroup() as group:
                    seeing = group.create_task(_see(case, world, crowd, struck))
                    examining = group.create_task(_doctor(world))
                outcome, examined = seeing.result(), examining.result()
            told = watched.told()
        assert "pgnotifybus_generation" in told
        no_secret_in(told + examined, PASSWORD, "of yesterday", "of today")
    finally:
        await world.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    return outcome


async def _doctor(world: World) -> str:
    """What `pgnotifybus doctor` finds, or why it finds nothing."""
    place = world.source if isinstance(world.source, str) else world.proxy.dsn
    connects = connector(place, world.driver, world.options.get("password"))
    try:
        findings = await examine(connects, SCHEMA, _DOCTOR_TIMEOUT)
    except PgNotifyBusError as error:
        return f"{error} {error!r}"
    return json.dumps([each._asdict() for each in findings])


async def _see(case: Case, world: World, crowd: Crowd, struck: float) -> Outcome:
    """See what becomes of the fault."""
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
    if case.for_good or not case.mends_itself:
        health = world.bus.health()
        assert health.state in case.says, health
        assert health.cause
        assert health.advice
    if case.for_good:
        missing = sum(book.check(world.sent, [], math.inf, 0) for book in world.received.values())
        return Outcome(noticed, None, missing)
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
