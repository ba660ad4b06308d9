"""How a server is doing at one moment, for who watches it. Layer: diagnosis."""

from __future__ import annotations

from typing import NamedTuple

from pgnotifybus.core.names import literal
from pgnotifybus.database.queries import run
from pgnotifybus.diagnosis import facts
from pgnotifybus.errors import EventLogError, SchemaMissing
from pgnotifybus.links.base import Runner, ServerError
from pgnotifybus.log import reading
from pgnotifybus.log.ledger import consumers


class Session(NamedTuple):
    """A session that listens, or is stuck."""

    pid: int
    application: str
    database: str
    state: str
    seconds: int
    """How long it has been so."""


class ConsumerGlance(NamedTuple):
    """A consumer of the event log."""

    name: str
    active: bool
    events: int | None
    """How many it has not consumed; None if it cannot go on from where it is."""
    seconds: float | None
    attempts: int
    dead_letters: int


class Glance(NamedTuple):
    """What there was to see."""

    queue_usage: float
    waiting: int
    """Commits that wait for the lock of NOTIFY."""
    listeners: list[Session]
    stuck: list[Session]
    pacemaker: bool
    """Whether one is awake."""
    consumers: list[ConsumerGlance] | None
    """None if there is no event log."""


async def look(runner: Runner, schema: str) -> Glance:
    """Have a look.

    Raises:
        ServerError: If the server refuses to tell.
        LinkLost: If the connection is lost.
    """
    [(usage, _, _)] = await runner.fetch(facts.QUEUE)
    [(waiting,)] = await runner.fetch(facts.WAITING)
    listeners = [
        Session(int(pid or 0), application or "", database or "", state or "", int(seconds or 0))
        for pid, application, database, state, seconds, *_ in await runner.fetch(facts.LISTENERS)
    ]
    stuck = [
        Session(int(pid or 0), name or "", database or "", wait or state or "", int(age or 0))
        for pid, name, database, state, age, wait in await runner.fetch(facts.STUCK)
    ]
    [(awake,)] = await runner.fetch(facts.AWAKE.format(schema=literal(schema)))
    return Glance(
        float(usage or 0),
        int(waiting or 0),
        listeners,
        stuck,
        awake != "0",
        await _consumers(runner, schema),
    )


async def _consumers(runner: Runner, schema: str) -> list[ConsumerGlance] | None:
    try:
        states = await run(consumers(schema), runner)
    except (ServerError, SchemaMissing):  # there is no log, or it is none of our business
        return None
    found = []
    for state in states:
        events = seconds = None
        try:
            lag = await run(reading.lag(schema, state.cursor.position, state.channels), runner)
            events, seconds = lag.events, lag.seconds
        except EventLogError:  # it was overtaken, or is of another log
            pass
        found.append(
            ConsumerGlance(
                state.name, state.active, events, seconds, state.attempts, state.dead_letters
            )
        )
    return found
